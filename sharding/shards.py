"""The shards of a fleet behind their map: the engine, the session, the unit of work for a key."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from sharding.buckets import Bucket, Key
from sharding.catalog import MapStore
from sharding.connections import is_moved
from sharding.errors import BucketMoved, UnknownShard
from sharding.ids import bucket_for
from sharding.shard_map import ShardId, ShardMap

RUN_RETRY_LIMIT_S = 5.0
RUN_PAUSE_FIRST_S = 0.005
RUN_PAUSE_MAX_S = 0.25

T = TypeVar("T")
Work = Callable[[AsyncSession], Awaitable[T]]
Dice = Callable[[], float]


class Shards:
    """Routes by a map that changes (a MapStore, entered by the caller) or one that stands still (a ShardMap).

    `engines` has one engine for each shard; it belongs to the caller, who disposes of it.
    """

    def __init__(self, map: MapStore | ShardMap, engines: Mapping[ShardId, AsyncEngine]) -> None:
        self._source = map
        self._engines = dict(engines)

    @property
    def map(self) -> ShardMap:
        """The map as known now. Take it once for work that must not see two versions."""
        return self._source if isinstance(self._source, ShardMap) else self._source.map

    @property
    def ids(self) -> tuple[ShardId, ...]:
        """All shards that there is an engine for, by name."""
        return tuple(sorted(self._engines))

    def shard_of(self, where: Key | Bucket) -> ShardId:
        """The shard of an id (its own bucket), a bucket (every int), or another key (by hash): see `bucket_for`."""
        return self.map.shard_of(bucket_for(where))

    def engine(self, shard: ShardId) -> AsyncEngine:
        """The engine of a shard. Raises UnknownShard when there is none."""
        try:
            return self._engines[shard]
        except KeyError:
            known = ", ".join(self._engines) or "none"
            raise UnknownShard(shard, f"there is no engine for shard {shard}; there are: {known}") from None

    def session(self, where: Key | Bucket) -> AsyncSession:
        """A new session on the one shard of an id, bucket or key; the caller closes it (``async with``)."""
        return self.session_on(self.shard_of(where))

    def session_on(self, shard: ShardId) -> AsyncSession:
        """A new session on a shard, whose objects stay usable after commit; the caller closes it."""
        return AsyncSession(self.engine(shard), expire_on_commit=False)

    async def refresh(self) -> ShardMap:
        """Reads the map again; the one known stays when the catalog is away."""
        return self._source if isinstance(self._source, ShardMap) else await self._source.refresh()

    async def run(
        self,
        where: Key | Bucket,
        work: Work[T],
        *,
        retry_limit_s: float = RUN_RETRY_LIMIT_S,
        dice: Dice = random.random,
    ) -> T:
        """Runs `work` in one transaction on the shard of `where`, commits, and returns what it returned.

        When the shard refuses because the bucket moved, everything is rolled back, the map read again, and `work` run
        again on the new shard, so it must have no effect outside its session. Raises BucketMoved as `retry_moved`
        does; whatever else `work` raises comes through.
        """
        bucket = bucket_for(where)

        async def attempt(map: ShardMap) -> T:
            async with self.session_on(map.shard_of(bucket)) as session, session.begin():
                return await work(session)

        return await self.retry_moved(attempt, retry_limit_s=retry_limit_s, dice=dice)

    async def retry_moved(
        self,
        attempt: Callable[[ShardMap], Awaitable[T]],
        *,
        retry_limit_s: float = RUN_RETRY_LIMIT_S,
        dice: Dice = random.random,
    ) -> T:
        """Runs `attempt` with the map, again with a newer one when a shard's guard refuses what it does.

        `attempt` must have undone all that it did when it raises. Raises BucketMoved, with the shard's own error as its
        cause, when it is still refused after `retry_limit_s` seconds; `dice` (0 to 1) spreads the pauses.
        """
        clock = asyncio.get_running_loop().time
        give_up_at = clock() + retry_limit_s
        pause_s = RUN_PAUSE_FIRST_S
        while True:
            map = self.map
            try:
                return await attempt(map)
            except BucketMoved:
                raise
            except Exception as error:
                if not is_moved(error):
                    raise
                if clock() >= give_up_at:
                    raise BucketMoved(
                        f"refused under map version {map.version}, and there is no newer: {error}"
                    ) from error
            if (await self.refresh()).version == map.version:
                # The cut-over has fenced the source but not raised the map yet: a matter of milliseconds.
                await self._pause(map.version, min(pause_s * (0.5 + dice()), max(give_up_at - clock(), 0.0)))
                pause_s = min(pause_s * 2, RUN_PAUSE_MAX_S)

    async def _pause(self, version: int, pause_s: float) -> None:
        if isinstance(self._source, ShardMap):
            await asyncio.sleep(pause_s)
        else:
            await self._source.wait_for_change(version, pause_s)
