"""The locking read and the committed read, as SQL."""

from __future__ import annotations

import asyncio
from itertools import product
from uuid import UUID, uuid4

import asyncpg
import pytest

from coordinator.protocol.errors import LockConflict, UnmanagedTable
from coordinator.protocol.statuses import BranchState
from coordinator.resource import forget, install, translate, undo, unmanage
from tests.integration.coordinator.resource.branches import branch, rows_of, run_branch, undo_rows, until_blocked

ISOLATIONS = ("read_committed", "repeatable_read", "serializable")

SCHEMA = """
CREATE TABLE account (id int PRIMARY KEY, balance bigint, code text UNIQUE);
INSERT INTO account SELECT i, 100, 'c' || i FROM generate_series(1, 5) AS i;
CREATE TABLE entry (account int REFERENCES account, amount bigint, id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY);
CREATE SCHEMA "Odd one";
CREATE TABLE "Odd one"."Te st" (
    xid int, "k""2" numeric, gone text, before text, ordinality int,
    twice int GENERATED ALWAYS AS (ordinality * 2) STORED, PRIMARY KEY (xid, "k""2"));
ALTER TABLE "Odd one"."Te st" DROP COLUMN gone;
INSERT INTO "Odd one"."Te st" VALUES (1, 1.50, 'b', 7), (2, 2, NULL, NULL);
CREATE TABLE month (id int, m int, n int, PRIMARY KEY (id, m)) PARTITION BY LIST (m);
CREATE TABLE month_1 PARTITION OF month FOR VALUES IN (1);
CREATE TABLE month_2 PARTITION OF month FOR VALUES IN (2);
INSERT INTO month VALUES (1, 1, 1), (1, 2, 2), (2, 2, 3);
CREATE TABLE loose (id int PRIMARY KEY);
"""
MANAGED = ("account", "entry", '"Odd one"."Te st"', "month")

WRITES = (
    "UPDATE account SET balance = 0 WHERE id = 1",
    "DELETE FROM account WHERE id = 1",
    "UPDATE account SET id = 9 WHERE id = 1",
)
LOCK_ONE = "SELECT * FROM at.lock(ARRAY(SELECT a FROM account a WHERE id = 1 FOR NO KEY UPDATE))"
SUM = "SELECT sum(balance)::int FROM at.committed(NULL::account)"


@pytest.fixture
async def bank(connection: asyncpg.Connection) -> asyncpg.Connection:
    """A database with every kind of table that can be read."""
    await connection.execute(SCHEMA)
    await install(connection, managed=MANAGED)
    return connection


async def lock_one(connection: asyncpg.Connection, xid: UUID) -> UUID:
    return await run_branch(connection, xid, LOCK_ONE)


async def refusal(connection: asyncpg.Connection, statement: str, isolation: str = "read_committed") -> object:
    """What a plain writer is told, or None when it gets through (and is rolled back)."""
    transaction = connection.transaction(isolation=isolation)
    await transaction.start()
    try:
        await connection.execute(statement)
    except asyncpg.PostgresError as error:
        return translate(error) or error
    finally:
        await transaction.rollback()
    return None


async def test_a_row_that_was_only_read_is_held_against_plain_writers(
    bank: asyncpg.Connection, second: asyncpg.Connection
) -> None:
    """Those that come later, and those whose snapshot is older than the lock: the row itself has not changed."""
    for isolation, statement in product(ISOLATIONS, WRITES):
        xid = uuid4()
        old = second.transaction(isolation=isolation)
        await old.start()
        await second.fetch("SELECT * FROM account")
        await lock_one(bank, xid)
        with pytest.raises(asyncpg.SerializationError):
            await second.execute(statement)
        await old.rollback()
        found = await refusal(second, statement, isolation)
        assert isinstance(found, LockConflict)
        assert found.holder == xid
        assert await refusal(second, "UPDATE account SET balance = 0 WHERE id = 2", isolation) is None
        await forget(bank, [xid])
        assert await refusal(second, statement, isolation) is None


async def test_another_transaction_can_neither_write_nor_lock_what_is_locked(bank: asyncpg.Connection) -> None:
    """Both are conflicts with the holder, as with a write; and a locking read conflicts with a write."""
    reader, writer = uuid4(), uuid4()
    await lock_one(bank, reader)
    await run_branch(bank, writer, "UPDATE account SET balance = 1 WHERE id = 2")
    for holder, statement in (
        (reader, LOCK_ONE),
        (reader, "UPDATE account SET balance = 0 WHERE id = 1"),
        (writer, "SELECT at.lock(ARRAY(SELECT a FROM account a))"),
    ):
        with pytest.raises(asyncpg.PostgresError) as refused:
            await run_branch(bank, uuid4(), statement)
        conflict = translate(refused.value)
        assert isinstance(conflict, LockConflict)
        assert conflict.holder in ({holder} if holder == reader else {reader, writer})


