"""The map in PostgreSQL, its watchers, and work that follows a moved bucket."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import asyncpg
import pytest
from sqlalchemy import func, insert, select, text, update

from sharding import (
    Bucket,
    BucketMoved,
    BucketState,
    CannotPlace,
    CatalogUnavailable,
    IdMaker,
    MapConflict,
    MapStore,
    NotAKey,
    ShardId,
    Shards,
    ShardUnavailable,
    UnknownShard,
    change_map,
    create_catalog,
    even_map,
    load_map,
    set_bucket_states,
)
from tests.support.fleet import SHARD_0, SHARD_1, Fleet, invoices
from tests.support.servers import TestPostgres

NEW = IdMaker()
WAIT_S = 30


async def switch(fleet: Fleet, bucket: int, *, source: ShardId, target: ShardId) -> None:
    """Takes a bucket from one shard and gives it to another, without any rows."""
    for shard, state in ((source, BucketState.MOVED), (target, BucketState.OWNED)):
        raw = await fleet.raw(shard)
        await set_bucket_states(raw, [Bucket(bucket)], state, epoch=2)
        await raw.close()
    catalog = await asyncpg.connect(fleet.catalog_dsn)
    await change_map(catalog, {Bucket(bucket): target}, expected_version=(await load_map(catalog)).version)
    await catalog.close()


def forget_the_second_map(store: MapStore) -> None:
    """Makes a store that has heard of the second map believe in the first again."""
    store._map = even_map([SHARD_0, SHARD_1])


def row(bucket: int, pieces: int = 1) -> dict[str, object]:
    """An invoice of a customer in a bucket."""
    made = NEW(Bucket(bucket))
    return {"bucket": bucket, "id": made, "customer_id": made, "created_at": func.now(), "pieces": pieces}


async def test_a_new_catalog_is_even_and_an_old_one_is_left_alone(database: str) -> None:
    """Creating again, even for other shards, returns the map that is there."""
    connections = [await asyncpg.connect(database) for _ in range(3)]
    try:
        made = await asyncio.gather(*(create_catalog(c, [SHARD_0, SHARD_1]) for c in connections))
        assert made == [even_map([SHARD_0, SHARD_1])] * 3
        assert await create_catalog(connections[0], [ShardId("other")]) == made[0]
    finally:
        for connection in connections:
            await connection.close()


async def test_a_change_from_an_old_version_is_refused_and_changes_nothing(database: str) -> None:
    """Compare and set: of two planners from one version, one wins."""
    catalog = await asyncpg.connect(database)
    try:
        await create_catalog(catalog, [SHARD_0, SHARD_1])
        after = await change_map(catalog, {Bucket(0): SHARD_1, Bucket(600): SHARD_1}, expected_version=1)
        assert (after.version, after.shard_of(Bucket(0))) == (2, SHARD_1)
        with pytest.raises(MapConflict, match="at version 2"):
            await change_map(catalog, {Bucket(1): SHARD_1}, expected_version=1)
        assert await load_map(catalog) == after
        with pytest.raises(NotAKey):
            await change_map(catalog, {Bucket(5000): SHARD_1}, expected_version=2)
        epochs = await catalog.fetch("SELECT bucket, epoch FROM sharding.placement WHERE bucket IN (0, 600) ORDER BY 1")
        assert [record["epoch"] for record in epochs] == [2, 1]
        await catalog.execute("UPDATE sharding.placement SET shard = 'shard-0' WHERE bucket = 0")
        assert (await load_map(catalog)).version == 3
    finally:
        await catalog.close()


async def test_a_database_without_a_map_is_named(database: str) -> None:
    """Entering the store says what is missing; so does a store that was never entered."""
    with pytest.raises(CatalogUnavailable, match="create_catalog"):
        async with MapStore(database):
            raise AssertionError("entered")
    with pytest.raises(CatalogUnavailable, match="cannot be read"):
        async with MapStore("postgresql://postgres@127.0.0.1:1/x"):
            raise AssertionError("entered")
    with pytest.raises(CatalogUnavailable, match="enter"):
        _ = MapStore(database).map
    assert (await MapStore(database).create_if_missing([SHARD_0])).shards == (SHARD_0,)


async def test_watchers_hear_of_a_change_at_once(fleet: Fleet) -> None:
    """By notification: the poll of this store would come only after half a minute."""
    waiting = asyncio.create_task(fleet.store.wait_for_change(1, WAIT_S))
    await switch(fleet, 3, source=SHARD_0, target=SHARD_1)
    assert (await waiting).shard_of(Bucket(3)) == SHARD_1


async def test_a_lost_notification_is_made_up_by_the_poll(fleet: Fleet) -> None:
    """A store that polls often sees a change that was never announced."""
    catalog = await asyncpg.connect(fleet.catalog_dsn)
    try:
        async with MapStore(fleet.catalog_dsn, poll_interval_s=0.05) as store:
            await catalog.execute("ALTER TABLE sharding.placement DISABLE TRIGGER raise_version")
            await catalog.execute("UPDATE sharding.placement SET shard = 'shard-1' WHERE bucket = 3")
            await catalog.execute("UPDATE sharding.map_version SET version = 7")
            assert (await store.wait_for_change(1, WAIT_S)).version == 7
    finally:
        await catalog.close()


async def test_a_watcher_outlives_whatever_goes_wrong(fleet: Fleet) -> None:
    """Also what no driver is known to raise: a store that has stopped watching would look like one that watches."""

    class Confused(MapStore):
        failures = 0

        async def _load(self) -> None:
            if self.failures:
                self.failures -= 1
                raise KeyError("confused")
            await super()._load()

    async with Confused(fleet.catalog_dsn, poll_interval_s=60) as store:
        store.failures = 1
        await switch(fleet, 3, source=SHARD_0, target=SHARD_1)
        assert (await store.wait_for_change(1, WAIT_S)).version == 2
        assert store.failures == 0


async def test_a_caller_that_gives_up_does_not_leave_the_watcher_deaf(fleet: Fleet) -> None:
    """Its read goes, and the connection with it; the store listens again without waiting for the next poll."""
    catalog, other = [await asyncpg.connect(fleet.catalog_dsn) for _ in range(2)]
    waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'sharding.placement'::regclass"
    try:
        async with catalog.transaction():
            await catalog.execute("LOCK TABLE sharding.placement IN ACCESS EXCLUSIVE MODE")
            asking = asyncio.create_task(fleet.store.refresh())
            async with asyncio.timeout(WAIT_S):
                while await other.fetchval(waiting) == 0:  # noqa: ASYNC110 - a table of locks has no event
                    await asyncio.sleep(0.01)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
        await switch(fleet, 3, source=SHARD_0, target=SHARD_1)
        assert (await fleet.store.wait_for_change(1, timeout_s=10)).version == 2
    finally:
        await catalog.close()
        await other.close()


async def test_the_last_map_stays_while_the_catalog_is_away_and_a_new_one_comes_after(fleet: Fleet) -> None:
    """Cut connections and a closed door change nothing for who has a map; the watcher comes back by itself."""
    admin = await asyncpg.connect(fleet.dsns[SHARD_0])
    name = fleet.catalog_dsn.rsplit("/", 1)[1]
    cut = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
    try:
        await admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
        await admin.execute(cut)
        assert (await fleet.store.refresh()).version == 1
        assert fleet.shards.shard_of(Bucket(3)) == SHARD_0
        await admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
        await switch(fleet, 3, source=SHARD_0, target=SHARD_1)
        assert (await fleet.store.wait_for_change(1, WAIT_S)).version == 2
    finally:
        await admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
        await admin.close()


async def test_an_older_map_never_replaces_a_newer_one(fleet: Fleet) -> None:
    """A catalog that fell back behind its own word is not believed."""
    await switch(fleet, 3, source=SHARD_0, target=SHARD_1)
    assert (await fleet.store.refresh()).version == 2
    catalog = await asyncpg.connect(fleet.catalog_dsn)
    await catalog.execute("UPDATE sharding.map_version SET version = 1")
    await catalog.close()
    assert (await fleet.store.refresh()).version == 2


async def test_a_session_stands_on_the_shard_of_its_key(fleet: Fleet) -> None:
    """By id, by bucket, by text; objects stay usable after commit."""
    assert fleet.shards.shard_of(NEW(Bucket(900))) == SHARD_1
    assert fleet.shards.ids == (SHARD_0, SHARD_1)
    async with fleet.shards.session(Bucket(900)) as session:
        assert await session.scalar(text("SELECT shard FROM sharding.self")) == "shard-1"
        assert session.sync_session.expire_on_commit is False
    with pytest.raises(UnknownShard, match="there are: shard-0, shard-1"):
        fleet.shards.engine(ShardId("shard-9"))


async def test_work_follows_a_bucket_that_moved_behind_its_back(fleet: Fleet) -> None:
    """The map is refreshed and the work repeated: it commits on the new shard, once, and the caller sees no error."""
    stale = MapStore(fleet.catalog_dsn, poll_interval_s=60)
    await stale._load()  # without its watcher: it hears of nothing
    shards = Shards(stale, {shard: fleet.shards.engine(shard) for shard in fleet.shards.ids})
    await switch(fleet, 3, source=SHARD_0, target=SHARD_1)
    assert shards.shard_of(Bucket(3)) == SHARD_0
    ran = []

    async def work(session) -> str:
        ran.append(await session.scalar(text("SELECT shard FROM sharding.self")))
        await session.execute(insert(invoices).values(**row(3)))
        return "done"

    assert await shards.run(Bucket(3), work) == "done"
    assert ran == ["shard-0", "shard-1"]
    assert [await _count(fleet, shard) for shard in (SHARD_0, SHARD_1)] == [0, 1]
    await stale._disconnect()


async def test_work_waits_out_the_moment_between_fence_and_map(fleet: Fleet) -> None:
    """While the source is fenced and the map not raised yet, the work is repeated until it is."""
    raw = await fleet.raw(SHARD_0)
    await set_bucket_states(raw, [Bucket(3)], BucketState.MOVED, epoch=2)
    await raw.close()
    refused = asyncio.Event()

    async def work(session) -> None:
        try:
            await session.execute(insert(invoices).values(**row(3)))
        finally:
            refused.set()

    running = asyncio.create_task(fleet.shards.run(Bucket(3), work, dice=lambda: 0.5))
    await refused.wait()
    await switch(fleet, 3, source=SHARD_0, target=SHARD_1)
    await running
    assert await _count(fleet, SHARD_1) == 1


async def test_work_that_no_shard_takes_ends_in_a_clear_error(fleet: Fleet) -> None:
    """After the limit: BucketMoved with the shard's own words, and nothing written. Other errors come through."""
    raw = await fleet.raw(SHARD_0)
    await set_bucket_states(raw, [Bucket(3)], BucketState.MOVED, epoch=2)
    await raw.close()

    async def work(session) -> None:
        await session.execute(insert(invoices).values(**row(3)))

    with pytest.raises(BucketMoved, match="bucket 3 is not on shard shard-0"):
        await fleet.shards.run(Bucket(3), work, retry_limit_s=0.05)

    async def wrong(_: object) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await fleet.shards.run(Bucket(3), wrong)


