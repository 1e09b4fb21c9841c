"""What a global transaction can be, and the one function that moves it.

Two facts are kept apart: the *decision* (UNDECIDED, COMMITTED, ROLLED_BACK; final once made) and the
*settlement*, which says how far the resources have followed it.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import assert_never

from coordinator.protocol.errors import IllegalTransition


class Decision(IntEnum):
    """What was decided about a whole global transaction. The numbers are stored; they never change."""

    UNDECIDED = 0
    COMMITTED = 1
    ROLLED_BACK = 2


class Reason(StrEnum):
    """Why a transaction was decided as it was."""

    ASKED = "asked"  # the application asked for it
    TIMED_OUT = "timed_out"  # nobody decided before the deadline
    DEADLOCK = "deadlock"  # aborted as the youngest of a cycle of waits
    OPERATOR = "operator"  # a person decided
    FORGOTTEN = "forgotten"  # older than what the coordinator remembers: a person decides in each resource


class BranchState(IntEnum):
    """A branch, as its resource and the coordinator store it."""

    OPEN = 0
    FORGOTTEN = 1  # committed, undo rows dropped
    UNDONE = 2  # rolled back, rows restored
    QUARANTINED = 3  # undo found rows that are not as the branch left them: a person decides
    TOMBSTONE = 4  # rolled back before phase one came; phase one is refused


class Settlement(IntEnum):
    """How far the resources have followed the decision, over all branches."""

    OPEN = 0  # undecided
    SETTLING = 1
    SETTLED = 2
    QUARANTINED = 3


def decide(now: Decision, asked: Decision) -> Decision:
    """The decision after `asked` reaches a transaction whose decision is `now`: total, and final once decided.

    A repeated question gets the first answer, whatever it asks for. Raises IllegalTransition when `asked`
    is UNDECIDED: a decision is never taken back.
    """
    match asked:
        case Decision.UNDECIDED:
            raise IllegalTransition(f"{now.name} cannot become UNDECIDED")
        case Decision.COMMITTED | Decision.ROLLED_BACK:
            return asked if now is Decision.UNDECIDED else now
        case _:
            assert_never(asked)


def settlement(decision: Decision, branches: list[BranchState]) -> Settlement:
    """The settlement of a transaction from its decision and the states of its known branches."""
    if decision is Decision.UNDECIDED:
        return Settlement.OPEN
    if BranchState.QUARANTINED in branches:
        return Settlement.QUARANTINED
    if BranchState.OPEN in branches:
        return Settlement.SETTLING
    return Settlement.SETTLED
