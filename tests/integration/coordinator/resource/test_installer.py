"""Installing, upgrading, refusing and removing."""

from __future__ import annotations

from uuid import uuid4

import asyncpg
import pytest

from coordinator.protocol.errors import LockConflict, UnmanagedTable
from coordinator.protocol.statuses import BranchState
from coordinator.resource import InstallationError, forget, install, locks, translate, undo, uninstall, unmanage
from tests.integration.coordinator.resource.branches import branch, rows_of, run_branch
from tests.support.servers import TestPostgres


async def _raises(connection: asyncpg.Connection, statement: str) -> BaseException | None:
    with pytest.raises(asyncpg.PostgresError) as caught:
        await run_branch(connection, uuid4(), statement)
    return translate(caught.value)


async def test_installing_twice_changes_nothing(connection: asyncpg.Connection) -> None:
    """The second time reports the same and locks no table: a writer may be at work."""
    await connection.execute(
        "CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY); CREATE TABLE c (id int)"
    )
    first = await install(connection, managed=["a"], exempt=["public.b"])
    assert (first.upgraded, first.managed, first.exempt, first.guarded) == (True, ("public.a",), ("public.b",), 1)
    marks = await connection.fetch(
        "SELECT oid, xmin FROM pg_trigger UNION ALL SELECT oid, xmin FROM pg_proc ORDER BY 1"
    )
    second = await install(connection, managed=["a"], exempt=["b"])
    assert not second.upgraded
    assert (second.managed, second.exempt, second.guarded) == (first.managed, first.exempt, first.guarded)
    assert marks == await connection.fetch(
        "SELECT oid, xmin FROM pg_trigger UNION ALL SELECT oid, xmin FROM pg_proc ORDER BY 1"
    )


async def test_an_upgrade_keeps_what_is_locked(connection: asyncpg.Connection) -> None:
    """Undo rows of before an upgrade are undone after it."""
    await connection.execute("CREATE TABLE a (id int PRIMARY KEY, v int); INSERT INTO a VALUES (1, 1)")
    await install(connection, managed=["a"])
    xid = uuid4()
    await run_branch(connection, xid, "UPDATE a SET v = 2")
    await connection.execute("UPDATE at.installed SET fingerprint = 'older'")
    assert (await install(connection, managed=["a"])).upgraded
    assert (await undo(connection, xid)).state is BranchState.UNDONE
    assert await rows_of(connection, "a") == ["(1,1)"]


UNMANAGEABLE = (
    ("CREATE TABLE t (id int)", "no primary key"),
    ("CREATE UNLOGGED TABLE t (id int PRIMARY KEY)", "unlogged"),
    ("CREATE TEMP TABLE t (id int PRIMARY KEY)", "temporary"),
    ("CREATE VIEW t AS SELECT 1 AS id", "view"),
    ("CREATE TABLE p (id int PRIMARY KEY); CREATE TABLE t (PRIMARY KEY (id)) INHERITS (p)", "inheritance"),
    ("CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE c () INHERITS (t)", "inheritance"),
    ("CREATE TABLE t (id int PRIMARY KEY DEFERRABLE)", "deferrable"),
    (
        "CREATE TABLE p (id int PRIMARY KEY) PARTITION BY LIST (id); CREATE TABLE t PARTITION OF p DEFAULT",
        "partition",
    ),
    ("CREATE TABLE t (id int PRIMARY KEY, at__x int)", "reserved"),
    (
        "CREATE EXTENSION postgres_fdw; CREATE SERVER s FOREIGN DATA WRAPPER postgres_fdw;"
        "CREATE FOREIGN TABLE t (id int) SERVER s",
        "foreign",
    ),
    ("SELECT 1", "does not exist"),
)


async def test_what_cannot_be_managed_is_refused_with_its_reason(connection: asyncpg.Connection) -> None:
    """Nothing is installed then."""
    for ddl, reason in UNMANAGEABLE:
        attempt = connection.transaction()
        await attempt.start()
        await connection.execute(ddl)
        with pytest.raises(InstallationError, match=reason):
            await install(connection, managed=["t"])
        assert await connection.fetchval("SELECT to_regnamespace('at')") is None, ddl
        await attempt.rollback()


