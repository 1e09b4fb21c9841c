"""Random SQL through branches: what is rolled back leaves nothing, what is committed stays.

``PAWSTAY_RANDOM_SQL_RUNS`` and ``PAWSTAY_RANDOM_SQL_SEED`` make the run longer or repeat one.
"""

from __future__ import annotations

import os
from random import Random
from uuid import UUID, uuid4

import asyncpg
import pytest

from coordinator.protocol.statuses import BranchState
from coordinator.resource import forget, install, undo
from tests.integration.coordinator.resource.branches import branch, undo_rows
from tests.integration.coordinator.resource.random_sql import (
    TABLE_NAMES,
    TABLES,
    Table,
    differences,
    locking_read,
    prepare,
    rows_for,
    statement,
    take_snapshot,
)

RUNS = int(os.environ.get("PAWSTAY_RANDOM_SQL_RUNS", "80"))
"""Global transactions of one test."""

FIRST_SEED = int(os.environ.get("PAWSTAY_RANDOM_SQL_SEED", "1"))

FAULT_RUNS_MAX = 300
"""Transactions in which a planted fault must show."""


async def _attempt(connection: asyncpg.Connection, sql: str) -> bool:
    """Runs `sql` in a savepoint; False when it violated something, which is no concern here."""
    try:
        async with connection.transaction():
            await connection.execute(sql)
            await connection.execute("SET CONSTRAINTS ALL IMMEDIATE; SET CONSTRAINTS ALL DEFERRED")
    except (asyncpg.IntegrityConstraintViolationError, asyncpg.CardinalityViolationError, asyncpg.DataError):
        return False
    except asyncpg.PostgresError as error:
        if error.sqlstate in ("27000", "55000", "428C9"):  # a trigger changed the row first; wrong partition
            return False
        raise AssertionError(f"{error.sqlstate} {error} in: {sql}") from error
    return True


async def _transaction(
    connection: asyncpg.Connection, dice: Random, tables: tuple[Table, ...] = TABLES
) -> tuple[UUID, list[str]]:
    """Runs a global transaction of one to three branches; returns its xid and the statements that took effect."""
    xid, done = uuid4(), []
    for _ in range(dice.randint(1, 3)):
        async with branch(
            connection, xid, isolation=dice.choice(["read_committed", "repeatable_read", "serializable"])
        ):
            for _ in range(dice.randint(1, 5)):
                sql = statement(dice, tables) if dice.random() < 0.9 else locking_read(dice, tables)
                if dice.random() < 0.1:
                    savepoint = connection.transaction()
                    await savepoint.start()
                    await _attempt(connection, sql)
                    await savepoint.rollback()
                elif await _attempt(connection, sql):
                    done.append(sql)
    return xid, done


async def _populate(connection: asyncpg.Connection, dice: Random) -> None:
    for _ in range(10):
        for table in TABLES:
            await _attempt(connection, statement(dice, (table,)))
    for _ in range(3):
        for table in TABLES:
            await _attempt(connection, rows_for(table, dice))


@pytest.fixture
async def resource(connection: asyncpg.Connection) -> asyncpg.Connection:
    """The random schema, managed, with rows in it."""
    await prepare(connection)
    await install(connection, managed=TABLE_NAMES)
    await _populate(connection, Random(FIRST_SEED))
    return connection


@pytest.mark.slow
async def test_what_is_rolled_back_leaves_every_table_as_it_was(resource: asyncpg.Connection) -> None:
    """After an undo every table equals the one before bit by bit, and to a committed read already before the undo."""
    took_effect = 0
    for seed in range(FIRST_SEED, FIRST_SEED + RUNS):
        dice = Random(seed)
        await take_snapshot(resource)
        xid, done = await _transaction(resource, dice)
        took_effect += len(done)
        story = f"seed {seed}:\n" + ";\n".join(done)
        assert await differences(resource, committed=True) == [], story
        result = await undo(resource, xid)
        assert result.state is BranchState.UNDONE, f"{result.problems}\n{story}"
        assert await differences(resource) == [], story
        assert await undo_rows(resource) == 0, story
        if seed % 10 == 0:
            await _populate(resource, dice)
    assert took_effect > RUNS


@pytest.mark.slow
async def test_what_is_committed_stays_as_the_branches_left_it(resource: asyncpg.Connection) -> None:
    """Forget drops the undo rows and changes no table."""
    for seed in range(FIRST_SEED, FIRST_SEED + RUNS // 3):
        xid, done = await _transaction(resource, Random(seed))
        await take_snapshot(resource)
        await forget(resource, [xid])
        assert await differences(resource) == [], f"seed {seed}: {done}"
        assert await undo_rows(resource) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("table", "trigger", "written"),
    [
        ("wide", "at_capture_update", ("wide",)),
        ("part_2", "at_capture_delete", ("part",)),
        ("child", "at_capture_insert", ("child", "parent")),
        ("part", "at_capture_merge", ("part",)),
    ],
)
async def test_a_missing_trigger_is_noticed(
    resource: asyncpg.Connection, table: str, trigger: str, written: tuple[str, ...]
) -> None:
    """The comparison above proves itself: without one capture trigger it finds rows that were not restored."""
    await resource.execute(f"DROP TRIGGER {trigger} ON {table}")
    tables = tuple(known for known in TABLES if known.name in written)
    for seed in range(FIRST_SEED, FIRST_SEED + FAULT_RUNS_MAX):
        await take_snapshot(resource)
        xid, _ = await _transaction(resource, Random(seed), tables)
        result = await undo(resource, xid)
        if result.state is not BranchState.UNDONE or await differences(resource):
            return
        if seed % 10 == 0:
            await _populate(resource, Random(seed))
    pytest.fail(f"{FAULT_RUNS_MAX} transactions without {trigger} on {table} all looked restored")
