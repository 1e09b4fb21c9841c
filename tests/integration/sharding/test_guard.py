"""The guard in a real shard: stale writers are refused, under every isolation level, by whoever they are."""

from __future__ import annotations

import asyncio
from uuid import UUID

import asyncpg
import pytest
from asyncpg.exceptions import CheckViolationError, PostgresError, QueryCanceledError, SerializationError
from hypothesis import given, settings
from hypothesis import strategies as st

from sharding import (
    Bucket,
    BucketState,
    GuardRefused,
    ShardId,
    bucket_of,
    bucket_states,
    install_guard,
    is_moved,
    set_bucket_states,
)

OWNED = frozenset(Bucket(number) for number in range(512))
SHARD = ShardId("shard-0")
TABLES = """
CREATE TABLE notes (bucket smallint, id int, body text, PRIMARY KEY (bucket, id));
CREATE TABLE logs (bucket smallint, id int, at timestamptz, PRIMARY KEY (bucket, id, at)) PARTITION BY RANGE (at);
CREATE TABLE logs_2026 PARTITION OF logs FOR VALUES FROM ('2026-01-01+00') TO ('2027-01-01+00');
"""


@pytest.fixture
async def shard(database: str):
    """A connection to a shard that owns buckets 0 to 511 and guards two tables."""
    connection = await asyncpg.connect(database)
    await connection.execute(TABLES)
    await install_guard(connection, ["notes", "public.logs"], SHARD, OWNED)
    yield connection
    await connection.close()


async def state_of(connection, statement: str, *values: object) -> str:
    """The SQLSTATE of a statement, 00000 when it went through."""
    try:
        await connection.execute(statement, *values)
    except PostgresError as error:
        return str(error.sqlstate)
    return "00000"


async def test_a_write_to_a_bucket_of_another_shard_is_refused_by_name(shard) -> None:
    """SH001 names the bucket and the shard, for inserts, updates and deletes, on partitions too."""
    await shard.execute("INSERT INTO notes VALUES (3, 1, 'a')")
    with pytest.raises(PostgresError, match="bucket 600 is not on shard shard-0") as caught:
        await shard.execute("INSERT INTO notes VALUES (3, 2, 'b'), (600, 1, 'c')")
    assert (caught.value.sqlstate, is_moved(caught.value)) == ("SH001", True)
    assert await shard.fetchval("SELECT count(*) FROM notes") == 1
    await set_bucket_states(shard, [Bucket(3)], BucketState.MOVED, epoch=2)
    for statement in ("UPDATE notes SET body = 'x'", "DELETE FROM notes", "INSERT INTO notes VALUES (3, 9, '')"):
        assert await state_of(shard, statement) == "SH001"
    assert await state_of(shard, "INSERT INTO logs_2026 VALUES (3, 1, '2026-02-01+00')") == "SH001"
    assert await state_of(shard, "INSERT INTO logs VALUES (4, 1, '2026-02-01+00')") == "00000"


async def test_a_partition_made_later_is_guarded_by_its_parent(shard) -> None:
    """Nobody has to install the guard again for a new month."""
    await shard.execute(
        "CREATE TABLE logs_2027 PARTITION OF logs FOR VALUES FROM ('2027-01-01+00') TO ('2028-01-01+00')"
    )
    assert await state_of(shard, "INSERT INTO logs_2027 VALUES (700, 1, '2027-02-01+00')") == "SH001"


async def test_the_bucket_of_a_row_never_changes(shard) -> None:
    """SH002, even between two buckets that the shard owns."""
    await shard.execute("INSERT INTO notes VALUES (3, 1, 'a')")
    assert await state_of(shard, "UPDATE notes SET bucket = 4") == "SH002"
    assert await state_of(shard, "UPDATE notes SET bucket = bucket, body = 'b'") == "00000"


async def test_a_row_without_a_real_bucket_is_a_fault_and_no_move(shard) -> None:
    """Nobody refreshes a map for a number that no map holds."""
    for bad in ("NULL", "1024", "-1"):
        with pytest.raises(CheckViolationError, match="needs a bucket from 0 to 1023"):
            await shard.execute(f"INSERT INTO notes VALUES ({bad}, 1, '')")


async def test_replication_and_repairs_pass(shard) -> None:
    """With session_replication_role = replica the guard is silent: it fires for origin writers alone."""
    async with shard.transaction():
        await shard.execute("SET LOCAL session_replication_role = replica")
        await shard.execute("INSERT INTO notes VALUES (900, 1, 'copied')")
    assert await shard.fetchval("SELECT body FROM notes WHERE bucket = 900") == "copied"


