"""The promises of phase one and phase two, one by one."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import asyncpg
import pytest

from coordinator.protocol.errors import BranchAborted, BranchRepeated, DeadlinePassed, UnmanagedTable
from coordinator.protocol.statuses import BranchState
from coordinator.resource import (
    claim,
    enter,
    forget,
    install,
    keep,
    locks,
    purge,
    repeated_state,
    states,
    translate,
    undo,
    unsettled,
)
from tests.integration.coordinator.resource.branches import (
    branch,
    in_a_minute,
    rows_of,
    run_branch,
    undo_rows,
    until_blocked,
)

TOMBSTONE = UUID(int=0)


@pytest.fixture
async def bank(connection: asyncpg.Connection) -> asyncpg.Connection:
    """A managed table `account` with three rows, and an unmanaged one."""
    await connection.execute(
        """
        CREATE TABLE account (id int PRIMARY KEY, owner text UNIQUE, balance numeric NOT NULL CHECK (balance >= 0));
        CREATE TABLE diary (id int PRIMARY KEY);
        CREATE TABLE log (id int PRIMARY KEY);
        INSERT INTO account VALUES (1, 'ann', 10), (2, 'bob', 20), (3, 'cy', 30);
        """
    )
    await install(connection, managed=["account"], exempt=["log"])
    return connection


async def test_undo_restores_and_may_be_repeated(bank: asyncpg.Connection) -> None:
    """The second undo finds nothing to do and gives the same state."""
    before = await rows_of(bank, "account")
    xid = uuid4()
    one = await run_branch(bank, xid, "UPDATE account SET balance = 0", "DELETE FROM account WHERE id = 2")
    first, second = await undo(bank, xid), await undo(bank, xid)
    assert (first.state, first.rows, second.state, second.rows) == (BranchState.UNDONE, 3, BranchState.UNDONE, 0)
    assert await rows_of(bank, "account") == before
    assert await states(bank, xid) == {one: BranchState.UNDONE, TOMBSTONE: BranchState.TOMBSTONE}


async def test_forget_keeps_and_may_be_repeated(bank: asyncpg.Connection) -> None:
    """Forget drops the undo rows of many transactions at once; the second time there is nothing to count."""
    xids = [uuid4(), uuid4()]
    await run_branch(bank, xids[0], "UPDATE account SET balance = 1 WHERE id = 1")
    await run_branch(bank, xids[1], "UPDATE account SET balance = 2 WHERE id = 2")
    assert (await forget(bank, xids), await forget(bank, xids)) == (2, 0)
    assert await undo_rows(bank) == 0
    assert await rows_of(bank, "account") == ["(1,ann,1)", "(2,bob,2)", "(3,cy,30)"]


async def test_forget_of_named_branches_leaves_the_orphan_to_undo(bank: asyncpg.Connection) -> None:
    """Only the named branches are forgotten; the other one is undone by its name, without a tombstone."""
    xid = uuid4()
    kept = await run_branch(bank, xid, "UPDATE account SET balance = 1 WHERE id = 1")
    orphan = await run_branch(bank, xid, "UPDATE account SET balance = 2 WHERE id = 2")
    assert await forget(bank, [xid], [kept]) == 1
    assert (await undo(bank, xid, [orphan])).state is BranchState.UNDONE
    assert await rows_of(bank, "account") == ["(1,ann,1)", "(2,bob,20)", "(3,cy,30)"]
    assert await states(bank, xid) == {kept: BranchState.FORGOTTEN, orphan: BranchState.UNDONE}


async def test_an_orphan_that_shares_a_row_is_quarantined(bank: asyncpg.Connection) -> None:
    """Two branches wrote one row: taking one of them back cannot be done, and nothing is changed."""
    xid = uuid4()
    await run_branch(bank, xid, "UPDATE account SET balance = 1 WHERE id = 1")
    orphan = await run_branch(bank, xid, "UPDATE account SET balance = 2 WHERE id = 1")
    result = await undo(bank, xid, [orphan])
    assert result.state is BranchState.QUARANTINED
    assert "several branches" in result.problems[0].error
    assert (await rows_of(bank, "account"))[0] == "(1,ann,2)"
    assert (await undo(bank, xid)).state is BranchState.UNDONE
    assert (await rows_of(bank, "account"))[0] == "(1,ann,10)"


async def test_forget_of_one_branch_keeps_the_row_it_shares(bank: asyncpg.Connection) -> None:
    """While another branch that wrote the row is open, its undo record stays; with the last branch it goes."""
    xid = uuid4()
    one = await run_branch(bank, xid, "UPDATE account SET balance = 1 WHERE id = 1")
    other = await run_branch(bank, xid, "UPDATE account SET balance = 2 WHERE id = 1")
    assert (await forget(bank, [xid], [one]), await undo_rows(bank)) == (1, 1)
    assert (await forget(bank, [xid], [other]), await undo_rows(bank)) == (1, 0)


async def test_forget_keeps_a_row_that_a_running_branch_shares(
    bank: asyncpg.Connection, second: asyncpg.Connection
) -> None:
    """It waits for a phase one on the same row; what that one left stays recorded, and is not taken for committed."""
    xid = uuid4()
    named = await run_branch(bank, xid, "UPDATE account SET balance = 1 WHERE id = 1")
    async with branch(second, xid) as late:
        await second.execute("UPDATE account SET balance = 2 WHERE id = 1")
        forgetting = asyncio.create_task(forget(bank, [xid], [named]))
        await until_blocked(second, [bank.get_server_pid()])
    assert await forgetting == 1
    assert await undo_rows(bank) == 1
    assert (await undo(bank, xid, [late])).state is BranchState.QUARANTINED


async def test_forget_of_both_branches_drops_the_row_they_share(bank: asyncpg.Connection) -> None:
    """At once, or one after the other and however late."""
    for apart in (False, True):
        xid = uuid4()
        named = [await run_branch(bank, xid, f"UPDATE account SET balance = {n} WHERE id = 1") for n in (1, 2)]
        for branches in [[one] for one in named] if apart else [named]:
            await forget(bank, [xid], branches)
            await bank.execute("UPDATE at.branch SET deadline = now() - interval '1 day' WHERE xid = $1", xid)
            await purge(bank, timedelta(hours=1))
        assert await undo_rows(bank) == 0
        assert await states(bank, xid) == {}


async def test_copy_and_functions_are_captured(bank: asyncpg.Connection) -> None:
    """It makes no difference how rows come into a table."""
    before = await rows_of(bank, "account")
    await bank.execute("CREATE FUNCTION pay() RETURNS void LANGUAGE sql AS 'UPDATE account SET balance = balance + 1'")
    xid = uuid4()
    async with branch(bank, xid):
        await bank.copy_records_to_table("account", records=[(7, "dee", 1), (8, "eve", 2)])
        await bank.execute("SELECT pay()")
    assert (await undo(bank, xid)).rows == 5
    assert await rows_of(bank, "account") == before


async def test_a_row_changed_behind_the_triggers_is_quarantined(bank: asyncpg.Connection) -> None:
    """Nothing of the data changes, the undo rows stay, the problem says what was expected and what was found."""
    xid = uuid4()
    one = await run_branch(bank, xid, "UPDATE account SET balance = balance + 1")
    await bank.execute(
        "SET session_replication_role = replica; UPDATE account SET balance = 99 WHERE id = 2; DELETE FROM account"
        " WHERE id = 3; RESET session_replication_role"
    )
    result = await undo(bank, xid)
    assert result.state is BranchState.QUARANTINED
    problems = {problem.key["id"]: problem for problem in result.problems if problem.key}
    assert (problems[2].expected["balance"], problems[2].found["balance"]) == (21, 99)
    assert problems[3].found is None
    assert await rows_of(bank, "account") == ["(1,ann,11)", "(2,bob,99)"]
    assert (await undo_rows(bank), (await states(bank, xid))[one]) == (3, BranchState.QUARANTINED)
    assert await unsettled(bank) == []


async def test_a_quarantined_undo_succeeds_once_the_row_is_put_right(bank: asyncpg.Connection) -> None:
    """Undo is its own retry."""
    xid = uuid4()
    await run_branch(bank, xid, "UPDATE account SET balance = 11 WHERE id = 1")
    meddle = "SET session_replication_role = replica; UPDATE account SET balance = {} WHERE id = 1;"
    await bank.execute(meddle.format(5) + "RESET session_replication_role")
    assert (await undo(bank, xid)).state is BranchState.QUARANTINED
    await bank.execute(meddle.format(11) + "RESET session_replication_role")
    assert (await undo(bank, xid)).state is BranchState.UNDONE


async def test_an_undo_that_violates_a_constraint_is_quarantined(bank: asyncpg.Connection) -> None:
    """The text of the database's error is the problem."""
    xid = uuid4()
    await run_branch(bank, xid, "DELETE FROM account WHERE id = 1")
    await bank.execute(
        "SET session_replication_role = replica; INSERT INTO account VALUES (9, 'ann', 1);"
        "RESET session_replication_role"
    )
    result = await undo(bank, xid)
    assert result.state is BranchState.QUARANTINED
    assert result.problems[0].error.startswith("23505")
    assert await undo_rows(bank) == 1


