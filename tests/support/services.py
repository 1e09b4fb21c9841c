"""What tests of services look at from outside: messages in the broker, and things that come true in a moment."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, TypeVar

from redis.asyncio import Redis

from services.kit.clock import Clock, system_clock
from services.kit.runtime import Runtime
from services.kit.spec import ServiceSpec
from tests.support.system import System

POLL_S = 0.02
EVENTUALLY_S = 20.0

T = TypeVar("T")


async def eventually(look: Callable[[], Awaitable[T]], *, timeout_s: float = EVENTUALLY_S) -> T:
    """What `look` gives as soon as it is true. Raises AssertionError with the last answer after `timeout_s` seconds."""
    clock = asyncio.get_running_loop().time
    ends = clock() + timeout_s
    seen = await look()
    while not seen and clock() < ends:
        await asyncio.sleep(POLL_S)
        seen = await look()
    assert seen, f"still {seen!r} after {timeout_s} s"
    return seen


async def queued(redis_url: str, queue: str) -> list[dict[str, Any]]:
    """The messages that wait in a Dramatiq queue, as they were encoded."""
    async with redis_of(redis_url) as redis:
        return [json.loads(raw) for raw in await redis.hvals(f"dramatiq:{queue}.msgs")]


@asynccontextmanager
async def redis_of(url: str) -> AsyncIterator[Redis]:
    """A client that is closed at the end."""
    client: Redis = Redis.from_url(url)
    try:
        yield client
    finally:
        await client.aclose()


@asynccontextmanager
async def replica(
    system: System, spec: ServiceSpec, clock: Clock = system_clock, **changes: Any
) -> AsyncIterator[Runtime]:
    """One more running replica of a service, without its HTTP. `changes` are settings."""
    runtime = Runtime(spec, system.settings[spec.name].model_copy(update=changes), clock=clock)
    try:
        await runtime.start()
        yield runtime
    finally:
        await runtime.stop()


def later(**after: float) -> Clock:
    """The machine's clock, moved on by a timedelta's arguments."""
    return lambda: system_clock() + timedelta(**after)