async def test_the_rows_come_as_they_are_and_in_the_order_that_was_asked_for(bank: asyncpg.Connection) -> None:
    """Also where somebody changed one between the search and the lock; a row that went is left out."""
    async with branch(bank, uuid4()):
        rows = await bank.fetch(
            "SELECT * FROM at.lock(ARRAY[(3, 7, 'old'), NULL, (99, 0, ''), (1, 7, 'old')]::account[])"
        )
        assert [tuple(row) for row in rows] == [(3, 100, "c3"), (1, 100, "c1")]


async def test_a_lock_is_taken_once_and_merged_with_writes_before_and_after(bank: asyncpg.Connection) -> None:
    """Lock then write, write then lock, lock twice: one undo row a key, and undo restores the first image."""
    xid = uuid4()
    await run_branch(
        bank,
        xid,
        LOCK_ONE,
        "UPDATE account SET balance = balance WHERE id = 1",
        "UPDATE account SET balance = 5 WHERE id = 1",
        LOCK_ONE,
        "UPDATE account SET balance = 6, code = 'x' WHERE id = 1",
        "UPDATE account SET balance = 7 WHERE id = 2",
        "DELETE FROM account WHERE id = 3",
        "INSERT INTO account VALUES (6, 1, 'c6')",
        "SELECT at.lock(ARRAY(SELECT a FROM account a))",
    )
    await run_branch(bank, xid, LOCK_ONE, "SELECT at.lock(ARRAY(SELECT a FROM account a WHERE id = 5))")
    assert await undo_rows(bank) == 6
    assert (await undo(bank, xid)).state is BranchState.UNDONE
    assert await rows_of(bank, "account") == [f"({i},100,c{i})" for i in range(1, 6)]
    assert await undo_rows(bank) == 0


async def test_forgetting_and_undoing_a_lock_leaves_the_row_alone(bank: asyncpg.Connection) -> None:
    """Not even a new version of it is written."""
    before = await bank.fetchval("SELECT (ctid, xmin)::text FROM account WHERE id = 1")
    for settle in (lambda xid: forget(bank, [xid]), lambda xid: undo(bank, xid)):
        xid = uuid4()
        await lock_one(bank, xid)
        await settle(xid)
        assert await undo_rows(bank) == 0
    assert await bank.fetchval("SELECT (ctid, xmin)::text FROM account WHERE id = 1") == before


async def test_a_locked_row_that_was_changed_behind_the_triggers_is_quarantined(bank: asyncpg.Connection) -> None:
    """The promise of the lock was broken: a person is told, and nothing is overwritten."""
    xid = uuid4()
    await lock_one(bank, xid)
    await bank.execute("SET session_replication_role = replica; UPDATE account SET balance = 3 WHERE id = 1")
    await bank.execute("SET session_replication_role = origin")
    result = await undo(bank, xid)
    assert result.state is BranchState.QUARANTINED
    assert result.problems[0].found["balance"] == 3


async def test_a_lock_that_meets_a_holder_on_its_way_out_is_not_lost(
    bank: asyncpg.Connection, second: asyncpg.Connection
) -> None:
    """The holder's undo row is being forgotten in the very moment: the lock waits for that, and is taken after all."""
    holder, waiter = uuid4(), uuid4()
    await run_branch(bank, holder, "UPDATE account SET balance = 5 WHERE id = 1")
    async with branch(second, waiter):
        forgetting = bank.transaction()
        await forgetting.start()
        await forget(bank, [holder])
        locking = asyncio.create_task(second.fetch(LOCK_ONE))
        await until_blocked(bank, [second.get_server_pid()])
        await forgetting.commit()
        assert [tuple(row) for row in await locking] == [(1, 5, "c1")]
    assert isinstance(await refusal(bank, "UPDATE account SET balance = 0 WHERE id = 1"), LockConflict)


async def test_a_lock_lets_others_point_at_the_row(bank: asyncpg.Connection, second: asyncpg.Connection) -> None:
    """Its key stays, so foreign keys may refer to it: while the branch runs, and until the decision."""
    async with branch(bank, uuid4()):
        await bank.execute(LOCK_ONE)
        await second.execute("INSERT INTO entry (account, amount) VALUES (1, 1)")
    await second.execute("INSERT INTO entry (account, amount) VALUES (1, 1)")


