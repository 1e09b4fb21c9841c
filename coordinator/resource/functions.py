"""The SQL functions of schema ``at`` as typed calls on an asyncpg connection.

Every function here is one round trip. None of them opens a transaction: `enter` and `keep` belong inside the
branch's, the others are units of their own outside any. Errors are asyncpg's; `translate` names them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from coordinator.protocol.statuses import BranchState

Connection = asyncpg.Connection | PoolConnectionProxy
"""What every function here takes: a bare connection or one borrowed from a pool."""

UNSETTLED_MAX = 1000
"""Transactions that one call of `unsettled` returns at most."""

PROBLEMS_MAX = 100
"""Problems that a quarantined undo reports at most."""


@dataclass(frozen=True)
class UndoProblem:
    """A row that undo could not restore. Images are JSON objects by column; None means that there is no row."""

    table: str | None
    key: dict[str, Any] | None
    expected: Any
    found: Any
    error: str


@dataclass(frozen=True)
class UndoResult:
    """How an undo ended: UNDONE with the number of undo rows settled, or QUARANTINED with the problems."""

    state: BranchState
    rows: int
    problems: tuple[UndoProblem, ...]


@dataclass(frozen=True)
class Unsettled:
    """A transaction with open branches here; `deadline` is the latest of them."""

    xid: UUID
    branches: tuple[UUID, ...]
    deadline: datetime


@dataclass(frozen=True)
class LockedRow:
    """One global lock with its undo record. `branch_id` is None when several branches touched the row."""

    table: str
    key: dict[str, Any]
    xid: UUID
    branch_id: UUID | None
    before: dict[str, Any] | None
    after: dict[str, Any] | None


@dataclass(frozen=True)
class Images:
    """Rows of a transaction that is not settled here: `rows` shows at most those asked for, `total` counts all.

    A row is a JSON object with table, key, branch, before, after, now and changed. `digest` stands for all of them.
    """

    digest: str
    total: int
    rows: list[dict[str, Any]]


@dataclass(frozen=True)
class Pulse:
    """Which database this is, and the last two marks of its chain. `before`: when it was last known to be alive."""

    incarnation: UUID
    beats: int
    mark: UUID
    previous: UUID
    before: datetime


@dataclass(frozen=True, slots=True)
class Entering:
    """A statement to be sent together with BEGIN: with places ($1, ...) for its `arguments`, which are texts."""

    statement: str
    arguments: tuple[str, ...] = ()

    @property
    def sql(self) -> str:
        """The same with the arguments written into it. They are quoted as they are: nothing in them may need more."""
        return re.sub(r"\$(\d+)", lambda place: f"'{self.arguments[int(place[1]) - 1]}'", self.statement)


def entering(xid: UUID, branch_id: UUID, deadline: datetime) -> Entering:
    """What makes the current local transaction a branch.

    Raises ValueError for a deadline without a time zone: the server would read it in its own.
    """
    if deadline.tzinfo is None:
        raise ValueError(f"the deadline {deadline.isoformat()} has no time zone")
    arguments = (f"{xid.int:032x}", f"{branch_id.int:032x}", deadline.isoformat())
    return Entering("SELECT at.enter($1, $2, $3)", arguments)


async def enter(connection: Connection, xid: UUID, branch_id: UUID, deadline: datetime) -> None:
    """Makes the current local transaction the branch. AT002 past the deadline, AT003 repeated, AT004 rolled back."""
    await connection.execute("SELECT at.enter($1, $2, $3)", xid, branch_id, deadline)


async def keep(connection: Connection, result: object) -> None:
    """Keeps `result` (anything that JSON can say) in the current branch's row, for a call that is repeated."""
    await connection.execute("SELECT at.keep($1::text::jsonb)", json.dumps(result))


async def forget(connection: Connection, xids: Sequence[UUID], branches: Sequence[UUID] | None = None) -> int:
    """Phase two of a commit: drops undo rows of whole transactions, or of `branches` only. Counts the branches."""
    count = await connection.fetchval(
        "SELECT at.forget($1, $2)", list(xids), None if branches is None else list(branches)
    )
    return int(count)


async def undo(connection: Connection, xid: UUID, branches: Sequence[UUID] | None = None) -> UndoResult:
    """Phase two of a rollback: restores what `xid` (or `branches` of it) wrote. Waits for a phase one that runs.

    Raises asyncpg's LockNotAvailableError (55P03) after five seconds of waiting and DeadlockDetectedError when it
    met a plain writer badly; in both cases nothing has changed and the call may be repeated. Where the database's
    default isolation is another, it runs in a READ COMMITTED transaction of its own.
    """
    arguments = ("SELECT at.undo($1, $2)::text", xid, None if branches is None else list(branches))
    try:
        text = await connection.fetchval(*arguments)
    except asyncpg.ActiveSQLTransactionError:
        if connection.is_in_transaction():
            raise
        async with connection.transaction(isolation="read_committed"):
            text = await connection.fetchval(*arguments)
    answer = json.loads(text)
    problems = tuple(
        UndoProblem(
            table=problem["table"],
            key=problem["key"],
            expected=problem["expected"],
            found=problem["found"],
            error=problem["error"],
        )
        for problem in answer["problems"]
    )
    return UndoResult(BranchState(answer["state"]), int(answer["rows"]), problems)


