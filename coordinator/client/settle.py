"""The settle loop: a resource finds out what became of its branches, and follows.

Two tasks a resource. *Following* does what somebody brought news of (the transaction that just ended here, a
nudge, a blocked branch), in batches. *Sweeping* is the safety net: whoever holds the lease asks the coordinator
about every branch that is still open; it is also recovery, orphan scan, and the return after a day away.
Both survive the database and the coordinator being away. What is settled is confirmed by the transport.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import OrderedDict
from collections.abc import Callable
from datetime import timedelta
from random import Random
from uuid import UUID

import structlog
from asyncpg.exceptions import InterfaceError, InternalClientError, PostgresError

from coordinator import resource as at
from coordinator.client.backoff import backoff_s
from coordinator.client.lines import Lines
from coordinator.client.phase_two import SettleConnections, follow_commits, follow_rollback, is_decided
from coordinator.client.quarantine import Quarantines
from coordinator.client.transport import Transport
from coordinator.protocol.errors import CoordinatorError, CoordinatorUnavailable
from coordinator.protocol.ids import ResourceName
from coordinator.protocol.messages import MESSAGES_MAX, Ask, Confirm, Outcome, Settle
from coordinator.protocol.statuses import Decision

FOLLOW_BATCH_MAX = 200
"""Transactions that are forgotten in one call."""

FOLLOW_LINGER_S = 0.04
"""How long the first of a batch of commits waits for company while nobody waits for its rows."""

UNDOS_AT_ONCE_MAX = 2
"""Rollbacks that run at the same time in one resource."""

UNDO_TRIES_MAX = 4
UNDO_BASE_S = 0.01
UNDO_CAP_S = 0.5
"""Tries of an undo that met a concurrent writer, and the back-off between them; the sweep goes on after that."""

SWEEP_INTERVAL_S = 1.0
"""Pause between two sweeps of one process."""

SWEEP_BATCH_MAX = 500
"""Transactions that one sweep asks about."""

SWEEP_CAP_S = 5.0
"""The longest pause between sweeps while the database or the coordinator is away."""

LEASE_TTL_S = 5.0
"""How long the lease of the sweep lasts when its holder dies."""

PURGE_INTERVAL_S = 60.0
"""Pause between two purges of settled branch rows."""

PURGE_GRACE_S = 3600.0
"""How long after its transaction's deadline a settled branch row stays, to recognise what comes late."""

RECENT_MAX = 2_000
"""Settled transactions that are remembered, so that the same news twice costs no second call."""

_log = structlog.get_logger("coordinator.client.settle")

DATABASE_AWAY = (PostgresError, InterfaceError, InternalClientError, OSError, TimeoutError)
"""What talking to a database can raise when it is away, restarting, or busy."""


