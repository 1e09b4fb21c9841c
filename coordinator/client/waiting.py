"""What a blocked local transaction does: learns what became of the holder, settles its rows here, and tries again.

The blocked transaction has rolled back before it comes here, so it holds no row lock while it waits. The
coordinator sees every wait; when two transactions wait for each other it rolls the younger one back at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from random import Random

from coordinator import resource as at
from coordinator.client.backoff import backoff_s
from coordinator.client.context import Scope
from coordinator.client.phase_two import is_decided
from coordinator.client.settle import DATABASE_AWAY, Settler
from coordinator.client.transport import Transport
from coordinator.protocol.errors import CoordinatorUnavailable, Deadlock, LockConflict, TransactionRolledBack
from coordinator.protocol.ids import ResourceName
from coordinator.protocol.messages import Settle, Wait, WaitAnswer
from coordinator.protocol.statuses import Decision, Reason

WAIT_SLICE_S = 2.0
"""How long one question to the coordinator is held open; then the rows are tried again."""

SERIALIZATION_TRIES_MAX = 20
"""Tries of a local transaction that PostgreSQL broke off (40001, 40P01) without naming a holder."""

SERIALIZATION_BASE_S = 0.002
SERIALIZATION_CAP_S = 0.25
"""Back-off between them, and while no coordinator answers a wait."""

RETRIED_SQLSTATES = frozenset({"40001", "40P01"})


class Patience:
    """How one local transaction deals with being blocked, over all its tries, until `until_s`."""

    def __init__(
        self,
        transport: Transport,
        settler: Settler,
        resource: ResourceName,
        scope: Scope | None,
        until_s: float,
        clock: Callable[[], float],
        dice: Random,
    ) -> None:
        self._transport = transport
        self._settler = settler
        self._resource = resource
        self._scope = scope
        self._until_s = until_s
        self._clock = clock
        self._dice = dice
        self._broken_off = 0

    async def after(self, error: BaseException) -> None:
        """Returns when it is worth trying again after `error` (already translated), else raises.

        Raises `error` itself when no retry helps, LockConflict when the time is up, Deadlock when this
        transaction was chosen to break a cycle, TransactionRolledBack when it was decided meanwhile.
        """
        if isinstance(error, LockConflict) and not isinstance(error, Deadlock) and error.holder is not None:
            if self._clock() >= self._until_s:
                raise error
            await self._for_holder(error)
            return
        postgres_error = at.find_postgres_error(error)
        if not is_broken_off(postgres_error) and not isinstance(error, LockConflict):
            raise error
        self._broken_off += 1
        pause_s = backoff_s(self._broken_off, SERIALIZATION_BASE_S, SERIALIZATION_CAP_S, self._dice)
        if self._broken_off >= SERIALIZATION_TRIES_MAX or self._clock() + pause_s >= self._until_s:
            raise error
        await asyncio.sleep(pause_s)

    async def _for_holder(self, conflict: LockConflict) -> None:
        assert conflict.holder is not None  # noqa: S101 - the caller has looked
        if self._scope is not None and conflict.holder == self._scope.xid:
            raise conflict
        left_s = max(self._until_s - self._clock(), 0.0)
        request = Wait(
            holder=conflict.holder,
            holder_deadline_ms=None,
            waiter=None if self._scope is None else self._scope.xid,
            waiter_deadline_ms=None if self._scope is None else self._scope.deadline_ms,
            resource=self._resource,
            wait_ms=max(int(min(left_s, WAIT_SLICE_S) * 1000), 1),
        )
        try:
            answer = await self._transport.wait(request)
        except CoordinatorUnavailable:
            # Somebody else may clear the rows meanwhile; the next try will see.
            self._broken_off += 1
            pause_s = backoff_s(self._broken_off, SERIALIZATION_BASE_S, WAIT_SLICE_S, self._dice)
            await asyncio.sleep(min(pause_s, left_s))
            return
        self._raise_if_decided(answer, conflict)
        if is_decided(answer.holder):
            try:
                await self._settler.follow(Settle(conflict.holder, answer.holder, answer.branches))
            except DATABASE_AWAY:
                await asyncio.sleep(min(SERIALIZATION_CAP_S, left_s))

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
