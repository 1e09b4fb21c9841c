"""The SQL functions of steps (steps.sql) as typed calls: a round trip and a unit each. Errors are asyncpg's."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from coordinator.resource.functions import Connection


@dataclass(frozen=True)
class DueStep:
    """A step whose transaction is decided, taken for this try (`attempt`, from 1). `arguments` are JSON."""

    key: UUID
    xid: UUID
    name: str
    arguments: Any
    committed: bool
    attempt: int


@dataclass(frozen=True)
class OpenStep:
    """A step that is not over; `state` is UNDECIDED, COMMITTING, UNDOING or GIVEN_UP."""

    key: UUID
    xid: UUID
    branch_id: UUID
    name: str
    arguments: Any
    state: str
    attempts: int
    error: str | None
    due_at: datetime


def add_step_sql(name: str, arguments_json: str, *, doing: bool) -> str:
    """The statement that records a step in the current branch and gives its key as text."""
    quoted = [value.replace("'", "''") for value in (name, arguments_json)]
    return f"SELECT at.add_step('{quoted[0]}', '{quoted[1]}'::jsonb, {str(doing).lower()})::text"


async def end_step(connection: Connection, key: UUID) -> None:
    """Notes that the effect of a step is over, whichever way it ended."""
    await connection.execute("SELECT at.end_step($1)", key)


async def take_steps(
    connection: Connection, names: Sequence[str], limit: int, *, lease: timedelta, grace: timedelta
) -> list[DueStep]:
    """Takes due steps of these names for `lease`; an effect not known to be over is due `grace` after its deadline."""
    rows = await connection.fetch(
        "SELECT key, xid, name, arguments::text, committed, attempt FROM at.take_steps($1, $2, $3, $4)",
        list(names),
        limit,
        lease,
        grace,
    )
    return [
        DueStep(
            # asyncpg's UUID is a subclass; handlers are given the plain one.
            UUID(int=row["key"].int),
            UUID(int=row["xid"].int),
            row["name"],
            json.loads(row["arguments"]),
            row["committed"],
            row["attempt"],
        )
        for row in rows
    ]


async def finish_steps(connection: Connection, keys: Sequence[UUID]) -> int:
    """Removes steps that are over. Returns how many were there."""
    return int(await connection.fetchval("SELECT at.finish_steps($1)", list(keys)))


async def fail_step(connection: Connection, key: UUID, attempt: int, error: str, pause: timedelta | None) -> None:
    """Notes a failed try; the next comes after `pause`, or none without one. Nothing happens when the lease ran out."""
    await connection.execute("SELECT at.fail_step($1, $2, $3, $4)", key, attempt, error, pause)


async def retry_steps(connection: Connection, keys: Sequence[UUID]) -> int:
    """Makes steps due now, given up or not. Returns how many were there."""
    return int(await connection.fetchval("SELECT at.retry_steps($1)", list(keys)))


async def steps(connection: Connection) -> list[OpenStep]:
    """All steps that are not over, the oldest first."""
    rows = await connection.fetch(
        "SELECT key, xid, branch_id, name, arguments::text, state, attempts, error, due_at FROM at.steps()"
    )
    return [OpenStep(**{**dict(row), "arguments": json.loads(row["arguments"])}) for row in rows]


async def unserved_steps(connection: Connection, names: Sequence[str], age: timedelta) -> dict[str, int]:
    """Decided steps of other names that nobody took for `age`: how many of each name."""
    rows = await connection.fetch("SELECT * FROM at.unserved_steps($1, $2)", list(names), age)
    return {row["name"]: row["steps"] for row in rows}
