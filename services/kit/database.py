"""A service's databases as resources of global transactions.

Work is a function of one session; it runs in one local transaction and is run again when it meets a lock, so it must
have no effect outside the session. Application code never commits: the store does, at one edge.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from coordinator.client import Coordinator, Resource, branch_connect_args

CONNECT_TIMEOUT_S = 5
STATEMENT_TIMEOUT_MS = 10_000
POOL_WAIT_S = 10

T = TypeVar("T")
Work = Callable[[AsyncSession], Awaitable[T]]


def make_engine(url: str, *, pool_size: int, application: str) -> AsyncEngine:
    """An engine over asyncpg in which entering a branch costs no round trip of its own."""
    arguments = dict(branch_connect_args())
    arguments["timeout"] = CONNECT_TIMEOUT_S
    arguments["server_settings"] = {
        "application_name": application,
        "statement_timeout": str(STATEMENT_TIMEOUT_MS),
        "timezone": "UTC",
    }
    return create_async_engine(
        make_url(url).set(drivername="postgresql+asyncpg"),
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=POOL_WAIT_S,
        pool_pre_ping=False,
        connect_args=arguments,
    )


@dataclass(frozen=True)
class Store:
    """One database of a service."""

    name: str
    engine: AsyncEngine
    resource: Resource[AsyncSession]
    coordinator: Coordinator

    async def branch(self, work: Work[T], kind: type[T] | None = None) -> T:
        """Runs `work` as a branch of the running global transaction.

        With `kind` its answer is kept with the branch, so that a repeated call gets it again; without, the repeat is a
        409 `branch-repeated`.
        """
        return await self.coordinator.run_branch(self.resource, work, result_type=kind)

    async def local(self, work: Work[T]) -> T:
        """Runs `work` in a local transaction of its own; waits for whoever locks its rows."""
        return await self.coordinator.run_local(self.resource, work)

    async def read(self, work: Work[T]) -> T:
        """Runs `work` for reading only. It sees what undecided transactions wrote, as AT mode has it."""
        async with self.session() as session:
            return await work(session)

    @asynccontextmanager
    async def session(self) -> AsyncIterator[AsyncSession]:
        """A session that is rolled back at the end."""
        async with AsyncSession(self.engine, expire_on_commit=False) as session:
            yield session