async def test_the_same_branch_twice_is_refused_with_what_it_kept(bank: asyncpg.Connection) -> None:
    """A repeated call finds its row, takes no effect twice, and gets the first answer."""
    xid = uuid4()
    async with branch(bank, xid) as one:
        await bank.execute("UPDATE account SET balance = balance + 1 WHERE id = 1")
        await keep(bank, {"balance": 11})
    with pytest.raises(asyncpg.PostgresError) as caught:
        async with branch(bank, xid, one):
            pass
    error = translate(caught.value)
    assert isinstance(error, BranchRepeated)
    assert error.result == {"balance": 11}
    assert repeated_state(caught.value) is BranchState.OPEN


async def test_a_late_phase_one_meets_the_tombstone(bank: asyncpg.Connection) -> None:
    """After an undo no branch of the transaction gets in."""
    xid = uuid4()
    await undo(bank, xid)
    with pytest.raises(asyncpg.PostgresError) as caught:
        await run_branch(bank, xid, "DELETE FROM account")
    assert isinstance(translate(caught.value), BranchAborted)


async def test_a_late_orphan_meets_its_own_fence(bank: asyncpg.Connection) -> None:
    """A branch undone by name before it came is refused; its siblings are not."""
    xid, late = uuid4(), uuid4()
    await undo(bank, xid, [late])
    with pytest.raises(asyncpg.PostgresError) as caught:
        async with branch(bank, xid, late):
            pass
    assert repeated_state(caught.value) is BranchState.TOMBSTONE
    await run_branch(bank, xid, "UPDATE account SET balance = 0")


