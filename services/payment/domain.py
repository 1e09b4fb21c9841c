"""The rules of money: pure. Amounts are whole cents; a transfer moves them between accounts and makes none."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID

COMMISSION_PERCENT = 10


class Kind(StrEnum):
    """Why money moved. The words are stored."""

    TOP_UP = "top_up"
    CHARGE = "charge"
    REFUND = "refund"
    SETTLEMENT = "settlement"


class AccountKind(StrEnum):
    """Where money lies. The words are stored."""

    WALLET = "wallet"
    ESCROW = "escrow"
    EXTERNAL = "external"
    COMMISSION = "commission"


@dataclass(frozen=True)
class Account:
    """A person's wallet, an order's escrow, or one of the house's two (without an id)."""

    kind: AccountKind
    id: UUID | None = None


EXTERNAL = Account(AccountKind.EXTERNAL)
COMMISSION = Account(AccountKind.COMMISSION)


def wallet(user_id: UUID) -> Account:
    """A person's wallet."""
    return Account(AccountKind.WALLET, user_id)


def escrow(order_id: UUID) -> Account:
    """An order's escrow."""
    return Account(AccountKind.ESCROW, order_id)


@dataclass(frozen=True)
class Line:
    """What one account gains, or loses when negative."""

    account: Account
    amount_cents: int


@dataclass(frozen=True)
class Transfer:
    """Lines that add up to zero; without lines nothing moves. Raises ValueError when they do not add up."""

    kind: Kind
    order_id: UUID | None
    lines: tuple[Line, ...]

    def __post_init__(self) -> None:
        if sum(line.amount_cents for line in self.lines) != 0:
            raise ValueError(f"the lines of a {self.kind} do not add up to zero: {self.lines}")

    def gain_of(self, account: Account) -> int:
        """What `account` gains by it."""
        return sum(line.amount_cents for line in self.lines if line.account == account)


def top_up(user_id: UUID, amount_cents: int) -> Transfer:
    """Money comes in from outside."""
    return _transfer(Kind.TOP_UP, None, [Line(EXTERNAL, -amount_cents), Line(wallet(user_id), amount_cents)])


def charge(order_id: UUID, owner_id: UUID, amount_cents: int) -> Transfer:
    """The owner pays for an order."""
    lines = [Line(wallet(owner_id), -amount_cents), Line(escrow(order_id), amount_cents)]
    return _transfer(Kind.CHARGE, order_id, lines)


def refund(
    order_id: UUID, owner_id: UUID, amount_cents: int, provider_id: UUID | None, provider_cents: int
) -> Transfer:
    """The owner gets back what the policy gives; the provider, who kept the place free, what it leaves."""
    lines = [Line(escrow(order_id), -amount_cents - provider_cents), Line(wallet(owner_id), amount_cents)]
    if provider_id is not None:
        lines.append(Line(wallet(provider_id), provider_cents))
    return _transfer(Kind.REFUND, order_id, lines)


def settlement(order_id: UUID, provider_id: UUID, amount_cents: int) -> Transfer:
    """The stay is over: the provider is paid, less our commission."""
    ours = commission_of(amount_cents)
    lines = [
        Line(escrow(order_id), -amount_cents),
        Line(wallet(provider_id), amount_cents - ours),
        Line(COMMISSION, ours),
    ]
    return _transfer(Kind.SETTLEMENT, order_id, lines)


def commission_of(amount_cents: int) -> int:
    """Our part, rounded down: the odd cent is the provider's."""
    return amount_cents * COMMISSION_PERCENT // 100


def _transfer(kind: Kind, order_id: UUID | None, lines: Iterable[Line]) -> Transfer:
    return Transfer(kind, order_id, tuple(line for line in lines if line.amount_cents != 0))
