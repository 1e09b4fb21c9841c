"""The guard and the coordinator's capture in one database: each does its own work, and neither sees the other."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from asyncpg.exceptions import PostgresError

from coordinator.resource import enter, forget, install, locks, undo
from sharding import Bucket, BucketState, ShardId, ensure_months, install_guard, set_bucket_states

NOW = datetime(2026, 11, 23, tzinfo=UTC)
OWNED = [Bucket(number) for number in range(512)]
INSERT = "INSERT INTO orders VALUES ($1, $2, '2026-11-24+00')"


@pytest.fixture
async def connection(database: str) -> AsyncIterator[Any]:
    """A shard whose partitioned table is managed and guarded, in that order, and then gets its months."""
    made = await asyncpg.connect(database)
    await made.execute(
        "CREATE TABLE orders (bucket smallint, id int, created_at timestamptz, PRIMARY KEY (bucket, id, created_at))"
        " PARTITION BY RANGE (created_at)"
    )
    await install(made, managed=["orders"])
    await install_guard(made, ["orders"], ShardId("shard-0"), OWNED)
    await install(made, managed=["orders"])
    await ensure_months(made, "orders", ahead=1, now=NOW)
    yield made
    await made.close()


async def in_branch(connection: Any, statement: str, *values: object) -> Any:
    """Runs a statement in a branch of a new global transaction and returns its xid."""
    xid = uuid4()
    async with connection.transaction():
        await enter(connection, xid, uuid4(), datetime.now(UTC) + timedelta(minutes=1))
        await connection.execute(statement, *values)
    return xid


async def test_a_branch_writes_under_the_guard_and_is_captured(connection: Any) -> None:
    """Locking the ownership row writes nothing, so no branch is refused; later months are captured too."""
    xid = await in_branch(connection, INSERT, 3, 1)
    assert len(await locks(connection, xid)) == 1
    await forget(connection, [xid])
    assert await connection.fetchval("SELECT count(*) FROM orders") == 1


async def test_a_branch_on_a_bucket_that_is_elsewhere_leaves_nothing(connection: Any) -> None:
    """SH001 comes through as it is, and no lock stays."""
    with pytest.raises(PostgresError) as caught:
        await in_branch(connection, INSERT, 900, 1)
    assert caught.value.sqlstate == "SH001"
    assert await locks(connection) == []


async def test_an_undo_passes_a_guard_that_was_closed_meanwhile(connection: Any) -> None:
    """A rollback restores rows of a bucket that this shard has given away."""
    await connection.execute(INSERT, 3, 1)
    xid = await in_branch(connection, "DELETE FROM orders")
    await set_bucket_states(connection, [Bucket(3)], BucketState.MOVED, epoch=2)
    done = await undo(connection, xid)
    assert (done.rows, await connection.fetchval("SELECT count(*) FROM orders")) == (1, 1)