async def test_a_call_past_its_deadline_is_refused(bank: asyncpg.Connection) -> None:
    """Nothing of a branch is written after the deadline."""
    with pytest.raises(asyncpg.PostgresError) as caught:
        async with bank.transaction():
            await enter(bank, uuid4(), uuid4(), datetime.now(UTC) - timedelta(seconds=1))
    assert isinstance(translate(caught.value), DeadlinePassed)


async def test_what_could_not_be_undone_is_refused(bank: asyncpg.Connection) -> None:
    """Unmanaged tables, TRUNCATE and DDL raise inside a branch, and work outside."""
    for statement in (
        "INSERT INTO diary VALUES (1)",
        "DELETE FROM diary",
        "TRUNCATE diary",
        "TRUNCATE account",
        "CREATE TABLE later (id int)",
        "ALTER TABLE account ADD COLUMN x int",
        "DROP TABLE diary",
    ):
        with pytest.raises(asyncpg.PostgresError) as caught:
            await run_branch(bank, uuid4(), statement)
        assert isinstance(translate(caught.value), UnmanagedTable), statement
        await bank.execute(statement)


async def test_a_cascade_into_an_unmanaged_table_is_refused(bank: asyncpg.Connection) -> None:
    """A foreign key's action is a write like any other."""
    await bank.execute(
        "CREATE TABLE card (id int PRIMARY KEY, account int REFERENCES account ON DELETE CASCADE);"
        "INSERT INTO card VALUES (1, 1)"
    )
    with pytest.raises(asyncpg.PostgresError) as caught:
        await run_branch(bank, uuid4(), "DELETE FROM account WHERE id = 1")
    assert isinstance(translate(caught.value), UnmanagedTable)


