"""Two sessions on one row: who meets the lock, who waits, and what each is told."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from itertools import product
from uuid import UUID, uuid4

import asyncpg
import pytest

from coordinator.protocol.errors import LockConflict
from coordinator.protocol.statuses import BranchState
from coordinator.resource import forget, install, states, translate, undo
from tests.integration.coordinator.resource.branches import branch, rows_of, run_branch, undo_rows, until_blocked

ISOLATIONS = ("read_committed", "repeatable_read", "serializable")

PLAIN_WRITES = (
    "UPDATE item SET n = 0 WHERE id = 1",
    "DELETE FROM item WHERE id = 1",
    "INSERT INTO item VALUES (2, 'again', 0)",
    "UPDATE item SET id = 2 WHERE id = 3",
    "INSERT INTO item VALUES (2, 'z', 0) ON CONFLICT (id) DO UPDATE SET n = 7",
)


@pytest.fixture
async def shop(connection: asyncpg.Connection) -> asyncpg.Connection:
    """A managed table, a managed partitioned one, and a managed pair joined by a foreign key."""
    await connection.execute(
        """
        CREATE TABLE item (id int PRIMARY KEY, code text UNIQUE, n int);
        INSERT INTO item VALUES (1, 'a', 1), (2, 'b', 2), (3, 'c', 3), (4, 'd', 4);
        CREATE TABLE month (id int, m int, PRIMARY KEY (id, m)) PARTITION BY LIST (m);
        CREATE TABLE month_1 PARTITION OF month FOR VALUES IN (1);
        INSERT INTO month VALUES (1, 1);
        CREATE TABLE line (id int PRIMARY KEY, item int REFERENCES item);
        INSERT INTO line VALUES (1, 4);
        CREATE UNIQUE INDEX line_odd ON line ((item % 10)) WHERE id > 100;
        """
    )
    await install(connection, managed=["item", "month", "line"])
    return connection


async def _conflict(work: Awaitable[object]) -> LockConflict:
    with pytest.raises(asyncpg.PostgresError) as caught:
        await work
    error = translate(caught.value)
    assert isinstance(error, LockConflict), caught.value
    return error


async def _plain(connection: asyncpg.Connection, isolation: str, statement: str) -> None:
    async with connection.transaction(isolation=isolation):
        await connection.execute(statement)


async def test_a_plain_writer_meets_the_lock(shop: asyncpg.Connection) -> None:
    """Under every isolation level the writer is refused with 40001 and told the holder."""
    xid = uuid4()
    await run_branch(shop, xid, "UPDATE item SET n = 5 WHERE id = 1", "DELETE FROM item WHERE id = 2")
    for isolation, statement in product(ISOLATIONS, PLAIN_WRITES):
        assert (await _conflict(_plain(shop, isolation, statement))).holder == xid


async def test_a_plain_writer_with_an_older_snapshot_is_refused(
    shop: asyncpg.Connection, second: asyncpg.Connection
) -> None:
    """A lock taken after the writer's snapshot counts all the same."""
    for isolation, statement in product(ISOLATIONS, PLAIN_WRITES):
        xid = uuid4()
        with pytest.raises(asyncpg.SerializationError):  # noqa: PT012 - the error may come at the statement or the commit
            async with second.transaction(isolation=isolation):
                await second.fetchval("SELECT count(*) FROM line")
                await run_branch(shop, xid, "UPDATE item SET n = 5 WHERE id = 1", "DELETE FROM item WHERE id = 2")
                await second.execute(statement)
        assert (await undo(shop, xid)).state is BranchState.UNDONE


async def test_plain_writers_of_other_rows_pass(shop: asyncpg.Connection) -> None:
    """A lock holds a row, not a table."""
    await run_branch(shop, uuid4(), "UPDATE item SET n = 5 WHERE id = 1")
    for number, isolation in enumerate(ISOLATIONS):
        await _plain(shop, isolation, f"UPDATE item SET n = {number} WHERE id = 3")
        await _plain(shop, isolation, f"INSERT INTO item VALUES (7{number}, 'q{number}', 1)")
    assert await undo_rows(shop) == 1


async def test_a_plain_writer_that_waited_for_a_branch_is_refused(
    shop: asyncpg.Connection, second: asyncpg.Connection
) -> None:
    """The writer waits for the branch's row lock, and then meets its global lock."""
    xid = uuid4()
    async with branch(shop, xid):
        await shop.execute("UPDATE item SET n = 5 WHERE id = 1")
        writer = asyncio.create_task(second.execute("UPDATE item SET n = 6 WHERE id = 1"))
        await until_blocked(shop, [second.get_server_pid()])
    assert (await _conflict(writer)).holder == xid


