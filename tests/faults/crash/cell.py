"""A cell: a small PawStay of its own in which one story at a time is told, in separate processes over real servers."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg
from redis.asyncio import Redis

from deploy.embedded.probes import said_ready
from tests.faults.crash.processes import Launcher, as_environment, http_works
from tests.integration.services.order.market import Market, running_market
from tests.support.servers import TestPostgres
from tests.support.system import eventually

WORKERS = {"worker": "order", "messenger": "notification"}
"""The processes that take messages: of which service."""

POOL_SIZE = 4
PAY_WINDOW_S = 900
SHORT_PAY_WINDOW_S = 1
QUIET_WITHIN_S = 40.0
QUIET_POLL_S = 0.08


@dataclass(frozen=True)
class Kind:
    """What a cell is made for: bookings that expire at once, or begins and registers that are sent at once."""

    expiring: bool = False
    early_hints: bool = False


class Eyes:
    """All databases of a cell, read as the administrator reads them: one connection to each, one question at a time."""

    def __init__(self, dsns: Mapping[str, str]) -> None:
        self.dsns = dsns
        self._connections: dict[str, Any] = {}
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def rows(self, database: str, query: str, *values: object) -> list[Any]:
        """The rows of one database."""
        async with self._turns[database]:
            connection = self._connections.get(database)
            if connection is None:
                connection = self._connections[database] = await asyncpg.connect(self.dsns[database])
            return list(await connection.fetch(query, *values))

    async def close(self) -> None:
        """Closes all connections."""
        for connection in self._connections.values():
            await connection.close()


@dataclass
class Cell:
    """One cell while it runs."""

    name: str
    kind: Kind
    market: Market
    launcher: Launcher
    control: Path
    eyes: Eyes
    redis: Redis
    processes: tuple[str, ...]
    ends_seen: dict[str, int] = field(default_factory=dict)

    async def all_work(self) -> None:
        """Returns when every process works. Raises TimeoutError."""
        await asyncio.gather(*(self.launcher.works(f"{self.name}/{process}") for process in self.processes))

    def new_ends(self) -> dict[str, list[int]]:
        """How processes ended since this was asked last."""
        found = {}
        for process in self.processes:
            ends = self.launcher.ends(f"{self.name}/{process}")
            news = ends[self.ends_seen.get(process, 0) :]
            self.ends_seen[process] = len(ends)
            if news:
                found[process] = news
        return found

    def hold_worker(self) -> None:
        """No order expires by its message from now on."""
        self.launcher.hold(f"{self.name}/worker")

    def let_worker_go(self) -> None:
        """Messages are taken again."""
        self.launcher.let_go(f"{self.name}/worker")

    async def quiet(self, *, but: str | None = None, within_s: float = QUIET_WITHIN_S) -> list[str]:
        """Waits until nothing is under way, the queue `but` set aside; what still is when it takes too long."""

        async def settled() -> bool:
            return not [left async for left in self._unfinished(but, first_only=True)]

        try:
            await eventually(settled, timeout_s=within_s, pause_s=QUIET_POLL_S)
        except TimeoutError:
            return [left async for left in self._unfinished(but, first_only=False)]
        return []

    async def _unfinished(self, but: str | None, *, first_only: bool) -> AsyncIterator[str]:
        """Messages that are not handed on, transactions undecided or unsettled, open branches, undo rows and locks.

        One after the other: mostly there is something, and then the other databases need not be asked.
        """
        databases = [name for name in self.eyes.dsns if name not in ("coordinator", "shard_map")]
        looks: list[Callable[[], Awaitable[str]]] = [
            *(partial(self._queued, queue) for queue in WORKERS.values() if queue != but),
            *(partial(self._count, name, "messages in the outbox", OUTBOX) for name in databases if "@" in name),
            partial(self._count, "coordinator", "undecided or unsettled transactions", UNDECIDED),
            *(partial(self._count, name, "undo rows, locks or open branches", OPEN) for name in databases),
        ]
        for look in looks:
            if left := await look():
                yield left
                if first_only:
                    return

    async def _count(self, database: str, what: str, query: str) -> str:
        count = (await self.eyes.rows(database, query))[0]["n"]
        return f"{database}: {count} {what}" if count else ""

    async def _queued(self, queue: str) -> str:
        waiting = await self.redis.hlen(f"dramatiq:{queue}.msgs")  # type: ignore[misc]
        return f"queue {queue}: {waiting} messages" if waiting else ""


OPEN = "SELECT (SELECT count(*) FROM at.locks(NULL)) + (SELECT count(*) FROM at.unsettled(10)) AS n"
OUTBOX = "SELECT count(*) AS n FROM outbox"
UNDECIDED = "SELECT count(*) AS n FROM tc.global_transaction WHERE decision = 0 OR settlement IN (1, 3)"


@asynccontextmanager
async def running_cell(
    name: str, kind: Kind, launcher: Launcher, postgres: TestPostgres, valkey: str, folder: Path
) -> AsyncIterator[Cell]:
    """A cell that works."""
    control, logs = folder / "control", folder / "logs"
    for made in (control, logs):
        made.mkdir(parents=True)
    settings = {
        "pool_size": POOL_SIZE,
        "pay_window_s": SHORT_PAY_WINDOW_S if kind.expiring else PAY_WINDOW_S,
    }

    def start(process: str, serve: str, environment: dict[str, str], ready: Any) -> None:
        order = {
            "name": f"{name}/{process}",
            "serve": serve,
            "environment": environment,
            "log": str(logs / f"{process}.log"),
            "control": str(control),
            "early_hints": kind.early_hints,
        }
        launcher.start(order, ready)

    @asynccontextmanager
    async def outside(process: str, values: dict[str, Any]) -> AsyncIterator[None]:
        if process != "notification":  # people do not read what they are told here; its worker is enough
            port = values["port"]
            start(process, process, as_environment(values), lambda _: http_works(port))
        yield

    async with running_market(postgres, valkey, folder, also=["notification"], outside=outside, **settings) as market:
        system = market.system
        for process, service in WORKERS.items():
            file = control / f"{process}.ready"
            environment = as_environment(system.settings[service].model_dump(mode="json"))
            said = {**environment, "PAWSTAY_READY_FILE": str(file)}
            start(process, "worker", said, lambda pid, file=file: _said_ready(file, pid))  # type: ignore[misc]
        eyes, redis = Eyes(system.dsns), Redis.from_url(system.redis_url)
        processes = ("coordinator", "order", "capacity", "pet", "payment", *WORKERS)
        cell = Cell(name, kind, market, launcher, control, eyes, redis, processes)
        try:
            await cell.all_work()
            yield cell
        finally:
            for process in processes:
                launcher.end(f"{name}/{process}")
            await eyes.close()
            await redis.aclose()


async def _said_ready(file: Path, pid: int) -> bool:
    return await asyncio.to_thread(said_ready, file, pid)
