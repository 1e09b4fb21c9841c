"""What becomes of a transaction when somebody speaks about it: the rule that `rulings.sql` applies set-wise.

The coordinator rules inside the store, under the row's lock and by the store's clock, so that a decision costs one
round trip and replicas cannot disagree. This module is the same rule in a form that can be read and enumerated; a test
compares the two on every combination.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from coordinator.protocol.statuses import BranchState, Decision, Reason, Settlement, decide, settlement


class Wish(IntEnum):
    """What somebody wants of a transaction. The numbers are those of `tc.apply`."""

    ASK = 0
    COMMIT = 1
    ROLL_BACK = 2


@dataclass(frozen=True, slots=True)
class Stored:
    """A transaction as the store has it."""

    decision: Decision
    reason: str | None
    deadline_ms: int


@dataclass(frozen=True, slots=True)
class Ruling:
    """The answer; `fresh` when it was made just now and has to be recorded."""

    decision: Decision
    reason: str | None
    fresh: bool


@dataclass(frozen=True, slots=True)
class KnownBranch:
    """A branch as the store has it; `committed` when the commit named it."""

    state: BranchState
    committed: bool


def rule(
    stored: Stored | None,
    wish: Wish,
    deadline_ms: int,
    now_ms: int,
    reason: str = Reason.ASKED,
    memory_ms: int | None = None,
) -> Ruling:
    """The ruling on `wish` at `now_ms`. Total; the first decision stands for ever.

    The deadline that the store heard first counts, else that of the message. A commit after it is a rollback. To ask
    after it is one too (presumed abort); to ask before it leaves the transaction undecided. `reason` is that of a
    rollback which somebody wants. Of an unknown transaction whose deadline is not after `memory_ms` nothing is decided:
    it may be one that was committed and purged.
    """
    if stored is None and memory_ms is not None and deadline_ms <= memory_ms:
        return Ruling(Decision.UNDECIDED, None, fresh=False)
    known = stored or Stored(Decision.UNDECIDED, None, deadline_ms)
    if known.decision is not Decision.UNDECIDED:
        return Ruling(known.decision, known.reason, fresh=False)
    late = known.deadline_ms < now_ms
    if wish is Wish.ROLL_BACK:
        return Ruling(decide(known.decision, Decision.ROLLED_BACK), reason, fresh=True)
    if late:
        return Ruling(decide(known.decision, Decision.ROLLED_BACK), Reason.TIMED_OUT, fresh=True)
    if wish is Wish.COMMIT:
        return Ruling(decide(known.decision, Decision.COMMITTED), Reason.ASKED, fresh=True)
    return Ruling(Decision.UNDECIDED, None, fresh=False)


def settled(decision: Decision, branches: list[KnownBranch]) -> Settlement:
    """How far the resources are. A branch that a commit did not name holds nothing up unless it is quarantined."""
    counted = [
        branch.state
        for branch in branches
        if branch.committed or decision is Decision.ROLLED_BACK or branch.state is BranchState.QUARANTINED
    ]
    return settlement(decision, counted)