async def test_branches_of_two_transactions_exclude_each_other(shop: asyncpg.Connection) -> None:
    """The second gets AT001 with the holder, and may go on once that one is settled."""
    holder, blocked = uuid4(), uuid4()
    await run_branch(shop, holder, "UPDATE item SET n = 5 WHERE id = 1")
    error = await _conflict(run_branch(shop, blocked, "UPDATE item SET n = 6 WHERE id = 1"))
    assert error.holder == holder
    assert await states(shop, blocked) == {}
    await forget(shop, [holder])
    await run_branch(shop, blocked, "UPDATE item SET n = 6 WHERE id = 1")


async def test_branches_of_one_transaction_share_its_locks(shop: asyncpg.Connection) -> None:
    """A second branch writes on, and undo goes back to before the first."""
    xid = uuid4()
    await run_branch(shop, xid, "UPDATE item SET n = 5 WHERE id = 1")
    await run_branch(shop, xid, "DELETE FROM item WHERE id = 1 AND false", "UPDATE item SET n = 6 WHERE id = 1")
    await undo(shop, xid)
    assert (await rows_of(shop, "item"))[0] == "(1,a,1)"


async def test_values_freed_on_a_unique_index_are_guarded(shop: asyncpg.Connection) -> None:
    """Neither a plain writer nor another transaction may take a value that undo needs back."""
    xid = uuid4()
    await run_branch(shop, xid, "DELETE FROM item WHERE id = 2", "UPDATE item SET code = 'x' WHERE id = 1")
    for statement in ("INSERT INTO item VALUES (9, 'b', 0)", "UPDATE item SET code = 'a' WHERE id = 3"):
        assert (await _conflict(shop.execute(statement))).holder == xid
        assert (await _conflict(run_branch(shop, uuid4(), statement))).holder == xid
        await run_branch(shop, xid, statement)
    assert (await undo(shop, xid)).state is BranchState.UNDONE


async def test_values_freed_on_an_expression_index_are_guarded(shop: asyncpg.Connection) -> None:
    """Partial indexes and indexes on expressions count too."""
    xid = uuid4()
    await shop.execute("INSERT INTO item VALUES (11, 'k', 0); INSERT INTO line VALUES (101, 11)")
    await run_branch(shop, xid, "DELETE FROM line WHERE id = 101")
    assert (await _conflict(shop.execute("INSERT INTO line VALUES (102, 1)"))).holder == xid
    await shop.execute("INSERT INTO line VALUES (50, 1)")


async def test_values_freed_on_a_partitions_own_index_are_guarded(connection: asyncpg.Connection) -> None:
    """An index that only a partition has counts as well, whatever its columns' numbers, and where values swap."""
    await connection.execute(
        """
        CREATE TABLE month (id int, m int, code text, PRIMARY KEY (id, m)) PARTITION BY LIST (m);
        CREATE TABLE month_1 (code text, m int NOT NULL, id int NOT NULL);
        ALTER TABLE month ATTACH PARTITION month_1 FOR VALUES IN (1);
        INSERT INTO month VALUES (1, 1, 'a'), (2, 1, 'b');
        """
    )
    await install(connection, managed=["month"])
    await connection.execute("CREATE UNIQUE INDEX ON month_1 (code); CREATE UNIQUE INDEX ON month_1 (lower(code), m)")
    xid = uuid4()
    await run_branch(connection, xid, "UPDATE month SET code = 'c' WHERE id = 1")
    assert (await _conflict(connection.execute("INSERT INTO month VALUES (3, 1, 'a')"))).holder == xid
    await run_branch(
        connection, xid, "UPDATE month_1 SET code = 'a' WHERE id = 2", "UPDATE month SET code = 'b' WHERE id = 1"
    )
    assert (await undo(connection, xid)).state is BranchState.UNDONE
    assert await rows_of(connection, "month") == ["(1,1,a)", "(2,1,b)"]


