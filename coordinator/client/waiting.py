"""What a blocked local transaction does: learns what became of the holder, settles its rows here, and tries again.

The blocked transaction has rolled back before it comes here, so it holds no row lock while it waits. The first of
a line (see lines.py) waits at the coordinator, which sees the wait and rolls the youngest of a cycle back at once.
Those behind it are silent for QUEUE_SILENT_S, then the coordinator sees them too, unless they hold nothing that
anybody could wait for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Container
from dataclasses import dataclass
from random import Random
from uuid import UUID

from coordinator import resource as at
from coordinator.client.backoff import backoff_s
from coordinator.client.context import Initiator, Scope, encloses
from coordinator.client.lines import Place
from coordinator.client.phase_two import is_decided
from coordinator.client.settle import DATABASE_AWAY, Settler
from coordinator.client.transport import Transport
from coordinator.protocol.errors import CoordinatorUnavailable, Deadlock, LockConflict, TransactionRolledBack
from coordinator.protocol.messages import Settle, Wait, WaitAnswer
from coordinator.protocol.statuses import BranchState, Decision, Reason

WAIT_SLICE_S = 2.0
"""How long one question to the coordinator is held open; then the rows are tried again."""

QUEUE_SILENT_S = 0.25
"""How long somebody in a line, but not at its front, holds back before the coordinator hears of the wait."""

LINE_STALL_S = 1.0
"""When a line has not moved for so long, those in it try for themselves: they may want other rows of the holder."""

LOCAL_NEWS_S = 0.25
"""How long to wait for a holder of this process to end here before the coordinator is asked."""

HEIR_NEWS_S = 0.02
"""How long the next in a line waits for the decision of the one before it, before it tries and finds out."""

SERIALIZATION_TRIES_MAX = 20
"""Tries of a local transaction that PostgreSQL broke off (40001, 40P01) without naming a holder."""

SERIALIZATION_BASE_S = 0.002
SERIALIZATION_CAP_S = 0.25
"""Back-off between them, and while no coordinator answers a wait."""

RETRIED_SQLSTATES = frozenset({"40001", "40P01"})


@dataclass(frozen=True)
class Surroundings:
    """What waiting needs: `local` holds the numbers of those begun here and not decided."""

    transport: Transport
    settler: Settler
    local: Container[int]
    clock: Callable[[], float]
    dice: Random


class Patience:
    """How one local transaction deals with being blocked, over all its tries, until `until_s`. Close it at the end."""

    def __init__(self, around: Surroundings, scope: Scope | None, until_s: float) -> None:
        self._around = around
        self._lines = around.settler.lines
        self._scope = scope
        self._until_s = until_s
        self._place: Place | None = None
        self._heard: set[UUID] = set()
        self._quarantined: set[UUID] = set()
        self._broken_off = 0

    def close(self, *, served: bool = False) -> None:
        """Lets the next one in the line try. `served`: this branch has what it waited for, and is the next holder."""
        self._lines.leave(self._place, self._scope.xid if served and self._scope is not None else None)
        self._place = None

    async def after(self, error: BaseException) -> None:
        """Returns when it is worth trying again after `error` (already translated), else raises.

        Raises `error` itself when no retry helps; LockConflict when the time is up, the holder is quarantined, or waits
        itself for this code to end; Deadlock when this transaction was chosen to break a cycle; TransactionRolledBack
        when it was decided meanwhile.
        """
        if isinstance(error, LockConflict) and not isinstance(error, Deadlock) and error.holder is not None:
            if self._left_s() <= 0 or (self._scope is not None and error.holder == self._scope.xid):
                raise error
            if encloses(error.holder):
                raise LockConflict(
                    f"{error}, which encloses this code and cannot end before it", error.holder
                ) from error
            await self._for_holder(error, error.holder)
        elif isinstance(error, LockConflict) or is_broken_off(at.find_postgres_error(error)):
            self._broken_off += 1
            pause_s = backoff_s(self._broken_off, SERIALIZATION_BASE_S, SERIALIZATION_CAP_S, self._around.dice)
            if self._broken_off >= SERIALIZATION_TRIES_MAX or pause_s >= self._left_s():
                raise error
            await asyncio.sleep(pause_s)
        else:
            raise error

    async def _for_holder(self, conflict: LockConflict, holder: UUID) -> None:
        self._place = self._lines.join(holder, self._place)
        if not self._place.leads:
            await self._for_turn(self._place, conflict)
            await self._for_heir()
            return
        # Once only: rows that are still there after the news are not what the news was about.
        if self._holds_nothing() and holder.int in self._around.local and holder not in self._heard:
            self._heard.add(holder)
            if await self._around.settler.heard(holder, min(LOCAL_NEWS_S, self._left_s())):
                return
        try:
            answer = await self._ask(holder)
        except CoordinatorUnavailable:
            # Somebody else may clear the rows meanwhile; the next try will see.
            self._broken_off += 1
            pause_s = backoff_s(self._broken_off, SERIALIZATION_BASE_S, WAIT_SLICE_S, self._around.dice)
            await asyncio.sleep(min(pause_s, max(self._left_s(), 0.0)))
            return
        self._raise_if_decided(answer, conflict)
        if is_decided(answer.holder):
            try:
                confirm = await self._around.settler.follow(Settle(holder, answer.holder, answer.branches))
            except (*DATABASE_AWAY, CoordinatorUnavailable):
                await asyncio.sleep(min(SERIALIZATION_CAP_S, max(self._left_s(), 0.0)))
                return
            if BranchState.QUARANTINED in [state for _, state in confirm.states]:
                self._raise_if_stuck(holder, conflict)

    async def _for_heir(self) -> None:
        """Who comes to the front knows who went before: its decision is near, and a try before that is for nothing."""
        line = None if self._place is None else self._place.line
        if line is None or line.heir is None or line.heir.int not in self._around.local or not self._holds_nothing():
            return
        await self._around.settler.heard(line.heir, min(HEIR_NEWS_S, self._left_s()))

    async def _for_turn(self, place: Place, conflict: LockConflict) -> None:
        """Returns when this place is at the front, or when its line has stalled and it has left it."""
        loop = asyncio.get_running_loop()
        asked: asyncio.Task[WaitAnswer] | None = None
        ask_at_s = loop.time() + QUEUE_SILENT_S
        try:
            while not place.leads:
                if self._left_s() <= 0:
                    raise conflict
                if asked is not None and asked.done():
                    if asked.exception() is None:
                        self._raise_if_decided(asked.result(), conflict)
                    asked, ask_at_s = None, loop.time() + QUEUE_SILENT_S
                line = place.line
                if line is None or loop.time() - line.moved_at_s >= LINE_STALL_S:
                    self.close()
                    return
                if asked is None and loop.time() >= ask_at_s and not self._holds_nothing():
                    asked = asyncio.create_task(self._ask(line.holder))
                waited: set[asyncio.Future[WaitAnswer] | asyncio.Future[None]] = {place.turn}
                if asked is not None:
                    waited.add(asked)
                pause_s = min(self._left_s(), QUEUE_SILENT_S)
                await asyncio.wait(waited, timeout=max(pause_s, 0.0), return_when=asyncio.FIRST_COMPLETED)
        finally:
            if asked is not None:
                asked.cancel()

    async def _ask(self, holder: UUID) -> WaitAnswer:
        wait_s = min(max(self._left_s(), 0.0), WAIT_SLICE_S)
        request = Wait(
            holder=holder,
            holder_deadline_ms=None,
            waiter=None if self._scope is None else self._scope.xid,
            waiter_deadline_ms=None if self._scope is None else self._scope.deadline_ms,
            resource=self._around.settler.resource,
            wait_ms=max(int(wait_s * 1000), 1),
        )
        return await self._around.transport.wait(request)

    def _holds_nothing(self) -> bool:
        """Whether nobody can be waiting for this transaction: then it is part of no cycle."""
        scope = self._scope
        if scope is None:
            return True
        return isinstance(scope, Initiator) and not scope.branches and not scope.called and scope.open_branches <= 1

    def _left_s(self) -> float:
        return self._until_s - self._around.clock()

    def _raise_if_stuck(self, holder: UUID, conflict: LockConflict) -> None:
        """Raises when rows of a quarantined holder are met again: others may have been freed, these are not."""
        if holder in self._quarantined:
            raise LockConflict(f"{conflict}; it is quarantined there, until a person decides", holder) from conflict
        self._quarantined.add(holder)

    def _raise_if_decided(self, answer: WaitAnswer, conflict: LockConflict) -> None:
        if self._scope is None or answer.waiter != Decision.ROLLED_BACK:
            return
        reason = answer.reason or Reason.ASKED
        self._scope.mark_rollback_only(reason)
        message = f"global transaction {self._scope.xid} was rolled back while it waited for {conflict.holder}"
        if reason == Reason.DEADLOCK:
            raise Deadlock(f"{message}: they waited for each other", conflict.holder) from conflict
        raise TransactionRolledBack(f"{message} ({reason})", reason) from conflict


def is_broken_off(error: BaseException | None) -> bool:
    """Whether PostgreSQL broke a transaction off so that it only needs to be run again."""
    return getattr(error, "sqlstate", None) in RETRIED_SQLSTATES