async def test_exempt_and_temporary_tables_may_be_written(bank: asyncpg.Connection) -> None:
    """Rows of an exempt table outlive a rollback; temporary tables belong to the session."""
    xid = uuid4()
    await run_branch(
        bank, xid, "INSERT INTO log VALUES (1)", "CREATE TEMP TABLE mine (x int)", "INSERT INTO mine VALUES (1)"
    )
    await undo(bank, xid)
    assert await rows_of(bank, "log") == ["(1)"]


async def test_a_branch_inside_a_branch_is_refused(bank: asyncpg.Connection) -> None:
    """One local transaction is one branch."""
    with pytest.raises(asyncpg.PostgresError, match="already"):
        async with branch(bank, uuid4()):
            await enter(bank, uuid4(), uuid4(), in_a_minute())


async def test_a_savepoint_rolled_back_leaves_no_lock(bank: asyncpg.Connection) -> None:
    """Undo rows live and die with the statement that made them."""
    async with branch(bank, uuid4()):
        savepoint = bank.transaction()
        await savepoint.start()
        await bank.execute("UPDATE account SET balance = 0")
        await savepoint.rollback()
    assert await undo_rows(bank) == 0


async def test_locks_name_key_holder_and_images(bank: asyncpg.Connection) -> None:
    """One row per touched key, with its net images."""
    xid = uuid4()
    one = await run_branch(
        bank, xid, "UPDATE account SET balance = 1 WHERE id = 1", "UPDATE account SET balance = 2 WHERE id = 1"
    )
    (lock,) = await locks(bank, xid)
    assert (lock.table, lock.key, lock.xid, lock.branch_id) == ("public.account", {"id": 1}, xid, one)
    assert (lock.before, lock.after) == (
        {"id": 1, "owner": "ann", "balance": 10},
        {"id": 1, "owner": "ann", "balance": 2},
    )
    await run_branch(bank, xid, "UPDATE account SET balance = 3 WHERE id = 1")
    assert [lock.branch_id for lock in await locks(bank)] == [None]
    assert await locks(bank, uuid4()) == []


async def test_unsettled_lists_open_transactions_oldest_first(bank: asyncpg.Connection) -> None:
    """Every open branch is named; settled transactions are not."""
    first, second, settled = uuid4(), uuid4(), uuid4()
    branches = [await run_branch(bank, first), await run_branch(bank, first)]
    await run_branch(bank, second)
    await run_branch(bank, settled)
    await forget(bank, [settled])
    found = await unsettled(bank)
    assert [item.xid for item in found] == [first, second]
    assert set(found[0].branches) == set(branches)
    assert [item.xid for item in await unsettled(bank, limit=1)] == [first]


async def test_unsettled_hides_nothing_behind_many_that_stay(bank: asyncpg.Connection) -> None:
    """The oldest are always among them, and each of the others sooner or later."""
    xids = [uuid4() for _ in range(12)]
    for number, xid in enumerate(xids):
        await run_branch(bank, xid, f"INSERT INTO account VALUES ({100 + number}, NULL, 1)")
    seen: set[UUID] = set()
    for _ in range(200):
        page = [one.xid for one in await unsettled(bank, 4)]
        assert page[:2] == xids[:2]
        assert page == sorted(page, key=xids.index)
        assert len(set(page)) == 4
        seen.update(page)
    assert seen == set(xids)


