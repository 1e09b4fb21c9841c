"""Those who wait for a decision: held open, woken by it, and rolled back where they wait in a circle.

Waits stand in a table that all replicas share, so a circle over several replicas is seen by whoever closes it. A
decision wakes its waiters here directly, those at other replicas by NOTIFY; one slow poll for all waits of this replica
is the safety net, because a notification may be lost with its connection.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from uuid import UUID, uuid4

import structlog

from coordinator.protocol.messages import DEADLINE_MAX_MS, Ask, Outcome, Wait, WaitAnswer
from coordinator.protocol.statuses import Decision, Reason
from coordinator.tc.batches import Abort, Batches, Overloaded
from coordinator.tc.config import Limits
from coordinator.tc.core.backoff import Backoff
from coordinator.tc.core.cycles import victims
from coordinator.tc.store import STORE_ERRORS, Connection, Store, StoreUnavailable

RECONNECT = Backoff(first_s=0.1, cap_s=5.0)
DEADLINE_SLACK_S = 0.05
"""A deadline is asked about a little after it, and again after this much while the store's clock is behind."""

log = structlog.get_logger(__name__)


class Waits:
    """The waits that this replica holds open."""

    def __init__(self, store: Store, batches: Batches, limits: Limits, dice: Callable[[], float]) -> None:
        self.deadlocks = 0
        self._store = store
        self._batches = batches
        self._limits = limits
        self._dice = dice
        self._open = 0
        self._watched: dict[UUID, set[asyncio.Event]] = {}
        self._stopping = False

    @property
    def open(self) -> int:
        """How many waits are held open now."""
        return self._open

    async def wait(self, message: Wait, caller: str, left: asyncio.Future[None]) -> WaitAnswer:
        """Answers when the holder or the waiter is decided, after `wait_ms`, or when `left` says that the caller left.

        A wait that closes a cycle rolls the youngest of the cycle back at once. Raises Overloaded or StoreUnavailable.
        """
        if self._open >= self._limits.waits_max:
            raise Overloaded(f"{self._open} waits are open already")
        wait_id, woken = uuid4(), asyncio.Event()
        watched = [xid for xid in (message.holder, message.waiter) if xid is not None]
        for xid in watched:
            self._watched.setdefault(xid, set()).add(woken)
        left.add_done_callback(lambda _: woken.set())
        self._open += 1
        try:
            edges = await self._store.wait_for(
                wait_id, message.holder, message.waiter, message.waiter_deadline_ms, message.resource
            )
            if message.waiter is not None:
                deadlines = {edge.waiter: edge.waiter_deadline_ms for edge in edges}
                await self._break(victims(message.waiter, edges), deadlines, caller)
            return await self._until_decided(message, caller, woken, left)
        finally:
            self._open -= 1
            for xid in watched:
                events = self._watched[xid]
                events.discard(woken)
                if not events:
                    del self._watched[xid]
            await self._forget(wait_id)

    def wake(self, xids: Iterable[UUID]) -> None:
        """These were decided, here or elsewhere."""
        for xid in xids:
            for woken in self._watched.get(xid, ()):
                woken.set()

    def stop(self) -> None:
        """Answers all that wait with what is known, so that the replica can end."""
        self._stopping = True
        self.wake(list(self._watched))

    async def poll(self) -> None:
        """The safety net and the heartbeat of this replica's waits; runs for ever."""
        renewed_at = float("-inf")
        while True:
            await asyncio.sleep(self._limits.wait_poll_s)
            try:
                if self._watched:
                    self.wake(await self._store.decided_of(list(self._watched)))
                if time.monotonic() - renewed_at >= self._limits.wait_renew_s:
                    renewed_at = time.monotonic()
                    if self._watched:
                        await self._store.renew_waits()
            except (StoreUnavailable, *STORE_ERRORS) as error:
                log.warning("waits.poll_failed", error=str(error))

    async def listen(self) -> None:
        """Hears of decisions at other replicas; connects again when the connection breaks; runs for ever."""
        attempt = 0
        while True:
            try:
                connection = await self._store.listen(lambda xid: self.wake([xid]))
            except STORE_ERRORS as error:
                log.warning("waits.listen_failed", error=str(error))
            else:
                attempt = 0
                await _until_broken(connection)
            await asyncio.sleep(RECONNECT.delay_s(attempt, self._dice()) or 0.0)
            attempt += 1

    async def _break(self, chosen: list[UUID], deadlines: dict[UUID, int | None], caller: str) -> None:
        if not chosen:
            return
        self.deadlocks += len(chosen)
        for victim in chosen:
            log.info("transaction.deadlock", xid=str(victim), cycle=[str(xid) for xid in deadlines])
        # A victim that the store does not know yet (its Begin was lost) is recorded with its own deadline.
        await self._batches.submit(
            [Abort(victim, deadlines.get(victim) or DEADLINE_MAX_MS, Reason.DEADLOCK) for victim in chosen], caller
        )

    async def _until_decided(
        self, message: Wait, caller: str, woken: asyncio.Event, left: asyncio.Future[None]
    ) -> WaitAnswer:
        until = time.monotonic() + min(message.wait_ms / 1000, self._limits.wait_max_s)
        while True:
            woken.clear()
            holder, waiter = await self._ask(message, caller)
            rest_s = until - time.monotonic()
            over = rest_s <= 0 or left.done() or self._stopping
            if over or holder.decision != Decision.UNDECIDED or waiter.decision != Decision.UNDECIDED:
                reason = waiter.reason if waiter.decision == Decision.ROLLED_BACK else holder.reason
                return WaitAnswer(holder.decision, waiter.decision, reason, holder.branches)
            try:
                await asyncio.wait_for(woken.wait(), min(rest_s, _deadline_s(message)))
            except TimeoutError:
                continue

    async def _ask(self, message: Wait, caller: str) -> tuple[Outcome, Outcome]:
        """The decisions of holder and waiter; past a deadline they are recorded as rolled back here."""
        # Who does not know the deadline must not decide by it: with the last instant, an unknown holder stays unknown.
        questions = [Ask(message.holder, _or_last(message.holder_deadline_ms), message.resource)]
        if message.waiter is not None:
            questions.append(Ask(message.waiter, _or_last(message.waiter_deadline_ms), message.resource))
        answers = [answer for answer in await self._batches.submit(questions, caller) if isinstance(answer, Outcome)]
        undecided = Outcome(message.waiter or message.holder, int(Decision.UNDECIDED))
        return answers[0], answers[1] if len(answers) > 1 else undecided

    async def _forget(self, wait_id: UUID) -> None:
        try:
            await asyncio.shield(self._store.forget_wait(wait_id))
        except StoreUnavailable:
            log.info("waits.left", wait_id=str(wait_id), expires_s=self._limits.wait_lease_s)


async def _until_broken(connection: Connection) -> None:
    closed = asyncio.Event()
    connection.add_termination_listener(lambda _: closed.set())
    try:
        # One that broke before the listener was set would never say so.
        if not connection.is_closed():
            await closed.wait()
    finally:
        connection.terminate()


def _or_last(deadline_ms: int | None) -> int:
    return DEADLINE_MAX_MS if deadline_ms is None else deadline_ms


def _deadline_s(message: Wait) -> float:
    """Seconds until the nearer of the two deadlines should be asked about."""
    nearer = min(_or_last(message.holder_deadline_ms), _or_last(message.waiter_deadline_ms))
    return max(nearer / 1000 - time.time(), 0.0) + DEADLINE_SLACK_S
