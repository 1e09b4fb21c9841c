"""A service that opens global transactions and calls others in them, for tests of those others."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from contextvars import Context
from dataclasses import dataclass
from typing import Any, TypeVar

from coordinator.client import Coordinator, TokenMaker, TransactionRolledBack
from services.kit.clients import Outgoing, ServiceClient
from services.kit.problems import Problem
from tests.support.system import System

TIMEOUT_S = 30.0
TRIES_MAX = 30
POLLS_MAX = 400
POLL_S = 0.02

T = TypeVar("T")


class Undone(Exception):
    """Makes a global transaction roll back."""


@dataclass(frozen=True)
class Caller:
    """Another service, as the one under test sees it."""

    system: System
    coordinator: Coordinator
    client: ServiceClient

    async def call(self, path: str, body: Any = None) -> Any:
        """A call inside the running global transaction. Raises the Problem of the one who is called."""
        return await self.client.call("POST", path, dict, json={} if body is None else body)

    async def once(self, path: str, body: Any = None) -> Any:
        """A call in a global transaction of its own."""
        async with self.coordinator.global_transaction("test", timeout_s=TIMEOUT_S):
            return await self.call(path, body)

    @asynccontextmanager
    async def undone(self) -> AsyncIterator[None]:
        """A global transaction that rolls back at the end of the block."""
        with contextlib.suppress(Undone):
            async with self.coordinator.global_transaction("undone", timeout_s=TIMEOUT_S):
                yield
                raise Undone

    async def until_answered(self, work: Callable[[], Awaitable[str]]) -> str:
        """What `work` gives, or the code of the refusal. Whoever is told to come back, comes back: nothing was done."""
        for _ in range(TRIES_MAX):
            try:
                return await work()
            except Undone:
                return "undone"
            except TransactionRolledBack:
                continue
            except Problem as problem:
                if problem.status != 503 and problem.code != "lock-busy":
                    return problem.code
        raise AssertionError(f"no answer after {TRIES_MAX} tries")

    async def somebody_waits(self) -> None:
        """Returns once the coordinator sees a wait."""
        api = self.system.as_service("coordinator", "admin")
        for _ in range(POLLS_MAX):
            if (await api.get("/v1/statistics")).body["waits"]:
                return
            await asyncio.sleep(POLL_S)
        raise AssertionError("nobody waited")

    async def plain(self, sql: str, *values: Any) -> None:
        """Changes the service's database behind its back, as soon as nothing is locked."""
        await self.system.quiet()
        await self.system.fetch(self.client.name, sql, *values)


@asynccontextmanager
async def caller_of(system: System, service: str, *, name: str = "order") -> AsyncIterator[Caller]:
    """`name`, ready to call `service`."""
    tokens = TokenMaker(name, system.keys[name])
    coordinator = Coordinator([system.urls["coordinator"]], tokens=tokens)
    async with coordinator, Outgoing(tokens) as http:
        yield Caller(system, coordinator, ServiceClient(service, system.urls[service], http))


def apart(work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """A task that does not belong to the global transaction around it."""
    return asyncio.create_task(work, context=Context())