async def test_a_table_made_later_is_guarded_at_once(connection: asyncpg.Connection) -> None:
    """By the event trigger, or by the next install where there is none."""
    await install(connection, managed=[])
    await connection.execute("CREATE TABLE later (id int PRIMARY KEY); CREATE TABLE copied AS SELECT 1 AS id")
    for table in ("later", "copied"):
        assert isinstance(await _raises(connection, f"INSERT INTO {table} VALUES (5)"), UnmanagedTable)
    await connection.execute("ALTER EVENT TRIGGER at_on_ddl DISABLE; CREATE TABLE unseen (id int)")
    await install(connection, managed=["later"])
    assert isinstance(await _raises(connection, "INSERT INTO unseen VALUES (5)"), UnmanagedTable)
    await run_branch(connection, uuid4(), "INSERT INTO later VALUES (5)")


@pytest.mark.parametrize("followed", [True, False])
async def test_a_new_partition_is_covered(connection: asyncpg.Connection, followed: bool) -> None:
    """Made, attached, or detached: a partition of a managed table has its triggers, any other table a guard."""
    await connection.execute("CREATE TABLE p (id int PRIMARY KEY, v int) PARTITION BY LIST (id)")
    await install(connection, managed=["p"])
    if not followed:
        await connection.execute("ALTER EVENT TRIGGER at_on_ddl DISABLE")
    await connection.execute(
        "CREATE TABLE p1 PARTITION OF p FOR VALUES IN (1); CREATE TABLE p2 (v int, id int PRIMARY KEY);"
        "ALTER TABLE p ATTACH PARTITION p2 FOR VALUES IN (2)"
    )
    if not followed:
        assert await connection.fetchval("SELECT at.cover_partitions('p')") == 3
    xid = uuid4()
    await run_branch(connection, xid, "INSERT INTO p1 VALUES (1, 10)", "INSERT INTO p2 VALUES (20, 2)")
    assert {(lock.key["id"], lock.after["v"]) for lock in await locks(connection) if lock.after} == {(1, 10), (2, 20)}
    await undo(connection, xid)
    await connection.execute("ALTER TABLE p DETACH PARTITION p2")
    if not followed:
        await install(connection, managed=["p"])
    assert isinstance(await _raises(connection, "INSERT INTO p2 VALUES (20, 2)"), UnmanagedTable)


async def test_merge_on_a_partitioned_table_is_captured_whole(connection: asyncpg.Connection) -> None:
    """PostgreSQL 18.6 reports an inserted row in place of an updated one here; the undo is exact all the same."""
    await connection.execute(
        "CREATE TABLE p (id int PRIMARY KEY, v int) PARTITION BY RANGE (id); CREATE TABLE p1 PARTITION OF p DEFAULT;"
        "INSERT INTO p VALUES (2, 1), (4, 1)"
    )
    await install(connection, managed=["p"])
    xid = uuid4()
    await run_branch(
        connection,
        xid,
        "MERGE INTO p USING generate_series(1, 4) s (id) ON p.id = s.id WHEN MATCHED THEN UPDATE SET v = 9"
        " WHEN NOT MATCHED THEN INSERT VALUES (s.id, 5)",
    )
    assert (await undo(connection, xid)).state is BranchState.UNDONE
    assert await rows_of(connection, "p") == ["(2,1)", "(4,1)"]


async def test_a_renamed_table_takes_its_undo_table_along(connection: asyncpg.Connection) -> None:
    """And its locks with it."""
    await connection.execute("CREATE TABLE a (id int PRIMARY KEY, u int UNIQUE); INSERT INTO a VALUES (1, 1)")
    await install(connection, managed=["a"])
    xid = uuid4()
    await run_branch(connection, xid, "DELETE FROM a")
    await connection.execute("CREATE SCHEMA s; ALTER TABLE a RENAME TO b; ALTER TABLE b SET SCHEMA s")
    assert [lock.table for lock in await locks(connection)] == ["s.b"]
    assert (await undo(connection, xid)).state is BranchState.UNDONE
    assert await rows_of(connection, "s.b") == ["(1,1)"]


