"""The shard map in PostgreSQL: made, read, changed, and watched. The tables are in catalog.sql."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import structlog
from asyncpg.exceptions import (
    InterfaceError,
    InternalClientError,
    InvalidSchemaNameError,
    PostgresError,
    UndefinedTableError,
)

from sharding.buckets import BUCKET_COUNT, Bucket, bucket
from sharding.connections import AnyConnection, asyncpg_dsn, bare, connect, load_sql
from sharding.errors import CatalogUnavailable, MapConflict
from sharding.shard_map import ShardId, ShardMap, even_map

CHANNEL = "shard_map"
INSTALL_LOCK = 7_204_514
"""Key of the advisory lock that lets one installation run at a time."""
POLL_INTERVAL_S = 15.0
CATALOG_TIMEOUT_S = 5.0
RETRY_FIRST_S = 0.1
RETRY_MAX_S = 5.0
MAP_SQL = """
SELECT v.version, array_agg(p.shard ORDER BY p.bucket) AS placements
FROM sharding.map_version AS v CROSS JOIN sharding.placement AS p
GROUP BY v.version
"""

CATALOG_ERRORS = (PostgresError, InterfaceError, InternalClientError, OSError, TimeoutError)
"""What a catalog that is away may raise; a connection cut at an unlucky moment confuses asyncpg itself."""

log = structlog.get_logger(__name__)


async def create_catalog(
    connection: AnyConnection, shards: Sequence[ShardId], *, roles: Sequence[str] = ()
) -> ShardMap:
    """Makes the catalog with an even map over `shards`, or finds the map that is there, and returns it.

    Repeatable; concurrent callers get the same map. `roles` may read the map afterwards. An existing map is never
    changed: shards that are new in `shards` get buckets by moves only. Raises UnknownShard for an empty list.
    """
    raw = await bare(connection)
    async with raw.transaction():
        await raw.execute("SELECT pg_advisory_xact_lock($1)", INSTALL_LOCK)
        await raw.execute(load_sql("catalog.sql"))
        if await raw.fetchval("SELECT count(*) FROM sharding.map_version") == 0:
            first = even_map(shards, version=1)
            await raw.execute("INSERT INTO sharding.shard (id) SELECT unnest($1::text[])", list(shards))
            # The version row comes after the placements: their trigger finds none to raise, and the map starts at 1.
            await raw.execute(
                "INSERT INTO sharding.placement (bucket, shard, epoch)"
                " SELECT b - 1, s, 1 FROM unnest($1::text[]) WITH ORDINALITY AS t (s, b)",
                list(first.placements),
            )
            await raw.execute("INSERT INTO sharding.map_version (version) VALUES (1)")
        for role in roles:
            quoted = await raw.fetchval("SELECT quote_ident($1)", role)
            await raw.execute(f"GRANT USAGE ON SCHEMA sharding TO {quoted}")
            await raw.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA sharding TO {quoted}")
        return await load_map(raw)


async def load_map(connection: AnyConnection) -> ShardMap:
    """The map as it is now, in one statement and so at one version. Raises CatalogUnavailable when there is none."""
    raw = await bare(connection)
    try:
        row = await raw.fetchrow(MAP_SQL)
    except (UndefinedTableError, InvalidSchemaNameError):
        row = None
    if row is None or len(row["placements"]) != BUCKET_COUNT:
        raise CatalogUnavailable("this database holds no shard map: create_catalog makes one")
    return ShardMap(row["version"], tuple(ShardId(shard) for shard in row["placements"]))


async def change_map(
    connection: AnyConnection, changes: Mapping[Bucket, ShardId], *, expected_version: int
) -> ShardMap:
    """Places buckets, if the map is still at `expected_version`, and tells every watcher. Returns the new map.

    Raises MapConflict when somebody was first, NotAKey for a bucket that is none; nothing is changed then.
    This moves no rows.
    """
    raw = await bare(connection)
    async with raw.transaction():
        done = await raw.fetchval(
            "SELECT sharding.place($1::smallint[], $2::text[], $3)",
            [bucket(where) for where in changes],
            [str(shard) for shard in changes.values()],
            expected_version,
        )
        current = await load_map(raw)
        if not done:
            raise MapConflict(expected_version, current.version)
        return current


class MapStore:
    """The map of a catalog, kept current: by notification at once, by a slow poll in case one is lost.

        async with MapStore(url) as store:
            store.map.shard_of(bucket)

    While the catalog is away the last map stays: the guard in each shard makes an old map safe, only slower. Entering
    waits for the first map and raises CatalogUnavailable when there is none within CATALOG_TIMEOUT_S.
    """

    def __init__(self, url: str, *, poll_interval_s: float = POLL_INTERVAL_S) -> None:
        self._dsn = asyncpg_dsn(url)
        self._poll_interval_s = poll_interval_s
        self._connection: Any = None
        self._map: ShardMap | None = None
        self._loading = asyncio.Lock()
        self._loads_started = 0
        self._told = asyncio.Event()
        self._changed = asyncio.Condition()
        self._watcher: asyncio.Task[None] | None = None

    @property
    def map(self) -> ShardMap:
        """The newest map known. Raises CatalogUnavailable before the store was entered."""
        if self._map is None:
            raise CatalogUnavailable("the shard map is not loaded yet: enter the MapStore first")
        return self._map

    async def create_if_missing(self, shards: Sequence[ShardId], *, roles: Sequence[str] = ()) -> ShardMap:
        """`create_catalog` over a connection of its own; the URL's user must be allowed to create a schema."""
        connection = await connect(self._dsn)
        try:
            return await create_catalog(connection, shards, roles=roles)
        finally:
            await connection.close()

    async def refresh(self) -> ShardMap:
        """Reads the map again and returns the newest known: the last one when the catalog is away.

        Callers that come while a read runs share the next one.
        """
        try:
            await self._load()
        except (CatalogUnavailable, *CATALOG_ERRORS) as error:
            log.warning("shard_map.stale", version=self.map.version, error=str(error) or type(error).__name__)
        return self.map

    async def wait_for_change(self, version: int, timeout_s: float) -> ShardMap:
        """The map as soon as it is newer than `version`, or as it is after `timeout_s` seconds."""
        try:
            async with asyncio.timeout(timeout_s), self._changed:
                await self._changed.wait_for(lambda: self.map.version > version)
        except TimeoutError:
            log.debug("shard_map.unchanged", version=version)
        return self.map

    async def __aenter__(self) -> Self:
        try:
            await self._load()
        except CATALOG_ERRORS as error:
            await self._disconnect()
            raise CatalogUnavailable(f"the shard map cannot be read: {error or type(error).__name__}") from error
        except BaseException:
            await self._disconnect()
            raise
        self._watcher = asyncio.create_task(self._watch(), name="shard-map-watch")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
        await self._disconnect()

    async def _watch(self) -> None:
        pause_s = RETRY_FIRST_S
        while True:
            try:
                async with asyncio.timeout(self._poll_interval_s):
                    await self._told.wait()
            except TimeoutError:
                log.debug("shard_map.poll")
            self._told.clear()
            try:
                await self._load()
                pause_s = RETRY_FIRST_S
            except Exception as error:  # whatever it is: nobody would see that a store no longer watches
                log.warning("shard_map.away", retry_s=pause_s, error=str(error) or type(error).__name__)
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, RETRY_MAX_S)
                self._told.set()

    async def _load(self) -> None:
        seen = self._loads_started
        async with self._loading:
            if self._loads_started > seen and self._connection is not None:
                return  # a read that began after we asked has ended well
            self._loads_started += 1
            try:
                async with asyncio.timeout(CATALOG_TIMEOUT_S):
                    loaded = await load_map(await self._connected())
            except BaseException:
                await self._disconnect()
                self._told.set()  # nobody listens any more, also when only a caller gave up: the watcher connects again
                raise
            await self._take(loaded)

    async def _take(self, loaded: ShardMap) -> None:
        # After a failover the catalog may answer with less than it said before: an older map replaces no newer.
        if self._map is None or loaded.version > self._map.version:
            self._map = loaded
            async with self._changed:
                self._changed.notify_all()

    async def _connected(self) -> Any:
        if self._connection is None or self._connection.is_closed():
            self._connection = await connect(self._dsn, server_settings={"application_name": "shard-map"})
            # Listening starts before the map is read, so no change falls between the two.
            await self._connection.add_listener(CHANNEL, self._hear)
            self._connection.add_termination_listener(self._lost)
        return self._connection

    def _hear(self, *_: object) -> None:
        self._told.set()

    def _lost(self, *_: object) -> None:
        self._told.set()

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            # Our own goodbye is no news: without this the watcher would wake once for nothing.
            connection.remove_termination_listener(self._lost)
            connection.terminate()
