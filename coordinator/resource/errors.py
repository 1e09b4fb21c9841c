"""What the functions and triggers inside a resource raise, as errors of the protocol.

The SQLSTATEs are those of ``docs/reference/resource-sql.md``. DETAIL carries the holder's xid where there is one.
"""

from __future__ import annotations

import json
from typing import Final
from uuid import UUID

from asyncpg.exceptions._base import PostgresError

from coordinator.protocol.errors import (
    BranchAborted,
    BranchRepeated,
    CoordinatorError,
    DeadlinePassed,
    LockConflict,
    UnmanagedTable,
)
from coordinator.protocol.statuses import BranchState

LOCK_CONFLICT: Final = "AT001"
DEADLINE_PASSED: Final = "AT002"
BRANCH_REPEATED: Final = "AT003"
BRANCH_ABORTED: Final = "AT004"
UNMANAGED: Final = "AT005"
SERIALIZATION_FAILURE: Final = "40001"
DEADLOCK_DETECTED: Final = "40P01"
LOCK_NOT_AVAILABLE: Final = "55P03"

PLAIN_CONFLICT_MESSAGE: Final = "row locked by global transaction"
"""How the message of a 40001 begins that a plain writer gets from a lock, and not from PostgreSQL itself."""

CAUSES_MAX: Final = 16
"""Wrapped exceptions that `find_postgres_error` looks through before it gives up."""


class InstallationError(CoordinatorError):
    """The installation would not protect what it was asked to: the message says which table and why."""


def find_postgres_error(error: BaseException | None) -> PostgresError | None:
    """The asyncpg error inside `error`, which SQLAlchemy (`.orig`) or a cause may wrap; None if there is none."""
    for _ in range(CAUSES_MAX):
        if error is None or isinstance(error, PostgresError):
            return error
        orig = getattr(error, "orig", None)
        error = orig if isinstance(orig, BaseException) else error.__cause__ or error.__context__
    return None


def translate(error: BaseException) -> CoordinatorError | None:
    """The protocol's error for what a resource raised, or None when it is no concern of the protocol.

    A LockConflict names its holder. An ordinary serialization failure (40001 of PostgreSQL itself) gives None:
    the transaction may simply be run again, nobody has to be asked.
    """
    found = find_postgres_error(error)
    if found is None:
        return None
    message = str(found.args[0]) if found.args else str(found)
    match getattr(found, "sqlstate", None):
        case "AT001":
            return LockConflict(message, holder_of(found))
        case "40001" if message.startswith(PLAIN_CONFLICT_MESSAGE):
            return LockConflict(message, holder_of(found))
        case "AT002":
            return DeadlinePassed(message)
        case "AT003":
            return BranchRepeated(f"{message} (state {_state_name(found)})", _kept_result(found))
        case "AT004":
            return BranchAborted(message)
        case "AT005":
            hint = getattr(found, "hint", None)
            return UnmanagedTable(f"{message}. {hint}" if hint else message)
    return None


def holder_of(error: PostgresError) -> UUID | None:
    """The xid that a conflict names in DETAIL, or None."""
    try:
        return UUID(getattr(error, "detail", None) or "")
    except ValueError:
        return None


def repeated_state(error: BaseException) -> BranchState | None:
    """For a branch that was taken before (AT003): the state in which it was found. None for every other error."""
    found = find_postgres_error(error)
    if found is None or getattr(found, "sqlstate", None) != BRANCH_REPEATED:
        return None
    return BranchState(int(getattr(found, "detail", None) or 0))


def _state_name(error: PostgresError) -> str:
    state = repeated_state(error)
    return state.name if state is not None else "unknown"


def _kept_result(error: PostgresError) -> object:
    hint = getattr(error, "hint", None)
    return json.loads(hint) if hint else None