async def test_a_dropped_table_leaves_nothing_behind(connection: asyncpg.Connection) -> None:
    """DROP needs CASCADE while the table is managed; then its undo table goes too."""
    await connection.execute("CREATE TABLE a (id int PRIMARY KEY)")
    await install(connection, managed=["a"])
    with pytest.raises(asyncpg.DependentObjectsStillExistError):
        await connection.execute("DROP TABLE a")
    await connection.execute("DROP TABLE a CASCADE")
    assert await connection.fetchval("""SELECT to_regclass('at."public.a"')""") is None
    assert (await install(connection, managed=[])).managed == ()
    assert await forget(connection, [uuid4()]) == 0


async def test_long_and_odd_names_work(connection: asyncpg.Connection) -> None:
    """Names of 63 bytes, quotes and non-ASCII letters are no matter."""
    long_name, odd = "t" * 63, 'Ünï "q" tablé $$'
    await connection.execute(f'CREATE TABLE {long_name} ("xid" int, "before" text, PRIMARY KEY ("before", "xid"))')
    quoted = '"' + odd.replace('"', '""') + '"'
    await connection.execute(f'CREATE TABLE {quoted} ("a b" int PRIMARY KEY, "c\'d" int UNIQUE)')
    await install(connection, managed=[long_name, quoted])
    xid = uuid4()
    await run_branch(connection, xid, f"INSERT INTO {long_name} VALUES (1, 'x')", f"INSERT INTO {quoted} VALUES (1, 2)")
    assert len(await locks(connection, xid)) == 2
    assert (await undo(connection, xid)).state is BranchState.UNDONE


async def test_unmanage_and_uninstall_refuse_while_undo_rows_exist(connection: asyncpg.Connection) -> None:
    """After the settlement they take everything away."""
    await connection.execute("CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY)")
    await install(connection, managed=["a"])
    xid = uuid4()
    await run_branch(connection, xid, "INSERT INTO a VALUES (1)")
    for attempt in (unmanage(connection, ["a"]), uninstall(connection)):
        with pytest.raises(InstallationError, match="unsettled"):
            await attempt
    await undo(connection, xid)
    await unmanage(connection, ["a"])
    assert isinstance(await _raises(connection, "INSERT INTO a VALUES (1)"), UnmanagedTable)
    await uninstall(connection)
    assert await connection.fetchval("SELECT count(*) FROM pg_trigger") == 0
    assert await connection.fetchval("SELECT count(*) FROM pg_event_trigger") == 0


async def test_a_foreign_key_made_later_is_guarded(connection: asyncpg.Connection) -> None:
    """The functions of both tables are written again when a constraint joins them."""
    await connection.execute("CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY, a int)")
    await install(connection, managed=["a", "b"])
    await connection.execute("ALTER TABLE b ADD FOREIGN KEY (a) REFERENCES a")
    xid = uuid4()
    await run_branch(connection, xid, "INSERT INTO a VALUES (1)")
    with pytest.raises(asyncpg.SerializationError) as caught:
        await connection.execute("INSERT INTO b VALUES (1, 1)")
    assert isinstance(translate(caught.value), LockConflict)