async def test_purge_removes_what_is_settled_and_past_its_deadline(bank: asyncpg.Connection) -> None:
    """Open branches stay however old they are; settled ones and tombstones stay until deadline and grace are over."""
    done, open_xid = uuid4(), uuid4()
    await run_branch(bank, done, "UPDATE account SET balance = 1")
    await undo(bank, done)
    await run_branch(bank, open_xid)
    assert await purge(bank, timedelta(0)) == 0
    await bank.execute("UPDATE at.branch SET deadline = deadline - interval '3 hours'")
    assert await purge(bank, timedelta(days=1)) == 0
    assert await purge(bank, timedelta(minutes=1)) == 2
    assert len(await states(bank, open_xid)) == 1


async def test_the_lease_has_one_owner_at_a_time(bank: asyncpg.Connection) -> None:
    """The owner renews it; another takes it when it has run out."""
    minute, over = timedelta(minutes=1), timedelta(seconds=-1)
    assert await claim(bank, "a", minute)
    assert await claim(bank, "a", minute)
    assert not await claim(bank, "b", minute)
    assert await claim(bank, "a", over)
    assert await claim(bank, "b", minute)
    assert await bank.fetchval("SELECT token FROM at.lease") == 2


async def test_a_table_changed_behind_the_installation_is_quarantined(bank: asyncpg.Connection) -> None:
    """Images that lack a column are not restored: its values would be lost."""
    xid = uuid4()
    await run_branch(bank, xid, "UPDATE account SET balance = 1")
    await bank.execute("ALTER EVENT TRIGGER at_on_ddl DISABLE; ALTER TABLE account ADD COLUMN note text")
    assert (await undo(bank, xid)).state is BranchState.QUARANTINED


async def test_columns_added_and_dropped_between_the_phases_are_followed(bank: asyncpg.Connection) -> None:
    """Images taken before a change of columns are restored after it; later captures know the new column."""
    xid = uuid4()
    await run_branch(bank, xid, "UPDATE account SET balance = 1 WHERE id = 1")
    await bank.execute("ALTER TABLE account ADD COLUMN note text")
    await bank.execute("ALTER TABLE account DROP CONSTRAINT account_owner_key")
    await bank.execute("ALTER TABLE account DROP COLUMN owner")
    assert (await undo(bank, xid)).state is BranchState.UNDONE
    assert (await rows_of(bank, "account"))[0] == "(1,10,)"
    await bank.execute("UPDATE account SET note = 'kept'")
    await run_branch(bank, xid := uuid4(), "UPDATE account SET note = NULL")
    await undo(bank, xid)
    assert (await rows_of(bank, "account"))[0] == "(1,10,kept)"


async def test_a_composite_key_with_a_null_inside_is_undone(bank: asyncpg.Connection) -> None:
    """PostgreSQL finds such a value neither IS NULL nor IS NOT NULL; it is a value."""
    await bank.execute(
        """
        CREATE TYPE place AS (row int, seat text);
        CREATE TABLE taken (at place PRIMARY KEY, who text);
        INSERT INTO taken VALUES (ROW(1, NULL), 'ann'), (ROW(NULL, NULL), 'bob'), (ROW(2, 'b'), 'cy');
        """
    )
    await install(bank, managed=["account", "taken"])
    before = await rows_of(bank, "taken")
    xid = uuid4()
    await run_branch(bank, xid, "UPDATE taken SET who = 'dan'", "DELETE FROM taken WHERE at = ROW(2, 'b')::place")
    assert (await undo(bank, xid)).state is BranchState.UNDONE
    assert await rows_of(bank, "taken") == before


async def test_a_large_branch_is_undone_exactly(bank: asyncpg.Connection) -> None:
    """Ten thousand rows in one statement, and unique values that change places."""
    await bank.execute(
        "INSERT INTO account SELECT i, 'o' || i, i FROM generate_series(10, 10009) i;"
        "CREATE TABLE copy AS SELECT * FROM account"
    )
    xid = uuid4()
    await run_branch(
        bank,
        xid,
        "UPDATE account SET balance = balance + 1",
        "UPDATE account SET owner = 'x' || owner",
        "UPDATE account SET owner = 'o' || (10019 - id) WHERE id >= 10",
    )
    assert (await undo(bank, xid)).rows == 10003
    assert await bank.fetchval("SELECT count(*) FROM (TABLE account EXCEPT TABLE copy) d") == 0
