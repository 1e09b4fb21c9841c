"""What a running service holds, put together once from its settings: the composition root's material.

Nothing connects before `start`; `stop` leaves nothing behind. A service's web process and its worker each have one.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import TypeVar
from uuid import UUID

import structlog
from jwt import PyJWTError
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncEngine

from coordinator.client import Coordinator
from coordinator.protocol.tokens import SigningKey, TokenMaker, TokenVerifier, read_key_set
from services.kit.auth import Identities
from services.kit.broker import make_broker
from services.kit.cache import Cache
from services.kit.clients import Outgoing, ServiceClient
from services.kit.clock import Clock, system_clock
from services.kit.database import Store, make_engine
from services.kit.idempotency import sweep
from services.kit.locks import Gate, lock_master
from services.kit.outbox import Relay, forget_taken
from services.kit.paging import Cursors
from services.kit.settings import Settings, SettingsError
from services.kit.signing import Signer, Verifier
from services.kit.spec import ServiceSpec
from sharding import Bucket, MapStore, ShardId, Shards

NUDGE_PATH = "/internal/coordinator/nudge"
SWEEP_INTERVAL_S = 3600
RESTART_PAUSE_S = 1.0
"""Pause before a loop that ended by a bug is started again."""

T = TypeVar("T")
Loop = Callable[[], Awaitable[None]]
log = structlog.get_logger(__name__)


class Runtime:
    """Everything a service's use cases are given."""

    def __init__(
        self, spec: ServiceSpec, settings: Settings, *, clock: Clock = system_clock, processing: bool = False
    ) -> None:
        self.spec = spec
        self.settings = settings
        self.clock = clock
        self.processing = processing
        key = _read("PAWSTAY_KEY_FILE", settings.key_file, SigningKey.from_jwk)
        keys = _read("PAWSTAY_KEYS_FILE", settings.keys_file, read_key_set)
        self.tokens = TokenMaker(spec.name, key)
        self.service_verifier = TokenVerifier(spec.name, keys)
        self.signer = Signer(spec.name, key, clock)
        self.verifier = Verifier(keys, clock)
        self.identities = Identities(self.verifier, self.service_verifier)
        self.cursors = Cursors(hashlib.sha256(f"cursor:{key.private_jwk()}".encode()).digest())
        self.coordinator = Coordinator(
            list(settings.coordinator_urls),
            tokens=self.tokens,
            verifier=self.service_verifier,
            nudge_url=None if processing else f"http://{settings.host}:{settings.port}{NUDGE_PATH}",
            on_end=_log_end,
        )
        self.redis: Redis = Redis.from_url(settings.redis_url, socket_timeout=2, socket_connect_timeout=1)
        self.cache = Cache(self.redis)
        self._masters = [lock_master(url) for url in settings.lock_redis_urls] if settings.redlock else []
        self.gate = Gate(self._masters)
        self.broker = make_broker(settings.redis_url, processing=processing)
        self.http = Outgoing(self.tokens)
        self._stores = self._make_stores()
        self._map_store = (
            MapStore(settings.shard_map_url) if spec.storage == "sharded" and settings.shard_map_url else None
        )
        self._shards: Shards | None = None
        self._loops: list[Loop] = []
        self._at_start: list[Loop] = []
        self._stack = AsyncExitStack()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def store(self) -> Store:
        """The service's own database."""
        if self.spec.storage != "own":
            raise SettingsError(f"{self.spec.name} is sharded: ask for the store of a key")
        return self._stores[self.spec.name]

    @property
    def stores(self) -> list[Store]:
        """All databases of the service, one for each shard where it is sharded."""
        return list(self._stores.values())

    @property
    def shards(self) -> Shards:
        """The router of a sharded service."""
        if self._shards is None:
            raise SettingsError(f"{self.spec.name} has no shard map before it is started")
        return self._shards

    def store_of(self, where: UUID | Bucket) -> Store:
        """The database that holds a bucket, or the bucket which an id carries.

        An id that carries none (somebody made it up) belongs to the bucket of its hash, where nothing is found.
        """
        return self._stores[self.shards.shard_of(where)]

    def service(self, name: str) -> ServiceClient:
        """A client of another service."""
        if name not in self.spec.calls:
            raise SettingsError(f"{self.spec.name} does not declare that it calls {name}")
        return ServiceClient(name, self.settings.url_of(name), self.http)

    def every(self, interval_s: float, work: Callable[[], Awaitable[None]], name: str) -> None:
        """Has `work` run every `interval_s` seconds while the service runs; a failure is logged and tried again."""

        async def loop() -> None:
            while True:
                await asyncio.sleep(interval_s)
                try:
                    await work()
                except Exception as error:  # a sweeper must outlive whatever is down at the moment
                    log.warning("loop.failed", loop=name, error=f"{type(error).__name__}: {error}")

        self._loops.append(loop)

    def at_start(self, work: Callable[[], Awaitable[None]]) -> None:
        """Has `work` run once, after everything is connected and before the first request."""
        self._at_start.append(work)

    async def start(self) -> None:
        """Connects, loads the shard map, starts the settle loops, the relays and the service's own loops.

        When it raises, `stop` closes what was opened.
        """
        await self._stack.enter_async_context(self.http)
        if self._map_store is not None:
            await self._stack.enter_async_context(self._map_store)
            self._shards = Shards(self._map_store, {ShardId(n): s.engine for n, s in self._stores.items()})
        await self._stack.enter_async_context(self.coordinator)
        if not self.processing:
            for store in self.stores:
                self._loops.append(Relay(store, self.broker, self.cache).run)
                self.every(SWEEP_INTERVAL_S, partial(sweep, store), "idempotency.sweep")
                self.every(SWEEP_INTERVAL_S, partial(forget_taken, store), "inbox.sweep")
        for work in self._at_start:
            await work()
        self._tasks = [asyncio.create_task(_run(loop)) for loop in self._loops]

    async def stop(self) -> None:
        """Ends the loops and closes every connection."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._stack.aclose()
        for store in self.stores:
            await store.engine.dispose()
        for client in (self.redis, *self._masters):
            await client.aclose()
        if not self.processing:
            self.broker.close()

    def _make_stores(self) -> dict[str, Store]:
        settings = self.settings
        if self.spec.storage == "own":
            if settings.database_url is None:
                raise SettingsError("PAWSTAY_DATABASE_URL is missing")
            return {self.spec.name: self._make_store(self.spec.name, settings.database_url)}
        if not settings.shard_urls or settings.shard_map_url is None:
            raise SettingsError("PAWSTAY_SHARD_URLS and PAWSTAY_SHARD_MAP_URL are needed by a sharded service")
        urls: dict[str, str] = dict(settings.shard_urls)
        return {shard: self._make_store(f"{self.spec.name}@{shard}", url) for shard, url in urls.items()}

    def _make_store(self, name: str, url: str) -> Store:
        engine: AsyncEngine = make_engine(url, pool_size=self.settings.pool_size, application=name)
        return Store(name, engine, self.coordinator.resource(name, engine), self.coordinator)


def _log_end(name: str, outcome: str) -> None:
    log.info("transaction", name=name, outcome=outcome)


def _read(variable: str, file: Path, parse: Callable[[str], T]) -> T:
    try:
        return parse(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError, PyJWTError) as error:
        raise SettingsError(f"{variable}: {file} cannot be used: {type(error).__name__}: {error}") from error


async def _run(loop: Loop) -> None:
    """Keeps a loop running: what ends by a bug is logged and started again, for nobody would see it missing."""
    while True:
        try:
            await loop()
            return
        except Exception:
            log.exception("loop.crashed")
            await asyncio.sleep(RESTART_PAUSE_S)