async def test_what_is_not_managed_cannot_be_locked_or_read(bank: asyncpg.Connection) -> None:
    """The error names the table and the way out."""
    for statement, message, hint in (
        ("SELECT at.lock(ARRAY(SELECT l FROM loose l))", "table public.loose", "Manage it"),
        ("SELECT at.lock(ARRAY(SELECT p FROM month_1 p))", "table public.month_1", "partitioned table public.month"),
        ("SELECT at.committed(NULL::loose)", "table public.loose", "Manage it"),
    ):
        with pytest.raises(asyncpg.PostgresError, match=message) as refused:
            await run_branch(bank, uuid4(), statement)
        found = translate(refused.value)
        assert isinstance(found, UnmanagedTable)
        assert hint in str(found)
    with pytest.raises(asyncpg.AmbiguousFunctionError):  # a partition's rows are rows of the table, too
        await bank.execute("SELECT at.committed(NULL::month_1)")


async def test_what_has_no_rows_of_a_table_cannot_be_locked(bank: asyncpg.Connection) -> None:
    """Numbers, and any lock outside a branch."""
    with pytest.raises(asyncpg.DatatypeMismatchError, match="rows of a managed table"):
        await run_branch(bank, uuid4(), "SELECT at.lock(ARRAY[1, 2])")
    with pytest.raises(asyncpg.ActiveSQLTransactionError, match="outside a branch"):
        await bank.execute(LOCK_ONE)


async def test_a_committed_read_shows_every_row_as_before_the_undecided(bank: asyncpg.Connection) -> None:
    """Changed, deleted, inserted, moved and merely locked rows; after the decision as it was decided."""
    untouched = await rows_of(bank, "account")
    xid = uuid4()
    await run_branch(
        bank,
        xid,
        "UPDATE account SET balance = 1 WHERE id = 1",
        "DELETE FROM account WHERE id = 2",
        "INSERT INTO account VALUES (7, 1, 'c7')",
        "UPDATE account SET id = 8 WHERE id = 3",
        "SELECT at.lock(ARRAY(SELECT a FROM account a WHERE id = 4))",
        "INSERT INTO account VALUES (9, 0, 'c9')",
        "DELETE FROM account WHERE id = 9",
    )
    assert await rows_of(bank, "at.committed(NULL::account)") == untouched
    await forget(bank, [xid])
    assert await rows_of(bank, "at.committed(NULL::account)") == await rows_of(bank, "account") != untouched


async def test_a_committed_read_knows_every_shape_of_table(bank: asyncpg.Connection) -> None:
    """Composite keys, odd names, a dropped column, generated columns, partitions."""
    shapes = ('"Odd one"."Te st"', "month")
    untouched = [await rows_of(bank, table) for table in shapes]
    await run_branch(
        bank,
        uuid4(),
        """UPDATE "Odd one"."Te st" SET ordinality = 8 WHERE xid = 1""",
        """DELETE FROM "Odd one"."Te st" WHERE xid = 2""",
        "UPDATE month SET m = 1 WHERE id = 2",
        "DELETE FROM month_1 WHERE id = 1",
    )
    assert [await rows_of(bank, f"at.committed(NULL::{table})") for table in shapes] == untouched
    async with branch(bank, uuid4()):
        locked = await bank.fetch("SELECT * FROM at.lock(ARRAY(SELECT p FROM month p WHERE id = 1 AND m = 2))")
        assert [tuple(row) for row in locked] == [(1, 2, 2)]


async def test_in_a_branch_a_committed_read_shows_its_own_rows_where_asked(bank: asyncpg.Connection) -> None:
    """Those of its transaction only, of earlier branches too; without asking it shows them as before."""
    xid = uuid4()
    await run_branch(bank, uuid4(), "UPDATE account SET balance = 0 WHERE id = 3")
    await run_branch(bank, xid, "UPDATE account SET balance = 1 WHERE id = 1")
    async with branch(bank, xid):
        await bank.execute("DELETE FROM account WHERE id = 2")
        assert await bank.fetchval(SUM) == 500
        assert await bank.fetchval("SELECT sum(balance)::int FROM at.committed(NULL::account, true)") == 301
    assert await bank.fetchval("SELECT sum(balance)::int FROM at.committed(NULL::account, true)") == 500


async def test_a_committed_read_waits_for_nobody(bank: asyncpg.Connection, second: asyncpg.Connection) -> None:
    """Neither for a branch that runs, nor for its undo."""
    xid = uuid4()
    async with branch(bank, xid):
        await bank.execute("UPDATE account SET balance = 1")
        await second.execute("SET lock_timeout = '1ms'")
        assert await second.fetchval(SUM) == 500
    undoing = bank.transaction()
    await undoing.start()
    await undo(bank, xid)
    assert await second.fetchval(SUM) == 500
    await undoing.commit()