async def test_generated_values_are_guarded_too(connection: asyncpg.Connection) -> None:
    """In unique indexes and on either side of a foreign key: the undo that needs them succeeds."""
    await connection.execute(
        """
        CREATE TABLE mail (
            id int PRIMARY KEY, address text, low text GENERATED ALWAYS AS (lower(address)) STORED UNIQUE);
        INSERT INTO mail VALUES (1, 'Ada', DEFAULT), (2, 'Bob', DEFAULT);
        CREATE TABLE letter (
            id int PRIMARY KEY, sender text, low text GENERATED ALWAYS AS (lower(sender)) STORED REFERENCES mail (low));
        INSERT INTO letter VALUES (1, 'BOB', DEFAULT);
        """
    )
    await install(connection, managed=["mail", "letter"])
    xid = uuid4()
    await run_branch(
        connection,
        xid,
        "UPDATE mail SET address = 'Cyd' WHERE id = 1",
        "INSERT INTO mail VALUES (3, 'Dan', DEFAULT)",
        "DELETE FROM letter WHERE id = 1",
    )
    for statement in (
        "INSERT INTO mail VALUES (4, 'ADA', DEFAULT)",
        "INSERT INTO letter VALUES (2, 'dan', DEFAULT)",
        "DELETE FROM mail WHERE id = 2",
    ):
        assert (await _conflict(connection.execute(statement))).holder == xid
    assert (await undo(connection, xid)).state is BranchState.UNDONE
    await connection.execute("INSERT INTO letter VALUES (2, 'ada', DEFAULT)")


async def test_a_row_that_an_undo_would_remove_cannot_be_referenced(shop: asyncpg.Connection) -> None:
    """A foreign key to an undecided row is refused to everybody else."""
    xid = uuid4()
    await run_branch(shop, xid, "INSERT INTO item VALUES (9, 'n', 0)")
    assert (await _conflict(shop.execute("INSERT INTO line VALUES (9, 9)"))).holder == xid
    await run_branch(shop, xid, "INSERT INTO line VALUES (9, 9)")
    assert (await undo(shop, xid)).state is BranchState.UNDONE


async def test_a_row_that_an_undo_will_reference_cannot_be_removed(shop: asyncpg.Connection) -> None:
    """The undo of a deleted line needs its item."""
    xid = uuid4()
    await run_branch(shop, xid, "DELETE FROM line WHERE id = 1")
    assert (await _conflict(shop.execute("DELETE FROM item WHERE id = 4"))).holder == xid
    assert (await _conflict(shop.execute("UPDATE item SET id = 99 WHERE id = 4"))).holder == xid
    await shop.execute("UPDATE item SET n = 99 WHERE id = 4")


async def test_truncate_meets_the_locks(shop: asyncpg.Connection) -> None:
    """A table with undo rows cannot be emptied."""
    xid = uuid4()
    await run_branch(shop, xid, "INSERT INTO month VALUES (2, 1)")
    assert (await _conflict(shop.execute("TRUNCATE month"))).holder == xid
    assert (await _conflict(shop.execute("TRUNCATE month_1"))).holder == xid


async def test_statements_on_a_partition_are_captured_and_refused(shop: asyncpg.Connection) -> None:
    """It makes no difference whether a statement names the table or the partition."""
    xid = uuid4()
    await run_branch(shop, xid, "DELETE FROM month_1", "INSERT INTO month_1 VALUES (5, 1)")
    assert (await _conflict(shop.execute("INSERT INTO month_1 VALUES (1, 1)"))).holder == xid
    assert (await _conflict(shop.execute("DELETE FROM month_1 WHERE id = 5"))).holder == xid
    await undo(shop, xid)
    assert await rows_of(shop, "month") == ["(1,1)"]


async def test_undo_waits_for_a_running_phase_one(shop: asyncpg.Connection, second: asyncpg.Connection) -> None:
    """What the running branch commits in the meantime is undone too."""
    xid = uuid4()
    async with branch(shop, xid):
        await shop.execute("UPDATE item SET n = 5 WHERE id = 1")
        undoing = asyncio.create_task(undo(second, xid))
        await until_blocked(shop, [second.get_server_pid()])
    result = await undoing
    assert (result.state, result.rows) == (BranchState.UNDONE, 1)
    assert (await rows_of(shop, "item"))[0] == "(1,a,1)"


async def test_a_phase_one_that_waits_for_an_undo_meets_the_tombstone(
    shop: asyncpg.Connection, second: asyncpg.Connection
) -> None:
    """There is no moment between the two in which a branch slips through."""
    xid = uuid4()
    async with shop.transaction():
        await undo(shop, xid)
        entering = asyncio.create_task(run_branch(second, xid, "UPDATE item SET n = 5"))
        await until_blocked(shop, [second.get_server_pid()])
    with pytest.raises(asyncpg.PostgresError) as caught:
        await entering
    assert caught.value.sqlstate == "AT004"


