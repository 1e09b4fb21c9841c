"""What lives inside a resource database: capture, undo log, global locks, fences, and their installer.

`install` puts it there; the functions are the calls of phase one and phase two; `translate` turns what the database
raises into the protocol's errors. The SQL is described in ``docs/reference/resource-sql.md``.
"""

from __future__ import annotations

from coordinator.resource.errors import (
    BRANCH_ABORTED,
    BRANCH_REPEATED,
    DEADLINE_PASSED,
    DEADLOCK_DETECTED,
    LOCK_CONFLICT,
    LOCK_NOT_AVAILABLE,
    PLAIN_CONFLICT_MESSAGE,
    SERIALIZATION_FAILURE,
    UNMANAGED,
    InstallationError,
    find_postgres_error,
    holder_of,
    repeated_state,
    translate,
)
from coordinator.resource.functions import (
    PROBLEMS_MAX,
    UNSETTLED_MAX,
    Connection,
    Entering,
    LockedRow,
    UndoProblem,
    UndoResult,
    Unsettled,
    claim,
    enter,
    entering,
    forget,
    keep,
    locks,
    purge,
    states,
    undo,
    unsettled,
)
from coordinator.resource.installer import InstallReport, install, uninstall, unmanage

__all__ = [
    "BRANCH_ABORTED",
    "BRANCH_REPEATED",
    "DEADLINE_PASSED",
    "DEADLOCK_DETECTED",
    "LOCK_CONFLICT",
    "LOCK_NOT_AVAILABLE",
    "PLAIN_CONFLICT_MESSAGE",
    "PROBLEMS_MAX",
    "SERIALIZATION_FAILURE",
    "UNMANAGED",
    "UNSETTLED_MAX",
    "Connection",
    "Entering",
    "InstallReport",
    "InstallationError",
    "LockedRow",
    "UndoProblem",
    "UndoResult",
    "Unsettled",
    "claim",
    "enter",
    "entering",
    "find_postgres_error",
    "forget",
    "holder_of",
    "install",
    "keep",
    "locks",
    "purge",
    "repeated_state",
    "states",
    "translate",
    "undo",
    "uninstall",
    "unmanage",
    "unsettled",
]
