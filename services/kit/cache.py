"""Cache aside in Redis. The cache may be lost or away at any moment: then the database answers, more slowly.

Keys live for `TTL_S` with up to 10 % of jitter, so that they do not all end at once; a missing row is remembered for
`MISSING_TTL_S`; while one caller loads a key in this process, the others wait for it.

A value that may still be undone is answered and not kept: the loader says so with `Passing` (see undecided.py). A
value that was loaded before a change and comes back after it gives way: `drop` leaves a mark of its own in the key, and
a value is set only where the key still holds what was there before the load began. The mark also keeps whoever asks
after a drop from joining a load that began before it. Loads longer than `LOAD_MAX_S` are not kept, and all that stands
in a key after a drop stands for longer than that, so an old value never finds the key as it had left it.

What remains: between a commit and its drop the old value is answered, for as long as the outbox takes at most; a
process whose clock stands still, or a Redis that forgets a mark (a failover to a replica that had not heard of it,
an eviction), may bring an old value back, for `TTL_S` at most. Nothing that must be right is decided from a cache.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from uuid import uuid4

import msgspec
import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

TTL_S = 1800
"""The seed's 30 minutes."""
MISSING_TTL_S = 60
MARK_TTL_S = 60
"""Life of a drop's mark. Longer than LOAD_MAX_S, as is MISSING_TTL_S."""
LOAD_MAX_S = 30
"""What took longer to load is answered and not kept. Longer than a statement and its wait for a connection."""
JITTER = 0.1
MISSING = b"-"
MARK = b"~"
"""How a drop's mark begins. Neither it nor MISSING can begin a JSON document that we write."""

SET_IF_UNCHANGED = """
-- KEYS[1]: the key. ARGV: what was in it before the load ('' for nothing), the value, its life in seconds.
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[3])
return 1
"""

T = TypeVar("T")
log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Passing(Generic[T]):
    """What a loader gives instead of a value that may still be undone: it is answered and not kept."""

    value: T | None


class Cache:
    """One service's cache over a shared Redis. `clock` counts seconds and never goes back."""

    def __init__(
        self,
        redis: Redis,
        dice: Callable[[], float] = random.random,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._redis = redis
        self._dice = dice
        self._clock = clock
        self._loading: dict[tuple[str, bytes | None], asyncio.Task[Any]] = {}
        self._ended = 0
        """Loads that have ended in this process."""

    async def get_or_load(
        self, key: str, kind: type[T], load: Callable[[], Awaitable[T | Passing[T] | None]]
    ) -> T | None:
        """The cached value of `key`, else what `load` gives, which is then cached (also that there is none).

        Nobody who asks after a `drop` gets what was loaded before it.
        """
        ended = self._ended
        seen = await self._get(key)
        if not _is_value(seen) and ended != self._ended:
            # A load ended while we asked: it may have been of this key, and its value was set after we had looked.
            seen = await self._get(key)
        if seen is not None and _is_value(seen):
            try:
                return None if seen == MISSING else msgspec.json.decode(seen, type=kind)
            except msgspec.DecodeError as error:
                # Another version of the service wrote it: loaded anew, it is written over.
                log.info("cache.unreadable", key=key, error=str(error))
        # By what was seen too: whoever sees a later mark must not join a load that began before that drop.
        flight = (key, seen)
        loading = self._loading.get(flight)
        if loading is None:
            loading = asyncio.create_task(self._load(key, seen, load), name=f"cache {key}")
            self._loading[flight] = loading
            loading.add_done_callback(lambda done: self._loaded(flight, done))
        # Shielded: whoever goes away must not take the load from those who wait with them.
        value: T | None = await asyncio.shield(loading)
        return value

    async def drop(self, *keys: str) -> None:
        """Forgets keys. Call it after the commit; the outbox drops them once more (see outbox.cache_drop).

        With Redis away nothing is raised: the outbox comes back to it.
        """
        try:
            await self.drop_surely(*keys)
        except RedisError as error:
            log.warning("cache.away", doing="drop", error=str(error))

    async def drop_surely(self, *keys: str) -> None:
        """Forgets keys. Raises RedisError when Redis is away: for callers that try again."""
        if keys:
            pipeline = self._redis.pipeline(transaction=False)
            for key in keys:
                pipeline.set(key, MARK + uuid4().bytes, ex=MARK_TTL_S)
            await pipeline.execute()

    async def _load(
        self, key: str, seen: bytes | None, load: Callable[[], Awaitable[T | Passing[T] | None]]
    ) -> T | None:
        began = self._clock()
        value = await load()
        if isinstance(value, Passing):
            return value.value
        if seen is not None and self._clock() - began <= LOAD_MAX_S:
            await self._set(key, seen, value)
        return value

    def _loaded(self, flight: tuple[str, bytes | None], done: asyncio.Task[Any]) -> None:
        del self._loading[flight]
        self._ended += 1
        if not done.cancelled():
            done.exception()  # marked as seen: all who waited may have gone

    async def _get(self, key: str) -> bytes | None:
        """What stands in `key`, empty for nothing; None when Redis is away: then nothing is kept either."""
        try:
            raw: Any = await self._redis.get(key)
        except RedisError as error:
            log.warning("cache.away", doing="get", error=str(error))
            return None
        return b"" if raw is None else bytes(raw)

    async def _set(self, key: str, seen: bytes, value: object) -> None:
        ttl_s = MISSING_TTL_S if value is None else int(TTL_S * (1 - JITTER * self._dice()))
        raw = MISSING if value is None else msgspec.json.encode(value)
        try:
            await self._redis.eval(SET_IF_UNCHANGED, 1, key, seen, raw, ttl_s)
        except RedisError as error:
            log.warning("cache.away", doing="set", error=str(error))


def _is_value(raw: bytes | None) -> bool:
    """Whether what stands in a key is a value (or that there is none), and not a drop's mark or nothing."""
    return raw is not None and raw != b"" and not raw.startswith(MARK)
