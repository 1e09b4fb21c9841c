"""What was made cheap in the resource promises what it did before."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import asyncpg
import pytest
from asyncpg.exceptions import PostgresError

from coordinator.protocol.errors import BranchAborted, DeadlinePassed
from coordinator.resource import entering, forget, install, translate, undo
from tests.integration.coordinator.resource.branches import branch, in_a_minute, rows_of, run_branch, undo_rows

TRAP = """
CREATE SCHEMA trap;
CREATE FUNCTION trap.no(uuid, uuid) RETURNS boolean LANGUAGE sql IMMUTABLE AS 'SELECT false';
CREATE FUNCTION trap.no(timestamptz, timestamptz) RETURNS boolean LANGUAGE sql IMMUTABLE AS 'SELECT false';
CREATE FUNCTION trap.no(text, text) RETURNS boolean LANGUAGE sql IMMUTABLE AS 'SELECT false';
CREATE OPERATOR trap.= (FUNCTION = trap.no, LEFTARG = uuid, RIGHTARG = uuid);
CREATE OPERATOR trap.<= (FUNCTION = trap.no, LEFTARG = timestamptz, RIGHTARG = timestamptz);
CREATE OPERATOR trap.<> (FUNCTION = trap.no, LEFTARG = text, RIGHTARG = text);
CREATE FUNCTION trap.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS $$SELECT '-infinity'::timestamptz$$;
CREATE FUNCTION trap.current_setting(text, boolean) RETURNS text LANGUAGE sql AS $$SELECT ''$$;
CREATE FUNCTION trap.set_config(text, text, boolean) RETURNS text LANGUAGE sql AS $$SELECT ''$$;
CREATE FUNCTION trap.uuid_hash_extended(uuid, bigint) RETURNS bigint LANGUAGE sql AS 'SELECT 0';
CREATE FUNCTION trap.pg_advisory_xact_lock_shared(bigint) RETURNS void LANGUAGE sql AS '';
CREATE TABLE trap.branch (LIKE at.branch);
CREATE DOMAIN trap.uuid AS pg_catalog.text CHECK (false);
SET search_path = trap, pg_catalog, pg_temp;
"""
ENTERED = """
SELECT current_setting('at.xid'), count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()
"""


@pytest.fixture
async def bank(connection: asyncpg.Connection) -> asyncpg.Connection:
    """A managed table `account` with one row."""
    await connection.execute(
        "CREATE TABLE account (id int PRIMARY KEY, balance int); INSERT INTO account VALUES (1, 10)"
    )
    await install(connection, managed=["account"])
    return connection


async def test_forget_does_not_read_what_is_open_elsewhere(bank: asyncpg.Connection) -> None:
    """It costs the same however many branches were open since the last vacuum: their index is not used."""
    for number in range(12):  # more often than PostgreSQL plans anew
        xid = uuid4()
        branch_id = await run_branch(bank, xid, f"UPDATE account SET balance = {number} WHERE id = 1")
        assert await forget(bank, [xid], [branch_id] if number % 2 else None) == 1
    await bank.execute("SELECT pg_stat_force_next_flush()")
    used = "SELECT idx_scan FROM pg_stat_user_indexes WHERE indexrelname = 'branch_open'"
    assert await bank.fetchval(used) == 0


async def test_entering_looks_nothing_up_on_the_callers_search_path(bank: asyncpg.Connection) -> None:
    """Functions, operators and types of the caller's stay unused in what runs with the installer's rights."""
    undone, late, fine = uuid4(), uuid4(), uuid4()
    await undo(bank, undone)
    await bank.execute(TRAP)
    with pytest.raises(PostgresError) as refused:
        await run_branch(bank, undone, "SELECT")
    assert isinstance(translate(refused.value), BranchAborted)
    with pytest.raises(PostgresError) as passed:
        await bank.execute(entering(late, uuid4(), datetime.now(UTC) - timedelta(seconds=1)).sql)
    assert isinstance(translate(passed.value), DeadlinePassed)
    with pytest.raises(PostgresError, match="is a branch of"):
        await bank.execute(
            f"BEGIN; {entering(fine, uuid4(), in_a_minute()).sql}; {entering(late, uuid4(), in_a_minute()).sql}"
        )
    await bank.execute("ROLLBACK")
    async with branch(bank, fine):
        await bank.execute("SET LOCAL search_path = pg_catalog")
        assert tuple(await bank.fetchrow(ENTERED)) == (str(fine), 1)
    assert await bank.fetchval("SELECT count(*) FROM at.branch b WHERE b.state OPERATOR(pg_catalog.<) 1") == 1


async def test_a_row_touched_alone_and_again_is_one_undo_row(bank: asyncpg.Connection) -> None:
    """One row a statement or several, first touch or later, with a key that changes: undo restores them all."""
    statements = (
        "UPDATE account SET balance = 11 WHERE id = 1",
        "UPDATE account SET balance = 12 WHERE id = 1",
        "INSERT INTO account VALUES (2, 20)",
        "UPDATE account SET balance = balance + 1",
        "UPDATE account SET id = 3 WHERE id = 1",
        "DELETE FROM account WHERE id = 2",
        "UPDATE account SET balance = 0 WHERE id = 99",
    )
    xid = uuid4()
    await bank.execute("INSERT INTO account VALUES (5, 50)")
    await run_branch(bank, xid, *statements)
    keys = await bank.fetch('SELECT id, (before).balance AS before, (after).balance AS after FROM at."public.account"')
    assert sorted(tuple(row) for row in keys) == [(1, 10, None), (2, None, None), (3, None, 13), (5, 50, 51)]
    assert (await undo(bank, xid)).rows == 4
    assert [tuple(row) for row in await bank.fetch("SELECT * FROM account ORDER BY id")] == [(1, 10), (5, 50)]


IN_PLACE = "SELECT at.undo_in_place($1, NULL, ARRAY['account'::regclass])"


@pytest.mark.parametrize(
    ("statement", "behind", "restored"),
    [
        ("UPDATE account SET balance = balance + 1", "", 2),
        ("UPDATE account SET balance = balance + 1", "UPDATE account SET balance = 99 WHERE id = 1", None),
        ("UPDATE account SET balance = balance + 1", "DELETE FROM account WHERE id = 1", None),
        ("UPDATE account SET balance = balance + 1", "ALTER TABLE account ADD COLUMN note text", None),
        ("UPDATE account SET label = label || '!'", "", None),
        ("UPDATE account SET bank = 2", "", 2),
        ("UPDATE account SET bank = 2", "DELETE FROM bank WHERE id = 1", None),
        ("UPDATE account SET balance = balance", "", None),
        ("INSERT INTO account VALUES (3, 30, 'c', 1)", "", None),
        ("DELETE FROM account WHERE id = 1", "", None),
    ],
)
async def test_the_undo_of_changed_rows_is_all_in_one_statement_or_nothing(
    connection: asyncpg.Connection, statement: str, behind: str, restored: int | None
) -> None:
    """What is not as the branch left it, or needs more than being put back in place, is left to the long way."""
    await connection.execute(
        "CREATE TABLE bank (id int PRIMARY KEY); INSERT INTO bank VALUES (1), (2);"
        "CREATE TABLE account (id int PRIMARY KEY, balance int, label text UNIQUE, bank int REFERENCES bank);"
        "INSERT INTO account VALUES (1, 10, 'a', 1), (2, 20, 'b', 1)"
    )
    await install(connection, managed=["account"], exempt=["bank"])
    xid = uuid4()
    before = await rows_of(connection, "account")
    await run_branch(connection, xid, statement)
    if behind:
        await connection.execute(f"SET session_replication_role = replica; {behind}; RESET session_replication_role")
    after, locks = await rows_of(connection, "account"), await undo_rows(connection)
    assert await connection.fetchval(IN_PLACE, xid) == restored
    assert (await rows_of(connection, "account"), await undo_rows(connection)) == (
        (after, locks) if restored is None else (before, 0)
    )
