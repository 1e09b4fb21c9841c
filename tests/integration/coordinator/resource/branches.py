"""What tests of a resource say often: a branch, a deadline, a table's rows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import asyncpg

from coordinator.resource import entering

WAIT_S = 10.0
"""Longest wait for another session to reach a lock."""

POLL_S = 0.01
"""Pause between two looks at other sessions."""


def in_a_minute() -> datetime:
    """A deadline that no test reaches."""
    return datetime.now(UTC) + timedelta(minutes=1)


@asynccontextmanager
async def branch(
    connection: asyncpg.Connection, xid: UUID, branch_id: UUID | None = None, isolation: str = "read_committed"
) -> AsyncIterator[UUID]:
    """One local transaction as a branch of `xid`; yields its branch id."""
    chosen = branch_id or uuid4()
    async with connection.transaction(isolation=isolation):
        await connection.execute(entering(xid, chosen, in_a_minute()).sql)
        yield chosen


async def run_branch(connection: asyncpg.Connection, xid: UUID, *statements: str) -> UUID:
    """Runs `statements` as one committed branch of `xid`; returns its branch id."""
    async with branch(connection, xid) as branch_id:
        for statement in statements:
            await connection.execute(statement)
    return branch_id


async def rows_of(connection: asyncpg.Connection, table: str) -> list[str]:
    """The rows of a table as text, in a fixed order."""
    rows = await connection.fetch(f"SELECT t::text AS row FROM {table} t ORDER BY 1")
    return [row["row"] for row in rows]


async def undo_rows(connection: asyncpg.Connection) -> int:
    """How many undo rows there are in the whole database."""
    return int(await connection.fetchval("SELECT count(*) FROM at.locks()"))


async def until_blocked(connection: asyncpg.Connection, pids: Sequence[int]) -> None:
    """Returns when each backend of `pids` waits for a lock; fails after WAIT_S."""
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE pid = ANY ($1) AND cardinality(pg_blocking_pids(pid)) > 0"
    async with asyncio.timeout(WAIT_S):
        while await connection.fetchval(waiting, list(pids)) < len(pids):  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(POLL_S)