async def unsettled(connection: Connection, limit: int = UNSETTLED_MAX) -> list[Unsettled]:
    """Transactions with open branches, the oldest first; of more than `limit` the oldest half and a drawn half."""
    rows = await connection.fetch("SELECT * FROM at.unsettled($1)", min(limit, UNSETTLED_MAX))
    return [Unsettled(row["xid"], tuple(row["branches"]), row["deadline"]) for row in rows]


async def states(connection: Connection, xid: UUID) -> dict[UUID, BranchState]:
    """What this resource knows of the branches of `xid`; the all-zero id is the tombstone of the whole."""
    rows = await connection.fetch("SELECT * FROM at.states($1)", xid)
    return {row["branch_id"]: BranchState(row["state"]) for row in rows}


async def locks(connection: Connection, xid: UUID | None = None) -> list[LockedRow]:
    """All global locks here, or those of `xid`."""
    rows = await connection.fetch(
        "SELECT table_name, key::text, xid, branch_id, before::text, after::text FROM at.locks($1)", xid
    )
    return [
        LockedRow(
            table=row["table_name"],
            key=json.loads(row["key"]),
            xid=row["xid"],
            branch_id=row["branch_id"],
            before=None if row["before"] is None else json.loads(row["before"]),
            after=None if row["after"] is None else json.loads(row["after"]),
        )
        for row in rows
    ]


async def purge(connection: Connection, grace: timedelta) -> int:
    """Removes settled branch rows and tombstones whose deadline passed more than `grace` ago. Returns how many."""
    return int(await connection.fetchval("SELECT at.purge($1)", grace))


async def claim(connection: Connection, owner: str, ttl: timedelta) -> bool:
    """Takes or renews the settle lease for `ttl`; False while somebody else holds it."""
    return bool(await connection.fetchval("SELECT at.claim($1, $2)", owner, ttl))


async def images(connection: Connection, xid: UUID, limit: int = PROBLEMS_MAX) -> Images:
    """Before, after and now of what `xid` wrote and is not settled here, at most `limit` rows, changed ones first."""
    found = json.loads(await connection.fetchval("SELECT at.images($1, $2)::text", xid, limit))
    return Images(found["digest"], found["total"], found["rows"])


async def resolve(
    connection: Connection,
    xid: UUID,
    resolution_id: UUID,
    action: str,
    shown: str | None,
    kept: Sequence[Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """Carries out a person's decision on a quarantined transaction: keep, keep_all, restore or retry.

    Returns ``{"state", "kept", "restored"}``, or ``{"error"}`` with nothing changed; the same again for the same
    `resolution_id`. `shown` is the digest of the images that the person saw. Raises as `undo` does.
    """
    listed = None if kept is None else json.dumps(list(kept))
    arguments = ("SELECT at.resolve($1, $2, $3, $4, $5::text::jsonb)::text", xid, resolution_id, action, shown, listed)
    async with connection.transaction(isolation="read_committed"):
        answer: dict[str, Any] = json.loads(await connection.fetchval(*arguments))
    return answer


async def doubt(connection: Connection, xid: UUID, reason: str) -> None:
    """Quarantines what is open of a transaction of which the coordinator cannot say whether it was committed."""
    await connection.execute("SELECT at.doubt($1, $2)", xid, reason)


async def quarantines(connection: Connection, limit: int) -> list[tuple[UUID, str | None]]:
    """Transactions that the coordinator has to be told about, the oldest first; a reason where it is no row's."""
    rows = await connection.fetch("SELECT * FROM at.quarantines($1)", limit)
    return [(UUID(int=row["xid"].int), row["reason"]) for row in rows]


async def told(connection: Connection, xid: UUID) -> None:
    """The coordinator has heard how `xid` ended here; does nothing while something of it is quarantined."""
    await connection.execute("SELECT at.told($1)", xid)


async def pulse(connection: Connection, *, beat: bool) -> Pulse:
    """The life sign of this database; with `beat` a new one, if the coordinator has heard the last."""
    row = await connection.fetchrow("SELECT * FROM at.pulse($1)", beat)
    assert row is not None  # noqa: S101 - the installation has written the one row
    incarnation, mark, previous = (UUID(int=row[name].int) for name in ("incarnation", "mark", "previous"))
    return Pulse(incarnation, row["beats"], mark, previous, row["before"])


async def heard(connection: Connection, mark: UUID) -> None:
    """The coordinator has heard this mark: the next beat makes a new one."""
    await connection.execute("SELECT at.heard($1)", mark)