async def test_the_router_writes_and_reads_where_rows_live(fleet: Fleet) -> None:
    """Bulk inserts are split, point reads go to one shard, and writes over two shards need a word of consent."""
    rows = [{**row(bucket), "created_at": _now()} for bucket in (1, 2, 700, 900)]
    router = fleet.router
    with pytest.raises(CannotPlace, match="shards shard-0, shard-1"):
        await router.execute(insert(invoices), rows)
    await router.execute(insert(invoices), rows, each_alone=True)
    assert [await _count(fleet, shard) for shard in (SHARD_0, SHARD_1)] == [2, 2]
    found = await router.execute(select(invoices.c.bucket).where(invoices.c.id == rows[2]["id"]))
    assert found.scalars() == [700]
    changed = await router.execute(
        update(invoices).values(pieces=5).where(invoices.c.bucket.in_([1, 700])), each_alone=True
    )
    assert changed.rowcount == 2
    assert (await router.execute(select(func.sum(invoices.c.pieces)))).scalar() == 12
    by_hand = await router.execute(text("SELECT count(*) FROM invoices"), key=Bucket(1))
    assert by_hand.one()[0] == 2


async def test_the_router_follows_moved_buckets_and_applies_nothing_twice(fleet: Fleet) -> None:
    """One statement over two buckets, one of which moved with its rows: each row is counted up exactly once."""
    rows = [{**row(bucket), "created_at": _now()} for bucket in (1, 2)]
    await fleet.router.execute(insert(invoices), rows)
    raw = await fleet.raw(SHARD_1)
    async with raw.transaction():
        await raw.execute("SET LOCAL session_replication_role = replica")
        await raw.execute(
            "INSERT INTO invoices (bucket, id, customer_id, created_at, pieces) VALUES (2, $1, $1, now(), 1)",
            rows[1]["id"],
        )
    await raw.close()
    stale = MapStore(fleet.catalog_dsn, poll_interval_s=60)
    await stale._load()
    shards = Shards(stale, {shard: fleet.shards.engine(shard) for shard in fleet.shards.ids})
    await switch(fleet, 2, source=SHARD_0, target=SHARD_1)
    router = type(fleet.router)(shards, fleet.tables)
    bump = update(invoices).values(pieces=invoices.c.pieces + 1).where(invoices.c.bucket.in_([1, 2]))
    # It was one local transaction and would be two: that is for the caller to allow. Nothing is written yet.
    with pytest.raises(CannotPlace, match="each_alone"):
        await router.execute(bump)
    assert (await fleet.router.execute(select(func.sum(invoices.c.pieces)))).scalar() == 2
    forget_the_second_map(stale)
    assert (await router.execute(bump, each_alone=True)).rowcount == 2
    # The leftover of bucket 2 on its old shard is seen by nobody.
    assert sorted((await fleet.router.execute(select(invoices.c.pieces))).scalars()) == [2, 2]
    await stale._disconnect()


