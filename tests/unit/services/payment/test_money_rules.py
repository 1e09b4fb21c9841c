"""The rules of money."""

from __future__ import annotations

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.payment import domain
from services.payment.domain import Account, AccountKind, Kind, Line, Transfer

ORDER, OWNER, PROVIDER = UUID(int=1), UUID(int=2), UUID(int=3)
cents = st.integers(min_value=0, max_value=1_000_000_000)


@given(cents, cents)
def test_every_transfer_adds_up_to_zero(amount: int, rest: int) -> None:
    """Money is moved, never made."""
    for transfer in (
        domain.top_up(OWNER, amount),
        domain.charge(ORDER, OWNER, amount),
        domain.refund(ORDER, OWNER, amount, PROVIDER, rest),
        domain.settlement(ORDER, PROVIDER, amount),
    ):
        assert sum(line.amount_cents for line in transfer.lines) == 0
        assert all(line.amount_cents for line in transfer.lines)


def test_a_transfer_that_makes_money_cannot_be_built() -> None:
    """Lines that do not add up are a bug, found before they are written."""
    with pytest.raises(ValueError, match="do not add up"):
        Transfer(Kind.CHARGE, ORDER, (Line(domain.wallet(OWNER), 1),))


@given(cents)
def test_provider_and_commission_share_the_whole_settlement(amount: int) -> None:
    """Nothing is lost in rounding, and the odd cent is the provider's."""
    transfer = domain.settlement(ORDER, PROVIDER, amount)
    ours, theirs = transfer.gain_of(domain.COMMISSION), transfer.gain_of(domain.wallet(PROVIDER))
    assert ours + theirs == amount
    assert ours * 10 <= amount


def test_a_refund_gives_the_provider_what_the_policy_leaves() -> None:
    """The escrow loses what the two gain."""
    transfer = domain.refund(ORDER, OWNER, 700, PROVIDER, 300)
    assert transfer.gain_of(domain.escrow(ORDER)) == -1000
    assert transfer.gain_of(domain.wallet(OWNER)) == 700
    assert transfer.gain_of(domain.wallet(PROVIDER)) == 300


def test_an_owner_who_is_the_provider_gets_both_parts() -> None:
    """Two lines of one wallet are added."""
    assert domain.refund(ORDER, OWNER, 700, OWNER, 300).gain_of(domain.wallet(OWNER)) == 1000


def test_the_houses_accounts_have_no_row_of_their_own() -> None:
    """Nobody waits for them: their balance is the sum of their entries."""
    assert Account(AccountKind.EXTERNAL, None) == domain.EXTERNAL
    assert Account(AccountKind.COMMISSION, None) == domain.COMMISSION