@pytest.mark.parametrize("isolation", ["read_committed", "repeatable_read", "serializable"])
async def test_a_writer_that_began_before_the_fence_is_refused_after_it(shard, database: str, isolation: str) -> None:
    """Its old snapshot still shows the bucket as owned; nothing of it is written, and it reads as a move."""
    late = await asyncpg.connect(database)
    try:
        writing = late.transaction(isolation=isolation)
        await writing.start()
        assert await late.fetchval("SELECT state FROM sharding.bucket WHERE bucket = 3") == "owned"
        await set_bucket_states(shard, [Bucket(3)], BucketState.MOVED, epoch=2)
        with pytest.raises(PostgresError) as caught:
            await late.execute("INSERT INTO notes VALUES (3, 1, 'late')")
        assert is_moved(caught.value)
        assert await shard.fetchval("SELECT count(*) FROM notes") == 0
    finally:
        await late.close()


async def test_an_ordinary_serialization_failure_is_no_move(shard, database: str) -> None:
    """40001 of two writers of one row says nothing about placements."""
    await shard.execute("INSERT INTO notes VALUES (3, 1, 'a')")
    late = await asyncpg.connect(database)
    try:
        await late.transaction(isolation="repeatable_read").start()
        await late.fetchval("SELECT count(*) FROM notes")
        await shard.execute("UPDATE notes SET body = 'b'")
        with pytest.raises(SerializationError) as caught:
            await late.execute("UPDATE notes SET body = 'c'")
        assert not is_moved(caught.value)
    finally:
        await late.close()


async def test_a_fence_waits_for_running_writers_and_new_writers_wait_for_the_fence(shard, database: str) -> None:
    """What a writer did before the fence is committed when the fence stands; who comes later is judged by it."""
    early, late = await asyncpg.connect(database), await asyncpg.connect(database)
    try:
        writing = early.transaction()
        await writing.start()
        await early.execute("INSERT INTO notes VALUES (3, 1, 'early')")
        fencing = shard.transaction()
        await fencing.start()
        fence = asyncio.create_task(set_bucket_states(shard, [Bucket(3)], BucketState.MOVED, epoch=2))
        await _until_blocked(late, 1)
        assert not fence.done()
        await writing.commit()
        await fence
        assert await shard.fetchval("SELECT count(*) FROM notes") == 1
        writer = asyncio.create_task(state_of(early, "INSERT INTO notes VALUES (3, 2, 'late')"))
        await _until_blocked(late, 1)
        await fencing.commit()
        assert await writer == "SH001"
    finally:
        await early.close()
        await late.close()


async def _until_blocked(watcher, count: int) -> None:
    async with asyncio.timeout(10):
        waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'advisory'"
        while await watcher.fetchval(waiting) < count:  # noqa: ASYNC110 - a table of locks has no event
            await asyncio.sleep(0.01)


async def test_a_fence_gives_up_behind_a_writer_that_does_not_end(shard, database: str, monkeypatch) -> None:
    """After FENCE_TIMEOUT_MS the bucket is as it was, and writers go on."""
    monkeypatch.setattr("sharding.guard.FENCE_TIMEOUT_MS", 50)
    stuck = await asyncpg.connect(database)
    try:
        async with stuck.transaction():
            await stuck.execute("INSERT INTO notes VALUES (3, 1, 'slow')")
            with pytest.raises(QueryCanceledError):
                await set_bucket_states(shard, [Bucket(3)], BucketState.MOVED, epoch=2)
            await stuck.execute("INSERT INTO notes VALUES (3, 2, 'on')")
        assert (await bucket_states(shard))[Bucket(3)] is BucketState.OWNED
    finally:
        await stuck.close()


async def test_installing_again_gives_nothing_back_to_a_shard(shard) -> None:
    """An installer with an old map reports the difference and changes no state."""
    await set_bucket_states(shard, [Bucket(3)], BucketState.MOVED, epoch=2)
    report = await install_guard(shard, ["notes"], SHARD, OWNED)
    assert (report.owned, report.differs, report.tables) == (OWNED - {3}, {3}, ("notes",))


async def test_installers_at_once_do_not_hurt_one_another(database: str) -> None:
    """Two replicas that start together find the same guard."""
    connections = [await asyncpg.connect(database) for _ in range(4)]
    try:
        await connections[0].execute(TABLES)
        reports = await asyncio.gather(*(install_guard(c, ["notes", "logs"], SHARD, OWNED) for c in connections))
        assert len({(report.owned, report.differs) for report in reports}) == 1
    finally:
        for connection in connections:
            await connection.close()


