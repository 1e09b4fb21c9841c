"""The rule of decisions, by itself."""

from __future__ import annotations

from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from coordinator.protocol.statuses import BranchState, Decision, Reason, Settlement
from coordinator.tc.core.rulings import KnownBranch, Stored, Wish, rule, settled

NOW_MS = 1_000


def test_a_decision_stands_whatever_is_wished_later() -> None:
    """Every wish at every time gets the first answer, and nothing new is recorded."""
    for decision, wish, now_ms in product((Decision.COMMITTED, Decision.ROLLED_BACK), Wish, (0, 5_000)):
        ruling = rule(Stored(decision, "asked", NOW_MS), wish, NOW_MS, now_ms)
        assert (ruling.decision, ruling.reason, ruling.fresh) == (decision, "asked", False)


def test_a_commit_in_time_commits_and_a_late_one_is_timed_out() -> None:
    """The instant of the deadline is still in time."""
    assert rule(None, Wish.COMMIT, NOW_MS, NOW_MS).decision is Decision.COMMITTED
    late = rule(None, Wish.COMMIT, NOW_MS, NOW_MS + 1)
    assert (late.decision, late.reason, late.fresh) == (Decision.ROLLED_BACK, Reason.TIMED_OUT, True)


def test_the_deadline_that_was_heard_first_counts() -> None:
    """A later message does not lengthen or shorten a transaction."""
    stored = Stored(Decision.UNDECIDED, None, NOW_MS)
    assert rule(stored, Wish.COMMIT, 0, NOW_MS).decision is Decision.COMMITTED
    assert rule(stored, Wish.COMMIT, 9_000, NOW_MS + 1).decision is Decision.ROLLED_BACK


def test_to_ask_decides_only_past_the_deadline() -> None:
    """Before it, the transaction stays undecided and nothing is recorded."""
    early = rule(None, Wish.ASK, NOW_MS, NOW_MS)
    assert (early.decision, early.fresh) == (Decision.UNDECIDED, False)
    assert rule(None, Wish.ASK, NOW_MS, NOW_MS + 1).reason == Reason.TIMED_OUT


def test_a_rollback_keeps_its_own_reason_even_when_late() -> None:
    """Who asked for a rollback hears that it was theirs."""
    assert rule(None, Wish.ROLL_BACK, NOW_MS, NOW_MS + 1, Reason.DEADLOCK).reason == Reason.DEADLOCK


@given(st.lists(st.tuples(st.sampled_from(list(Wish)), st.integers(0, 2_000)), max_size=12))
def test_any_conversation_has_one_decision(said: list[tuple[Wish, int]]) -> None:
    """Over any sequence of wishes in time, at most one is fresh and all answers after it are the same."""
    stored: Stored | None = None
    answers: list[Decision] = []
    for wish, now_ms in sorted(said, key=lambda one: one[1]):
        ruling = rule(stored, wish, NOW_MS, now_ms)
        answers.append(ruling.decision)
        if ruling.fresh:
            stored = Stored(ruling.decision, ruling.reason, NOW_MS)
    decided = [answer for answer in answers if answer is not Decision.UNDECIDED]
    assert len(set(decided)) <= 1
    assert answers == [Decision.UNDECIDED] * (len(answers) - len(decided)) + decided


def test_an_orphan_holds_a_commit_up_only_when_it_is_quarantined() -> None:
    """What the commit did not name is the resource's own affair, unless a person is needed."""
    named = KnownBranch(BranchState.FORGOTTEN, committed=True)
    assert settled(Decision.COMMITTED, [named, KnownBranch(BranchState.OPEN, False)]) is Settlement.SETTLED
    quarantined = KnownBranch(BranchState.QUARANTINED, committed=False)
    assert settled(Decision.COMMITTED, [named, quarantined]) is Settlement.QUARANTINED
    assert settled(Decision.ROLLED_BACK, [KnownBranch(BranchState.OPEN, False)]) is Settlement.SETTLING
    assert settled(Decision.UNDECIDED, []) is Settlement.OPEN