async def test_an_application_role_gets_what_it_needs_and_no_more(
    connection: asyncpg.Connection, postgres: TestPostgres, database: str
) -> None:
    """It runs branches, settles them, sees locks and before images; it cannot write there or switch triggers off."""
    name = f"app_{uuid4().hex[:8]}"
    await connection.execute(f"CREATE ROLE {name} LOGIN")
    app = None
    try:
        await connection.execute("CREATE TABLE a (id int PRIMARY KEY, v int); INSERT INTO a VALUES (1, 1)")
        await connection.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON a TO {name}")
        await install(connection, managed=["a"], roles=[name])
        app = await asyncpg.connect(postgres.dsn(database.rsplit("/", 1)[1], name))
        first, second = uuid4(), uuid4()
        async with branch(app, first):
            await app.execute("UPDATE a SET v = 2")
        assert await app.fetchval('SELECT xid FROM at."public.a"') == first
        assert (await undo(app, first)).state is BranchState.UNDONE
        await run_branch(app, second, "UPDATE a SET v = 3")
        await forget(app, [second])
        assert await rows_of(app, "a") == ["(1,3)"]
        for forbidden in (
            "SET session_replication_role = replica",
            'SELECT after FROM at."public.a"',
            "SELECT at.write_reads('a')",
            'DELETE FROM at."public.a"',
            "DELETE FROM at.branch",
            "SELECT at.restore(gen_random_uuid(), NULL, '{}')",
            "SELECT at.forget_rows('{}', '{}')",
            "SELECT at.forget_shared_rows('{}', '{}')",
            "SELECT at.guard('a')",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await app.execute(forbidden)
    finally:
        if app is not None:
            await app.close()
        await connection.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")


async def test_an_upgrade_gives_known_roles_what_is_new(connection: asyncpg.Connection) -> None:
    """Also when the roles are not named again, and although one of them was dropped."""
    names = [f"app_{uuid4().hex[:8]}" for _ in range(2)]
    await connection.execute("CREATE TABLE a (id int PRIMARY KEY)")
    for name in names:
        await connection.execute(f"CREATE ROLE {name}")
    await install(connection, managed=["a"], roles=names)
    await connection.execute(f"DROP OWNED BY {names[1]}; DROP ROLE {names[1]}")
    for function in ("at.steps()", "at.lock(anyarray)", "at.lock(a[])"):
        await connection.execute(f"REVOKE EXECUTE ON FUNCTION {function} FROM {names[0]}")
    await connection.execute("UPDATE at.installed SET fingerprint = 'older'")
    assert (await install(connection, managed=["a"])).upgraded
    for function in ("at.steps()", "at.lock(anyarray)", "at.lock(a[])"):
        assert await connection.fetchval("SELECT has_function_privilege($1, $2, 'EXECUTE')", names[0], function)
    await connection.execute(f"DROP OWNED BY {names[0]}; DROP ROLE {names[0]}")


async def test_an_owner_that_is_no_superuser_can_install(
    connection: asyncpg.Connection, postgres: TestPostgres, database: str
) -> None:
    """With SET on session_replication_role granted; without it the installer says what to grant."""
    name = f"owner_{uuid4().hex[:8]}"
    await connection.execute(
        f"CREATE ROLE {name} LOGIN; GRANT CREATE ON DATABASE {database.rsplit('/', 1)[1]} TO {name}"
    )
    await connection.execute(f"GRANT CREATE ON SCHEMA public TO {name}")
    owner = await asyncpg.connect(postgres.dsn(database.rsplit("/", 1)[1], name))
    try:
        await owner.execute("CREATE TABLE a (id int PRIMARY KEY, v int); INSERT INTO a VALUES (1, 1)")
        with pytest.raises(InstallationError, match="GRANT SET ON PARAMETER"):
            await install(owner, managed=["a"])
        await connection.execute(f"GRANT SET ON PARAMETER session_replication_role TO {name}")
        report = await install(owner, managed=["a"])
        assert not report.event_triggers
        xid = uuid4()
        await run_branch(owner, xid, "UPDATE a SET v = 2")
        assert (await undo(owner, xid)).state is BranchState.UNDONE
        assert await rows_of(owner, "a") == ["(1,1)"]
    finally:
        await owner.close()
        await connection.execute(
            f"DROP OWNED BY {name} CASCADE; REVOKE SET ON PARAMETER session_replication_role FROM {name}"
        )
        await connection.execute(f"DROP ROLE {name}")