class Settler:
    """Phase two of one resource in this process. `run` does the work; everything else hands it some."""

    def __init__(
        self,
        resource: ResourceName,
        connections: SettleConnections,
        transport: Transport,
        *,
        owner: str,
        dice: Random,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.resource = resource
        self.lines = Lines(clock)
        self._connections = connections
        self._transport = transport
        self._owner = owner
        self._dice = dice
        self._clock = clock
        # All by the number of the xid: a UUID is hashed by Python code, and this happens in every transaction.
        self._news: OrderedDict[int, Settle] = OrderedDict()
        self._running: dict[int, asyncio.Future[Confirm] | None] = {}
        self._recent: OrderedDict[int, Confirm] = OrderedDict()
        self._awaited: dict[int, list[asyncio.Future[None]]] = {}
        self._thorough: set[int] = set()
        self._news_wake = asyncio.Event()
        self._hurry = asyncio.Event()
        self._sweep_wake = asyncio.Event()
        self._undo_slots = asyncio.Semaphore(UNDOS_AT_ONCE_MAX)
        self._purge_at = 0.0
        self._quarantines = Quarantines(resource, connections, transport, clock)
        self._nudged = False

    def tell(self, settle: Settle) -> None:
        """Brings the news of a decision. A failure is logged and left to the sweep."""
        key = settle.xid.int
        if key in self._recent or key in self._running:
            return
        self._running[key] = None
        if self._awaited:
            for awaited in self._awaited.get(key, ()):
                if not awaited.done():
                    awaited.set_result(None)
        self._news[key] = settle
        self._news_wake.set()

    def follow_soon(self, settle: Settle) -> asyncio.Future[Confirm]:
        """As `tell`; returns what becomes of it."""
        self.tell(settle)
        recent = self._recent.get(settle.xid.int)
        if recent is not None:
            done: asyncio.Future[Confirm] = asyncio.get_running_loop().create_future()
            done.set_result(recent)
            return done
        return self._following(settle.xid)

    async def follow(self, settle: Settle) -> Confirm:
        """Follows a decision now, whatever is remembered, and waits for it: somebody has just met rows of it here.

        Raises asyncpg's errors when the database is away.
        """
        self._recent.pop(settle.xid.int, None)
        self._thorough.add(settle.xid.int)
        future = self.follow_soon(settle)
        self._hurry.set()
        return await asyncio.shield(future)

    async def heard(self, xid: UUID, timeout_s: float) -> bool:
        """Waits until news of `xid` came to this process and was followed; False when none came in `timeout_s`."""
        if not await self._arrived(xid.int, timeout_s):
            return False
        if xid.int in self._running:
            self._hurry.set()
            await asyncio.wait({self._following(xid)}, timeout=timeout_s)
        return True

    async def _arrived(self, key: int, timeout_s: float) -> bool:
        if key in self._recent or key in self._running:
            return True
        # Awaited as it is, not by asyncio.wait: who is first in line shall go on in the turn in which the news came.
        awaited: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = self._awaited.setdefault(key, [])
        waiting.append(awaited)
        try:
            async with asyncio.timeout(timeout_s):
                await awaited
        except TimeoutError:
            return False
        finally:
            waiting.remove(awaited)
            if not waiting and self._awaited.get(key) is waiting:
                del self._awaited[key]
        return True

    def sweep_soon(self) -> None:
        """Makes the next sweep come now, and look whether a person has decided, also where the lease is another's."""
        self._nudged = True
        self._sweep_wake.set()

    async def run(self) -> None:
        """Works until it is cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                for work in (self._follow_for_ever(tasks), self._sweep_for_ever()):
                    tasks.create_task(work)
        finally:
            for future in self._running.values():
                if future is not None and not future.done():
                    future.set_exception(CoordinatorUnavailable("the settle loop was stopped"))
            self._running.clear()
            self._news.clear()
            await self._connections.close()

    # Following

    async def _follow_for_ever(self, tasks: asyncio.TaskGroup) -> None:
        while True:
            await self._news_wake.wait()
            self._news_wake.clear()
            await self._linger()
            while self._news:
                count = min(len(self._news), FOLLOW_BATCH_MAX)
                batch = [self._news.popitem(last=False)[1] for _ in range(count)]
                commits = [settle for settle in batch if settle.decision == Decision.COMMITTED]
                for settle in batch:
                    if settle.decision == Decision.ROLLED_BACK:
                        tasks.create_task(self._follow_rollback(settle.xid))
                if commits:
                    await self._follow_commits(commits)

    async def _linger(self) -> None:
        """Lets a batch of commits gather. A rollback is waited for, and so is what somebody is blocked by."""
        if any(settle.decision == Decision.ROLLED_BACK for settle in self._news.values()):
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FOLLOW_LINGER_S):
                await self._hurry.wait()
        self._hurry.clear()

    async def _follow_commits(self, batch: list[Settle]) -> None:
        try:
            async with self._connections.acquire() as connection:
                followed = await follow_commits(
                    connection, self.resource, batch, self._transport.named_branches, self._thorough
                )
        except (*DATABASE_AWAY, CoordinatorError) as error:
            _log.warning("forget.postponed", resource=self.resource, transactions=len(batch), error=repr(error))
            for settle in batch:
                self._finish(settle.xid, error)
            return
        for confirm in followed.elsewhere:
            self._transport.confirm(confirm)
        for settle, confirm in zip(batch, followed.confirms, strict=True):
            self._finish(settle.xid, confirm)

    async def _follow_rollback(self, xid: UUID) -> None:
        for attempt in range(UNDO_TRIES_MAX):
            if attempt:
                await asyncio.sleep(backoff_s(attempt, UNDO_BASE_S, UNDO_CAP_S, self._dice))
            try:
                async with self._undo_slots, self._connections.acquire() as connection:
                    self._finish(xid, await follow_rollback(connection, self.resource, xid))
                return
            except DATABASE_AWAY as error:
                failure: Exception = error
        _log.warning("undo.postponed", resource=self.resource, xid=str(xid), error=repr(failure))
        self._finish(xid, failure)

    def _following(self, xid: UUID) -> asyncio.Future[Confirm]:
        """What becomes of a decision that is being followed; made only where somebody wants to know."""
        future = self._running[xid.int]
        if future is None:
            future = self._running[xid.int] = asyncio.get_running_loop().create_future()
            future.add_done_callback(_retrieve)
        return future

    def _finish(self, xid: UUID, result: Confirm | Exception) -> None:
        key = xid.int
        future = self._running.pop(key, None)
        self._thorough.discard(key)
        if isinstance(result, Confirm):
            self._recent[key] = result
            if len(self._recent) > RECENT_MAX:
                self._recent.popitem(last=False)
            self._transport.confirm(result)
            if future is not None and not future.done():
                future.set_result(result)
        elif future is not None and not future.done():
            future.set_exception(result)

    # Sweeping

    async def _sweep_for_ever(self) -> None:
        failures = 0
        while True:
            try:
                await self._sweep()
                failures = 0
            except (*DATABASE_AWAY, CoordinatorError) as error:
                if failures == 0:
                    _log.warning("sweep.failed", resource=self.resource, error=repr(error))
                failures += 1
            pause_s = backoff_s(failures, SWEEP_INTERVAL_S, SWEEP_CAP_S, self._dice)
            self._sweep_wake.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._sweep_wake.wait()

    async def _sweep(self) -> None:
        async with self._connections.acquire() as connection:
            leads = await at.claim(connection, self._owner, timedelta(seconds=LEASE_TTL_S))
        nudged, self._nudged = self._nudged, False
        if leads:
            await self._sweep_open()
            await self._quarantines.pulse()
        if leads or nudged:
            await self._quarantines.attend(now=nudged)

    async def _sweep_open(self) -> None:
        async with self._connections.acquire() as connection:
            unsettled = await at.unsettled(connection, SWEEP_BATCH_MAX)
            if self._clock() >= self._purge_at:
                await at.purge(connection, timedelta(seconds=PURGE_GRACE_S))
                self._purge_at = self._clock() + PURGE_INTERVAL_S
        questions = [
            Ask(UUID(int=one.xid.int), int(one.deadline.timestamp() * 1000), self.resource)
            for one in unsettled
            if one.xid.int not in self._running
        ]
        deadlines = {question.xid: question.deadline_ms for question in questions}
        following = []
        for start in range(0, len(questions), MESSAGES_MAX):
            for answer in await self._transport.converse(questions[start : start + MESSAGES_MAX]):
                if isinstance(answer, Outcome) and is_decided(answer.decision):
                    # Here it is open: what is remembered of it is older than this branch (a late phase one).
                    self._recent.pop(answer.xid.int, None)
                    self._thorough.add(answer.xid.int)
                    following.append(self.follow_soon(Settle(answer.xid, answer.decision, answer.branches)))
                elif isinstance(answer, Outcome) and self._quarantines.may_be_forgotten(deadlines[answer.xid]):
                    await self._quarantines.doubt(answer.xid)
        if following:
            await asyncio.wait(following)


def _retrieve(future: asyncio.Future[Confirm]) -> None:
    """Looks at a failure that nobody waits for, so that the loop does not report it as never retrieved."""
    if not future.cancelled():
        future.exception()
