"""One replica of the coordinator: its parts, wired together, and their life."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from uuid import uuid4

import structlog

from coordinator.protocol.messages import Answer, Ask, Confirm, Decide, Outcome, Request
from coordinator.protocol.statuses import Decision
from coordinator.protocol.tokens import TokenMaker
from coordinator.tc.alerts import Alerts
from coordinator.tc.batches import Batches
from coordinator.tc.config import ISSUER, CoordinatorSettings
from coordinator.tc.core.backoff import Backoff
from coordinator.tc.desk import Desk
from coordinator.tc.nudges import Nudger
from coordinator.tc.recovery import Recovery
from coordinator.tc.store import STORE_ERRORS, Ruled, Store, StoreTooNew
from coordinator.tc.waits import Waits

OPEN_RETRY = Backoff(first_s=0.1, cap_s=5.0)
LOOP_RETRY = Backoff(first_s=0.1, cap_s=5.0)

log = structlog.get_logger(__name__)


class Replica:
    """Equal to all others on the same store, and without state that another would miss."""

    def __init__(self, settings: CoordinatorSettings) -> None:
        limits = settings.limits
        dice = random.SystemRandom().random
        self.limits = limits
        self.replica_id = uuid4()
        self.store = Store(settings.database_url, self.replica_id, limits)
        self.alerts = Alerts(self.store, limits, settings.alert_webhook_url, settings.alert_webhook_secret, dice)
        self.batches = Batches(self.store, limits, self._decided, self._confirmed, self.alerts.diverged, dice)
        self.nudger = Nudger(self.store, TokenMaker(ISSUER, settings.signing_key), limits, self.batches.submit)
        self.waits = Waits(self.store, self.batches, limits, dice)
        self.desk = Desk(self.store, self.batches, self.nudger, self.alerts, limits)
        self.recovery = Recovery(self.store, limits, self._decided, self.nudger.push, self.alerts, dice)
        self._dice = dice
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Starts everything. Where the store does not answer for a while, goes on opening it in the background."""
        await self.nudger.open()
        await self.alerts.open()
        opened = asyncio.Event()
        self._tasks = [asyncio.create_task(self._live(opened), name="replica")]
        opening = asyncio.create_task(opened.wait())
        done, _ = await asyncio.wait(
            {opening, self._tasks[0]}, timeout=self.limits.start_wait_s, return_when=asyncio.FIRST_COMPLETED
        )
        if self._tasks[0] in done:
            self._tasks[0].result()  # a store that can never be used ends the start
        opening.cancel()

    async def stop(self) -> None:
        """Answers who waits, finishes what is pending, and closes."""
        self.waits.stop()
        await self.batches.drain(self.limits.stop_wait_s)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.nudger.close()
        await self.alerts.close()
        await self.store.close()

    async def messages(self, requests: Sequence[Request], caller: str) -> list[Answer]:
        """The answers to `requests`. After a rollback the resources get a moment to undo, so that who hears of it finds
        the rows restored; a short one where somebody else's question travels in the same list."""
        answers = await self.batches.submit(requests, caller)
        undoing = [
            request.xid
            for request, answer in zip(requests, answers, strict=True)
            if isinstance(request, Decide) and isinstance(answer, Outcome) and answer.decision == Decision.ROLLED_BACK
        ]
        if undoing:
            shared = any(
                isinstance(request, Ask) or (isinstance(request, Decide) and request.commit) for request in requests
            )
            alone = not shared or len(requests) == 1
            await self.nudger.undone(undoing, self.limits.nudge_wait_s if alone else self.limits.nudge_wait_shared_s)
        return answers

    def statistics(self) -> dict[str, int]:
        """Figures of this replica since its start."""
        return {
            "messages": self.batches.messages,
            "batches": self.store.batches_written,
            "nudges_sent": self.nudger.sent,
            "nudges_failed": self.nudger.failed,
            "nudges_dropped": self.nudger.dropped,
            "waits_open": self.waits.open,
            "deadlocks": self.waits.deadlocks,
            "timed_out": self.recovery.timed_out,
            "alerts_opened": sum(self.alerts.opened.values()),
            "webhooks_sent": self.alerts.sent,
            "webhooks_failed": self.alerts.failed,
        }

    def _decided(self, fresh: list[Ruled]) -> None:
        self.waits.wake(ruled.xid for ruled in fresh)
        self.nudger.push(fresh)

    def _confirmed(self, messages: Sequence[object]) -> None:
        self.nudger.confirmed(message for message in messages if isinstance(message, Confirm))

    async def _live(self, opened: asyncio.Event) -> None:
        await self._open()
        opened.set()
        async with asyncio.TaskGroup() as group:
            for loop in (self.batches.run, self.waits.poll, self.waits.listen, self.recovery.run, self.alerts.deliver):
                group.create_task(self._keep(loop), name=loop.__qualname__)

    async def _keep(self, loop: Callable[[], Awaitable[None]]) -> None:
        """Runs a loop for ever. A bug in one round is logged and must not leave the replica answering without it."""
        attempt = 0
        while True:
            try:
                await loop()
            except Exception as error:
                log.exception("replica.loop_failed", loop=loop.__qualname__, exc_info=error)
            await asyncio.sleep(LOOP_RETRY.delay_s(attempt, self._dice()) or 0.0)
            attempt += 1

    async def _open(self) -> None:
        attempt = 0
        while True:
            try:
                await self.store.open()
                return
            except StoreTooNew:
                raise
            except STORE_ERRORS as error:
                delay_s = OPEN_RETRY.delay_s(attempt, self._dice()) or 0.0
                attempt += 1
                log.warning("store.unavailable", error=f"{type(error).__name__}: {error}", retry_s=round(delay_s, 3))
                await asyncio.sleep(delay_s)