REFUSED = [
    ("CREATE TABLE t (id int PRIMARY KEY)", "bucket smallint NOT NULL"),
    ("CREATE TABLE t (bucket int PRIMARY KEY)", "bucket smallint NOT NULL"),
    ("CREATE TABLE t (bucket smallint NOT NULL, id int PRIMARY KEY)", "primary key"),
    ("CREATE VIEW t AS SELECT 1::smallint AS bucket", "not a table of its own"),
    ("SELECT 1", "there is no table"),
]


@pytest.mark.parametrize(("ddl", "words"), REFUSED)
async def test_a_table_that_could_never_move_is_refused(shard, ddl: str, words: str) -> None:
    """Before anything is changed, with the mend in the message."""
    await shard.execute(ddl)
    with pytest.raises(GuardRefused, match=words):
        await install_guard(shard, ["t"], SHARD, OWNED)


async def test_a_database_is_one_shard_for_ever(shard) -> None:
    """A wrong address in the settings does not turn one shard into another."""
    with pytest.raises(GuardRefused, match="is the shard shard-0 already"):
        await install_guard(shard, ["notes"], ShardId("shard-1"), OWNED)


async def test_an_application_role_writes_under_the_guard_and_cannot_lift_it(shard, postgres, database: str) -> None:
    """It needs no right on the ownership rows to be checked, and gets none to change them."""
    role = "app_" + database.rsplit("_", 1)[1]
    await shard.execute(f"CREATE ROLE {role} LOGIN; GRANT SELECT, INSERT ON notes TO {role}")
    await install_guard(shard, ["notes"], SHARD, OWNED, roles=[role])
    app = await asyncpg.connect(postgres.dsn(database.rsplit("/", 1)[1], role))
    try:
        assert await state_of(app, "INSERT INTO notes VALUES (3, 1, 'a')") == "00000"
        assert await state_of(app, "INSERT INTO notes VALUES (900, 1, 'a')") == "SH001"
        assert (await bucket_states(app))[Bucket(900)] is BucketState.ABSENT
        for lift in (
            "UPDATE sharding.bucket SET state = 'owned'",
            "SELECT sharding.set_state(ARRAY[900]::smallint[], 'owned', 9)",
            "SET session_replication_role = replica",
            "DROP TRIGGER sharding_guard ON notes",
        ):
            assert await state_of(app, lift) == "42501"
    finally:
        await app.close()
        await shard.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


async def test_without_the_row_lock_a_snapshot_writer_would_be_lost(shard, database: str) -> None:
    """The planted fault: a guard of advisory locks alone accepts the late write of a repeatable reader."""
    source = await shard.fetchval("SELECT pg_get_functiondef('sharding.guard'::regproc)")
    await shard.execute(source.replace("FOR SHARE", ""))
    late = await asyncpg.connect(database)
    try:
        async with late.transaction(isolation="repeatable_read"):
            await late.fetchval("SELECT 1 FROM sharding.bucket LIMIT 1")
            await set_bucket_states(shard, [Bucket(3)], BucketState.MOVED, epoch=2)
            await late.execute("INSERT INTO notes VALUES (3, 1, 'lost')")
        assert await shard.fetchval("SELECT count(*) FROM notes") == 1
    finally:
        await late.close()


async def test_postgresql_and_python_hash_every_key_alike(shard) -> None:
    """The twin agrees on text, bytes, UUIDs and numbers."""
    texts = _examples(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
    found = await shard.fetch("SELECT sharding.bucket_of(k) AS b FROM unnest($1::text[]) AS k", texts)
    assert [row["b"] for row in found] == [bucket_of(text) for text in texts]
    blobs = _examples(st.binary())
    found = await shard.fetch("SELECT sharding.bucket_of(k) AS b FROM unnest($1::bytea[]) AS k", blobs)
    assert [row["b"] for row in found] == [bucket_of(blob) for blob in blobs]
    ids: list[UUID] = _examples(st.uuids())
    found = await shard.fetch("SELECT sharding.bucket_of(k::text) AS b FROM unnest($1::uuid[]) AS k", ids)
    assert [row["b"] for row in found] == [bucket_of(id) for id in ids]
    numbers = _examples(st.integers(-(2**63), 2**63 - 1))
    found = await shard.fetch("SELECT sharding.bucket_of(k::text) AS b FROM unnest($1::bigint[]) AS k", numbers)
    assert [row["b"] for row in found] == [bucket_of(number) for number in numbers]


def _examples(strategy) -> list:
    """Values of a strategy, drawn before the loop is entered again: one statement checks them all."""
    drawn: list = []

    @settings(max_examples=300, database=None)
    @given(strategy)
    def draw(value: object) -> None:
        drawn.append(value)

    draw()
    return drawn