async def test_a_shard_that_is_down_is_named_and_the_other_goes_on(fleet: Fleet) -> None:
    """Writes to the down shard fail by its name; the others still answer."""
    await fleet.router.execute(insert(invoices).values(**row(1)))
    raw = await fleet.raw(SHARD_0)
    name = fleet.dsns[SHARD_1].rsplit("/", 1)[1]
    await raw.close()
    other = await asyncpg.connect(fleet.dsns[SHARD_1].rsplit("/", 1)[0] + "/postgres")
    try:
        await other.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
        await other.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
        with pytest.raises(ShardUnavailable, match="shard-1"):
            await fleet.router.execute(insert(invoices).values(**row(900)))
        with pytest.raises(ShardUnavailable) as caught:
            await fleet.router.execute(select(invoices))
        assert caught.value.shard == "shard-1"
        answer = await fleet.router.execute(select(func.count()).select_from(invoices), partial=True)
        assert (answer.scalar(), answer.missing) == (1, (SHARD_1,))
        assert (await fleet.router.execute(select(invoices.c.bucket).where(invoices.c.bucket == 1))).scalars() == [1]
    finally:
        await other.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
        await other.close()


async def _count(fleet: Fleet, shard: ShardId) -> int:
    raw = await fleet.raw(shard)
    try:
        return int(await raw.fetchval("SELECT count(*) FROM invoices"))
    finally:
        await raw.close()


def _now() -> object:
    from datetime import UTC, datetime

    return datetime(2026, 11, 1, tzinfo=UTC)


def test_importing_the_package_starts_nothing() -> None:
    """No connection, no loop, no thread at import."""
    program = "import threading, sharding; assert threading.active_count() == 1"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_the_fixture_has_two_servers(postgres: TestPostgres, second_postgres: TestPostgres) -> None:
    """The shards of these tests are two processes."""
    assert postgres.port != second_postgres.port
