"""Everything that can go wrong, in one tree.

CoordinatorError
├── IllegalTransition          a bug: a decision would be taken back
├── NoGlobalTransaction        a branch was opened outside any global transaction
├── LockConflict               a row is locked by an undecided global transaction; retry after it is decided
│   └── Deadlock               waiting would close a cycle; this transaction was chosen to roll back
├── BranchRefused              the resource does not take this branch
│   ├── DeadlinePassed         the call came after the transaction's deadline
│   ├── BranchRepeated         the same branch was taken before; nothing was done again
│   ├── BranchAborted          the transaction was rolled back here already
│   └── UnmanagedTable         the statement writes what could not be undone
├── TransactionRolledBack      commit was asked, the decision is rollback
├── OutcomeUnknown             the coordinator could not be reached in time; the decision stands but is not known
├── CoordinatorUnavailable     no coordinator replica answered
└── CallerRefused              the coordinator does not know this caller
"""

from __future__ import annotations

from uuid import UUID


class CoordinatorError(Exception):
    """The root of all errors of this package."""


class IllegalTransition(CoordinatorError):
    """A status would move in a way that the protocol does not have: a bug, never an operating error."""


class NoGlobalTransaction(CoordinatorError):
    """A branch was opened where no global transaction is running."""


class LockConflict(CoordinatorError):
    """A row is locked by a global transaction that is not decided yet. `holder` is its xid where known."""

    def __init__(self, message: str, holder: UUID | None = None) -> None:
        super().__init__(message)
        self.holder = holder


class Deadlock(LockConflict):
    """Waiting for the holder would close a cycle of waits; this transaction is the one that rolls back."""


class BranchRefused(CoordinatorError):
    """The resource refused the branch; nothing of it was written."""


class DeadlinePassed(BranchRefused):
    """The call reached the resource after the transaction's deadline."""


class BranchRepeated(BranchRefused):
    """This branch was taken before. `result` is what it kept of its answer then, or None."""

    def __init__(self, message: str, result: object = None) -> None:
        super().__init__(message)
        self.result = result


class BranchAborted(BranchRefused):
    """The global transaction was rolled back in this resource before the branch came."""


class UnmanagedTable(BranchRefused):
    """A statement inside a branch writes a table that is not managed, or in a way that cannot be undone."""


class TransactionRolledBack(CoordinatorError):
    """Commit was asked for, but the decision is rollback. `reason` says why (see Reason)."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class OutcomeUnknown(CoordinatorError):
    """The decision was sent and no answer came in time: it may be either. Ask for the status later."""


class CoordinatorUnavailable(CoordinatorError):
    """No replica of the coordinator answered."""


class CallerRefused(CoordinatorError):
    """The token is missing, expired, or signed by nobody known."""