async def test_two_undos_at_once_do_it_once(shop: asyncpg.Connection, second: asyncpg.Connection) -> None:
    """The second waits for the first and finds nothing left."""
    xid = uuid4()
    await run_branch(shop, xid, "UPDATE item SET n = n + 1")
    async with shop.transaction():
        first = await undo(shop, xid)
        other = asyncio.create_task(undo(second, xid))
        await until_blocked(shop, [second.get_server_pid()])
    answer = await other
    assert (first.rows, answer.rows, answer.state) == (4, 0, BranchState.UNDONE)
    assert await rows_of(shop, "item") == ["(1,a,1)", "(2,b,2)", "(3,c,3)", "(4,d,4)"]


async def test_undo_lets_a_plain_writer_fail_first(shop: asyncpg.Connection, second: asyncpg.Connection) -> None:
    """A plain transaction that wrote other rows before it met the lock ends, and undo succeeds."""
    xid: UUID = uuid4()
    await run_branch(shop, xid, "UPDATE item SET n = 5 WHERE id = 1")
    async with second.transaction():
        await second.execute("SELECT FROM item WHERE id = 1 FOR UPDATE")
        undoing = asyncio.create_task(undo(shop, xid))
        await until_blocked(second, [shop.get_server_pid()])
    assert (await undoing).state is BranchState.UNDONE


@pytest.mark.parametrize(
    "kind",
    [
        "UNIQUE (u)",
        "EXCLUDE (s WITH =)",
        "CHECK (true); CREATE UNIQUE INDEX ON thing (lower(s)) WHERE s <> ''",
        "CHECK (true); ALTER TABLE thing ADD serial int GENERATED ALWAYS AS IDENTITY",
    ],
)
@pytest.mark.parametrize("change", ["n = 50", "n = 50, u = 100, s = 'x'"])
async def test_a_writer_that_waits_for_an_undo_finds_its_row(
    connection: asyncpg.Connection, second: asyncpg.Connection, kind: str, change: str
) -> None:
    """Undo puts a row back in place; deleted and inserted again it would be gone for who waits for it."""
    await connection.execute(
        f"CREATE TABLE thing (id int PRIMARY KEY, n int, s text, u int);"
        f"INSERT INTO thing VALUES (1, 1, 'a', 1), (2, 2, 'b', 2); ALTER TABLE thing ADD {kind}"
    )
    await install(connection, managed=["thing"])
    xid = uuid4()
    statements = [f"UPDATE thing SET {change} WHERE id = 1"]
    if "u" in change:
        statements.append("INSERT INTO thing VALUES (3, 3, 'a', 1)")  # takes the values that the first one left
    await run_branch(connection, xid, *statements)
    async with connection.transaction():
        result = await undo(connection, xid)
        writing = asyncio.create_task(second.execute("UPDATE thing SET n = n + 1 WHERE id = 1"))
        await until_blocked(connection, [second.get_server_pid()])
    assert result.state is BranchState.UNDONE
    assert await writing == "UPDATE 1"
    assert await connection.fetch("SELECT id, n FROM thing ORDER BY id") == [(1, 2), (2, 2)]


async def test_undo_works_where_the_default_isolation_is_another(connection: asyncpg.Connection, database: str) -> None:
    """A database of careful people must not keep its locks for ever."""
    await connection.execute("CREATE TABLE thing (id int PRIMARY KEY, n int); INSERT INTO thing VALUES (1, 1)")
    await install(connection, managed=["thing"])
    name = database.rsplit("/", 1)[1]
    await connection.execute(f"ALTER DATABASE \"{name}\" SET default_transaction_isolation = 'serializable'")
    careful = await asyncpg.connect(database)
    try:
        xid = uuid4()
        await run_branch(careful, xid, "UPDATE thing SET n = 2")
        assert (await undo(careful, xid)).state is BranchState.UNDONE
        assert await rows_of(careful, "thing") == ["(1,1)"]
    finally:
        await careful.close()


async def test_undo_above_read_committed_is_refused(shop: asyncpg.Connection) -> None:
    """With an old snapshot undo would not see what it waited for."""
    with pytest.raises(asyncpg.ActiveSQLTransactionError, match="READ COMMITTED"):
        async with shop.transaction(isolation="repeatable_read"):
            await undo(shop, uuid4())
