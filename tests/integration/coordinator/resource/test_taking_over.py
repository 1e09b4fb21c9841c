"""A branch takes over the rows of a transaction that is known to be committed, before they are forgotten."""

from __future__ import annotations

from uuid import UUID, uuid4

import asyncpg
import pytest
from asyncpg.exceptions import PostgresError

from coordinator.protocol.errors import LockConflict
from coordinator.resource import entering, forget, install, translate, undo
from tests.integration.coordinator.resource.branches import in_a_minute, rows_of, run_branch, undo_rows

SCHEMA = """
CREATE TABLE owner (id int PRIMARY KEY, name text);
CREATE TABLE account (id int PRIMARY KEY, balance int, owner int REFERENCES owner ON DELETE CASCADE ON UPDATE CASCADE);
INSERT INTO owner VALUES (1, 'a'), (2, 'b');
INSERT INTO account VALUES (1, 10, 1), (2, 20, 2);
"""
WRITES = {
    "update": "UPDATE account SET balance = balance + 1",
    "insert": "INSERT INTO account VALUES (3, 30, 1)",
    "delete": "DELETE FROM account WHERE id = 1",
    "cascaded delete": "DELETE FROM owner WHERE id = 1",
    "came and went": "INSERT INTO account VALUES (4, 0, 1); DELETE FROM account WHERE id = 4",
}
AFTER = {
    "update": "UPDATE account SET balance = balance + 100",
    "delete": "DELETE FROM account",
    "insert again": (
        "INSERT INTO account VALUES (1, 77, 2), (3, 78, 2), (4, 79, 2) ON CONFLICT (id) DO UPDATE SET balance = 80"
    ),
    "twice": "UPDATE account SET balance = 1; UPDATE account SET balance = 2",
}


@pytest.fixture
async def bank(connection: asyncpg.Connection) -> asyncpg.Connection:
    """Managed tables with a foreign key that cascades."""
    await connection.execute(SCHEMA)
    await install(connection, managed=["owner", "account"])
    return connection


async def taking_over(bank: asyncpg.Connection, xid: UUID, committed: list[UUID], statement: str) -> UUID:
    """A branch of `xid` that takes over what `committed` left."""
    branch_id = uuid4()
    async with bank.transaction():
        await bank.execute(entering(xid, branch_id, in_a_minute(), committed).sql)
        await bank.execute(statement)
    return branch_id


async def state(bank: asyncpg.Connection) -> list[list[str]]:
    """All rows."""
    return [await rows_of(bank, table) for table in ("owner", "account")]


@pytest.mark.parametrize("first", WRITES)
@pytest.mark.parametrize("second", AFTER)
async def test_what_is_undone_then_is_what_the_committed_one_left(
    bank: asyncpg.Connection, first: str, second: str
) -> None:
    """Whatever either of them wrote; and forgetting the committed one frees none of the other's rows."""
    holder, taker = uuid4(), uuid4()
    held = await run_branch(bank, holder, WRITES[first])
    left = await state(bank)
    await taking_over(bank, taker, [held], AFTER[second])
    locks = await bank.fetch("SELECT xid FROM at.locks()")
    await forget(bank, [holder], [held])
    assert sum(row["xid"] == taker for row in locks) == await undo_rows(bank) > 0
    await undo(bank, taker)
    assert await state(bank) == left
    assert await undo_rows(bank) == 0


async def test_a_taken_row_is_locked_for_everybody_else(bank: asyncpg.Connection) -> None:
    """Also for another who knows of the first holder's commit."""
    holder, taker, third = uuid4(), uuid4(), uuid4()
    held = await run_branch(bank, holder, WRITES["update"])
    await taking_over(bank, taker, [held], WRITES["update"])
    with pytest.raises(PostgresError) as refused:
        await taking_over(bank, third, [held], WRITES["update"])
    conflict = translate(refused.value)
    assert isinstance(conflict, LockConflict)
    assert conflict.holder == taker
    with pytest.raises(asyncpg.SerializationError):
        await bank.execute(WRITES["update"])


async def test_only_what_was_named_is_taken(bank: asyncpg.Connection) -> None:
    """Rows of somebody else are refused as ever, and nothing of the statement stays."""
    holder, other, taker = uuid4(), uuid4(), uuid4()
    held = await run_branch(bank, holder, "UPDATE account SET balance = 11 WHERE id = 1")
    await run_branch(bank, other, "UPDATE account SET balance = 21 WHERE id = 2")
    before = (
        await state(bank),
        await bank.fetch("SELECT table_name, key, xid, before, after FROM at.locks() ORDER BY key"),
    )
    with pytest.raises(PostgresError) as refused:
        await taking_over(bank, taker, [held], WRITES["update"])
    conflict = translate(refused.value)
    assert isinstance(conflict, LockConflict)
    assert conflict.holder == other
    after = (
        await state(bank),
        await bank.fetch("SELECT table_name, key, xid, before, after FROM at.locks() ORDER BY key"),
    )
    assert after == before


async def test_taking_over_ends_with_its_local_transaction(bank: asyncpg.Connection) -> None:
    """The next branch on the same connection takes nothing."""
    holder, taker = uuid4(), uuid4()
    held = await run_branch(bank, holder, WRITES["update"])
    await taking_over(bank, taker, [held], "SELECT")
    with pytest.raises(PostgresError) as refused:
        await run_branch(bank, uuid4(), WRITES["update"])
    assert isinstance(translate(refused.value), LockConflict)


async def test_what_points_at_a_row_of_the_committed_one_waits_as_ever(bank: asyncpg.Connection) -> None:
    """Rows are taken over, not what guards them: the next try is made when they are forgotten."""
    holder = uuid4()
    held = await run_branch(bank, holder, "UPDATE owner SET id = 9 WHERE id = 1")
    with pytest.raises(PostgresError) as refused:
        await taking_over(bank, uuid4(), [held], WRITES["update"])
    conflict = translate(refused.value)
    assert isinstance(conflict, LockConflict)
    assert conflict.holder == holder
    await forget(bank, [holder], [held])
    await taking_over(bank, uuid4(), [], WRITES["update"])


@pytest.mark.parametrize("shared", [False, True])
async def test_a_row_of_a_branch_that_the_commit_did_not_name_is_not_taken(
    bank: asyncpg.Connection, shared: bool
) -> None:
    """It has to be undone: also where it shares the row with one that was named."""
    holder = uuid4()
    named = await run_branch(bank, holder, "UPDATE account SET balance = 11 WHERE id = 1")
    await run_branch(bank, holder, f"UPDATE account SET balance = 0 WHERE id = {1 if shared else 2}")
    with pytest.raises(PostgresError) as refused:
        await taking_over(bank, uuid4(), [named], WRITES["update"])
    conflict = translate(refused.value)
    assert isinstance(conflict, LockConflict)
    assert conflict.holder == holder
