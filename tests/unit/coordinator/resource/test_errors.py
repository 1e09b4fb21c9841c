"""What a resource raises, in the words of the protocol."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

import pytest
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
from coordinator.resource import entering, find_postgres_error, repeated_state, translate

XID = UUID("0190f3c5-7a10-7000-8000-000000000001")
BRANCH = UUID("0190f3c5-7a10-7000-8000-000000000002")


def raised(sqlstate: str, message: str = "text", detail: str | None = None, hint: str | None = None) -> PostgresError:
    """An error as asyncpg makes it of the server's fields."""
    error = PostgresError(message)
    error.sqlstate, error.detail, error.hint = sqlstate, detail, hint  # type: ignore[attr-defined] # set by asyncpg
    return error


class Wrapped(Exception):
    """Like SQLAlchemy's DBAPIError: the driver's error is in `orig`."""

    def __init__(self, orig: BaseException) -> None:
        super().__init__(str(orig))
        self.orig = orig


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (raised("AT001", detail=str(XID)), LockConflict),
        (raised("40001", "row locked by global transaction x", detail=str(XID)), LockConflict),
        (raised("AT002"), DeadlinePassed),
        (raised("AT003", detail="1", hint=""), BranchRepeated),
        (raised("AT004"), BranchAborted),
        (raised("AT005", hint="Manage it."), UnmanagedTable),
    ],
)
def test_every_sqlstate_of_the_contract_has_its_error(error: PostgresError, kind: type[CoordinatorError]) -> None:
    """A caller acts on the class, never on the number."""
    assert type(translate(error)) is kind


@pytest.mark.parametrize("error", [raised("40001", "could not serialize access"), raised("23505"), ValueError("no")])
def test_what_is_not_the_protocols_is_left_alone(error: BaseException) -> None:
    """An ordinary serialization failure is simply run again: nobody has to be asked."""
    assert translate(error) is None


def test_a_conflict_names_its_holder() -> None:
    """The holder comes from DETAIL; without one the conflict stands all the same."""
    assert getattr(translate(raised("AT001", detail=str(XID))), "holder", None) == XID
    assert getattr(translate(raised("AT001", detail="unknown")), "holder", XID) is None


def test_a_repeated_branch_brings_its_result_and_state() -> None:
    """The kept answer is JSON in HINT, the state a number in DETAIL."""
    error = raised("AT003", detail="2", hint='{"order": 7}')
    translated = translate(error)
    assert isinstance(translated, BranchRepeated)
    assert (translated.result, repeated_state(error)) == ({"order": 7}, BranchState.UNDONE)
    assert repeated_state(raised("AT001")) is None


def test_the_database_error_is_found_behind_wrappers() -> None:
    """SQLAlchemy wraps twice: the dialect's error in `orig`, and asyncpg's as its cause."""
    inner, dialect = raised("AT004"), RuntimeError("dialect")
    dialect.__cause__ = inner
    assert find_postgres_error(Wrapped(dialect)) is inner
    assert isinstance(translate(Wrapped(dialect)), BranchAborted)
    assert find_postgres_error(Wrapped(ValueError("other"))) is None


def test_a_chain_without_end_is_given_up() -> None:
    """A loop of causes does not hang."""
    one, two = RuntimeError("one"), RuntimeError("two")
    one.__cause__, two.__cause__ = two, one
    assert find_postgres_error(one) is None


def test_entering_is_one_statement_with_a_zoned_deadline() -> None:
    """It can be sent together with BEGIN; a deadline without a zone would be read in the server's."""
    deadline = datetime(2026, 11, 23, 12, tzinfo=UTC)
    enter = entering(XID, BRANCH, deadline)
    assert enter.statement == "SELECT at.enter($1, $2, $3)"
    assert enter.sql == f"SELECT at.enter('{XID.hex}', '{BRANCH.hex}', '2026-11-23T12:00:00+00:00')"
    with pytest.raises(ValueError, match="time zone"):
        entering(XID, BRANCH, deadline.replace(tzinfo=None))
