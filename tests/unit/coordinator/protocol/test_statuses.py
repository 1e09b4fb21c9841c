"""The transition function is total, and a decision is final."""

from __future__ import annotations

import itertools

import pytest

from coordinator.protocol.errors import IllegalTransition
from coordinator.protocol.ids import BranchId, ResourceName, Xid, derived_branch, unix_ms_of, uuid7
from coordinator.protocol.statuses import BranchState, Decision, Settlement, decide, settlement

FINAL = (Decision.COMMITTED, Decision.ROLLED_BACK)


@pytest.mark.parametrize(("now", "asked"), itertools.product(Decision, FINAL))
def test_the_first_decision_stands(now: Decision, asked: Decision) -> None:
    """An undecided transaction takes what is asked; a decided one keeps what it is."""
    assert decide(now, asked) is (asked if now is Decision.UNDECIDED else now)


@pytest.mark.parametrize("now", Decision)
def test_a_decision_is_never_taken_back(now: Decision) -> None:
    """UNDECIDED cannot be asked for."""
    with pytest.raises(IllegalTransition):
        decide(now, Decision.UNDECIDED)


def test_settlement_follows_the_branches() -> None:
    """Open branches keep it settling, a quarantined one marks the whole, else it is settled."""
    assert settlement(Decision.UNDECIDED, [BranchState.OPEN]) is Settlement.OPEN
    assert settlement(Decision.COMMITTED, [BranchState.OPEN, BranchState.FORGOTTEN]) is Settlement.SETTLING
    assert settlement(Decision.COMMITTED, [BranchState.FORGOTTEN]) is Settlement.SETTLED
    assert settlement(Decision.ROLLED_BACK, [BranchState.OPEN, BranchState.QUARANTINED]) is Settlement.QUARANTINED
    assert settlement(Decision.ROLLED_BACK, []) is Settlement.SETTLED


def test_ids_sort_by_time_and_carry_it() -> None:
    """A UUIDv7 holds its millisecond, version and variant; a later one is greater."""
    first, later = uuid7(1_700_000_000_000, b"\xff" * 10), uuid7(1_700_000_000_001, b"\x00" * 10)
    assert first < later
    assert (first.version, first.variant) == (7, "specified in RFC 4122")
    assert unix_ms_of(Xid(first)) == 1_700_000_000_000


def test_a_repeated_call_derives_the_same_branches() -> None:
    """Branch ids follow from call, resource and ordinal, and differ when any of them does."""
    call = BranchId(uuid7(1))
    ids = {derived_branch(call, ResourceName(name), n) for name in ("a", "b") for n in (1, 2)}
    assert len(ids) == 4
    assert derived_branch(call, ResourceName("a"), 1) in ids
