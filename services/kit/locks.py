"""Redlock (Pottery, over independent Redis masters): a gate for traffic, never the proof of safety.

Whoever holds the gate goes on; whoever cannot get it in time is told to come back. When the masters are away the gate
stands open, with a warning in the log: the conditional updates, the unique claims and the fencing number in PostgreSQL
keep every promise without it.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import structlog
from pottery import AIORedlock, PotteryError
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from services.kit.problems import Problem

LEASE_S = 15
"""Life of a lock whose holder died: longer than a global transaction (10 s)."""
WAIT_S = 5
"""How long a booking stands in line."""
RETRY_PAUSE_MAX_S = 0.2
"""Those in line try again after a random part of this, as Redlock has it: equal pauses would meet again and again."""
MASTER_TIMEOUT_S = 0.2

log = structlog.get_logger(__name__)


def lock_master(url: str) -> Redis:
    """A client for one lock master: no retries and short time-outs, so that a dead master costs little."""
    return Redis.from_url(
        url,
        retry=Retry(NoBackoff(), 0),
        socket_timeout=MASTER_TIMEOUT_S,
        socket_connect_timeout=MASTER_TIMEOUT_S,
    )


class Gate:
    """Locks by name. With no masters every lock is free."""

    def __init__(self, masters: Sequence[Redis], dice: Callable[[], float] = random.random) -> None:
        self._masters = tuple(masters)
        self._dice = dice

    @asynccontextmanager
    async def locked(self, name: str, *, wait_s: float = WAIT_S) -> AsyncIterator[bool]:
        """Holds the lock `name` for the body. Raises a 409 `lock-busy` problem after `wait_s` seconds in line.

        Gives True when the lock is held, False when the gate stands open: then others may be inside too.
        """
        if not self._masters:
            yield False
            return
        lock = AIORedlock(key=name, masters=set(self._masters), auto_release_time=LEASE_S)
        held = await self._take(lock, wait_s)
        if held is False:
            raise Problem(409, "lock-busy", "Too many bookings at once here. Try again.", headers={"Retry-After": "1"})
        try:
            yield bool(held)
        finally:
            if held:
                await asyncio.shield(self._release(lock))

    async def _take(self, lock: AIORedlock, wait_s: float) -> bool | None:
        """True when held, False when somebody else holds it, None when the masters are away."""
        if not await self._quorum_answers():
            log.warning("redlock.away", lock=lock.key, masters=len(self._masters))
            return None
        clock = asyncio.get_running_loop().time
        ends = clock() + wait_s
        while True:
            # Shielded: a cancelled attempt would leave its key in Redis until the lease ends.
            attempt = asyncio.ensure_future(self._attempt(lock))
            try:
                held = await asyncio.shield(attempt)
            except asyncio.CancelledError:
                await asyncio.shield(asyncio.ensure_future(self._give_back(lock, attempt)))
                raise
            if held is not False or clock() >= ends:
                return held
            await asyncio.sleep(self._dice() * RETRY_PAUSE_MAX_S)

    async def _attempt(self, lock: AIORedlock) -> bool | None:
        try:
            return bool(await lock.acquire(blocking=False))
        except (PotteryError, RedisError) as error:
            log.warning("redlock.away", lock=lock.key, error=str(error))
            return None

    async def _give_back(self, lock: AIORedlock, attempt: asyncio.Future[bool | None]) -> None:
        if await attempt:
            await self._release(lock)

    async def _quorum_answers(self) -> bool:
        answers = await asyncio.gather(*(self._ping(master) for master in self._masters))
        return sum(answers) > len(self._masters) // 2

    async def _ping(self, master: Redis) -> bool:
        try:
            return bool(await master.ping())
        except (RedisError, OSError):
            return False

    async def _release(self, lock: AIORedlock) -> None:
        try:
            await lock.release()
        except (PotteryError, RedisError) as error:
            # The lease ended first: somebody else may have been inside. PostgreSQL was the judge all along.
            log.warning("redlock.lease_ended", lock=lock.key, error=str(error))
