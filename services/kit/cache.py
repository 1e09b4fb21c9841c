"""Cache aside in Redis. The cache may be lost or away at any moment: then the database answers, more slowly.

Keys live for `TTL_S` with up to 10 % of jitter, so that they do not all end at once; a missing row is remembered for
`MISSING_TTL_S`; while one caller loads a key in this process, the others wait for it.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import msgspec
import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

TTL_S = 1800
"""The seed's 30 minutes."""
MISSING_TTL_S = 60
JITTER = 0.1
MISSING = b"-"

T = TypeVar("T")
log = structlog.get_logger(__name__)


class Cache:
    """One service's cache over a shared Redis."""

    def __init__(self, redis: Redis, dice: Callable[[], float] = random.random) -> None:
        self._redis = redis
        self._dice = dice
        self._loading: dict[str, asyncio.Task[Any]] = {}

    async def get_or_load(self, key: str, kind: type[T], load: Callable[[], Awaitable[T | None]]) -> T | None:
        """The cached value of `key`, else what `load` gives, which is then cached (also that there is none)."""
        raw = await self._get(key)
        if raw is not None:
            return None if raw == MISSING else msgspec.json.decode(raw, type=kind)
        loading = self._loading.get(key)
        if loading is None:
            loading = asyncio.create_task(self._load(key, load), name=f"cache {key}")
            self._loading[key] = loading
            loading.add_done_callback(lambda done: self._loaded(key, done))
        # Shielded: whoever goes away must not take the load from those who wait with them.
        value: T | None = await asyncio.shield(loading)
        return value

    async def drop(self, *keys: str) -> None:
        """Forgets keys. Call it after the commit; the outbox drops them once more (see outbox.cache_drop)."""
        if keys:
            try:
                await self._redis.delete(*keys)
            except RedisError as error:
                log.warning("cache.away", doing="drop", error=str(error))

    async def _load(self, key: str, load: Callable[[], Awaitable[T | None]]) -> T | None:
        value = await load()
        await self._set(key, value)
        return value

    def _loaded(self, key: str, done: asyncio.Task[Any]) -> None:
        del self._loading[key]
        if not done.cancelled():
            done.exception()  # marked as seen: all who waited may have gone

    async def _get(self, key: str) -> bytes | None:
        try:
            raw: Any = await self._redis.get(key)
        except RedisError as error:
            log.warning("cache.away", doing="get", error=str(error))
            return None
        return None if raw is None else bytes(raw)

    async def _set(self, key: str, value: object) -> None:
        ttl_s = MISSING_TTL_S if value is None else int(TTL_S * (1 - JITTER * self._dice()))
        try:
            await self._redis.set(key, MISSING if value is None else msgspec.json.encode(value), ex=ttl_s)
        except RedisError as error:
            log.warning("cache.away", doing="set", error=str(error))