async def test_the_sum_is_right_at_every_instant_of_a_committed_read(
    bank: asyncpg.Connection, second: asyncpg.Connection
) -> None:
    """While transfers of several branches run, are forgotten and undone; a plain read sees sums that never were."""
    running = True
    seen: set[int] = set()
    plain: set[int] = set()

    async def watch() -> None:
        while running:
            seen.add(await second.fetchval(SUM))
            plain.add(await second.fetchval("SELECT sum(balance)::int FROM account"))

    watching = asyncio.create_task(watch())
    for number in range(40):
        xid = uuid4()
        await run_branch(bank, xid, f"UPDATE account SET balance = balance - 10 WHERE id = {number % 5 + 1}")
        await asyncio.sleep(0)
        await run_branch(bank, xid, f"UPDATE account SET balance = balance + 10 WHERE id = {(number + 1) % 5 + 1}")
        await (undo(bank, xid) if number % 3 == 0 else forget(bank, [xid]))
    running = False
    await watching
    assert seen == {500}
    assert plain > {500}


PLANS = (
    "SELECT * FROM at.committed(NULL::big) WHERE id = 7",
    "SELECT * FROM at.committed(NULL::big) WHERE code = 'c7'",
    """SELECT * FROM account a, LATERAL (SELECT * FROM at.committed(NULL::big) b WHERE b.id = a.id OFFSET 0) b
       WHERE a.id = 1""",
)


async def test_a_committed_read_uses_the_tables_indexes(bank: asyncpg.Connection) -> None:
    """The planner takes the function apart: nothing reads the whole table, and by the key no whole undo table."""
    await bank.execute(
        """
        CREATE TABLE big (id int PRIMARY KEY, code text UNIQUE);
        INSERT INTO big SELECT i, 'c' || i FROM generate_series(1, 20000) AS i;
        """
    )
    await install(bank, managed=["big"])
    await run_branch(bank, uuid4(), "UPDATE big SET code = 'd' || id WHERE id > 10000")
    await bank.execute('ANALYZE big; ANALYZE at."public.big"')
    for query in PLANS:
        plan = "\n".join(row[0] for row in await bank.fetch(f"EXPLAIN {query}"))
        assert "Seq Scan on big" not in plan, plan
        if "code" not in query:
            assert 'Seq Scan on "public.big"' not in plan, plan


async def test_a_role_reads_with_its_own_rights(bank: asyncpg.Connection, database: str) -> None:
    """Who takes part may lock what it may update, and read what it may read."""
    suffix = uuid4().hex[:8]
    clerk, guest = f"clerk_{suffix}", f"guest_{suffix}"
    await bank.execute(f"CREATE ROLE {clerk} LOGIN; CREATE ROLE {guest} LOGIN")
    await bank.execute(f"GRANT SELECT, UPDATE ON account TO {clerk}; GRANT SELECT ON account TO {guest}")
    try:
        await install(bank, managed=MANAGED, roles=[clerk, guest])
        await run_branch(bank, uuid4(), "UPDATE account SET balance = 0 WHERE id = 2")
        for role, may_lock in ((clerk, True), (guest, False)):
            theirs = await asyncpg.connect(database, user=role)
            assert await theirs.fetchval(SUM) == 500
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await theirs.fetchval("SELECT count(*) FROM at.committed(NULL::month)")
            rows = "SELECT * FROM at.lock(ARRAY[(1, 0, '')]::account[])"
            async with branch(theirs, uuid4()):
                if may_lock:
                    assert len(await theirs.fetch(rows)) == 1
                else:
                    with pytest.raises(asyncpg.InsufficientPrivilegeError):
                        async with theirs.transaction():
                            await theirs.fetch(rows)
            await theirs.close()
    finally:
        await bank.execute(f"DROP OWNED BY {clerk}, {guest}; DROP ROLE {clerk}, {guest}")


async def test_the_read_functions_follow_the_table(bank: asyncpg.Connection) -> None:
    """A new column, a new name, and the end of its management."""
    await bank.execute("ALTER TABLE account ADD COLUMN note text")
    await bank.execute("ALTER TABLE account RENAME TO konto")
    await run_branch(bank, uuid4(), "UPDATE konto SET note = 'n', balance = 0 WHERE id = 1")
    assert (await rows_of(bank, "at.committed(NULL::konto)"))[0] == "(1,100,c1,)"
    async with branch(bank, uuid4()):
        locked = await bank.fetch("SELECT * FROM at.lock(ARRAY(SELECT k FROM konto k WHERE id = 2))")
        assert tuple(locked[0]) == (2, 100, "c2", None)
    await unmanage(bank, ["month"])
    with pytest.raises(asyncpg.PostgresError, match=r"table public\.month"):
        await bank.execute("SELECT at.committed(NULL::month)")
    assert await bank.fetchval("SELECT count(*) FROM pg_proc WHERE proargtypes[0] = 'month'::regtype") == 0
