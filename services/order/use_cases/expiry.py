"""Orders that nobody paid: ended by their message, or by the sweeper when a message was lost."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from coordinator.client import CoordinatorError, Transaction
from services.kit.outbox import taken_once
from services.kit.problems import Problem
from services.order import repository
from services.order.config import EXPIRE_ACTOR, SWEEP_BATCH_MAX, SWEEP_GRACE_S
from services.order.domain import Event, Order, Party, Status, transition
from services.order.domain import IllegalTransition as Illegal
from services.order.use_cases.desk import SYSTEM, Desk, all_of

log = structlog.get_logger(__name__)


class _NotDue(Exception):
    """The order is paid, ended, or still in its window: there is nothing to do."""


class Expiry:
    """Gives back what unpaid orders hold."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def expire(self, order_id: UUID, message_id: UUID | None = None) -> bool:
        """Ends an order whose payment window is over; True when it did. Safe to repeat, and beside a payment.

        A payment that is being decided at this moment is waited for, and wins if it commits.
        """
        try:
            return await self._desk.in_transaction("expire", lambda tx: self._expire(order_id, message_id, tx))
        except _NotDue:
            return False

    async def sweep(self) -> int:
        """Expires what its message has not; returns how many. One order that fails does not keep the others back."""
        desk = self._desk
        before = desk.clock() - timedelta(seconds=SWEEP_GRACE_S)
        ended = 0
        for store in desk.runtime.stores:
            overdue = await store.read(lambda session: repository.unpaid_past(session, before, SWEEP_BATCH_MAX))
            for order_id in overdue:
                try:
                    ended += await self.expire(order_id)
                except (Problem, CoordinatorError) as error:
                    log.warning("order.expiry_failed", order_id=str(order_id), error=str(error))
        return ended

    async def _expire(self, order_id: UUID, message_id: UUID | None, tx: Transaction) -> bool:
        desk = self._desk
        key = desk.key(order_id)

        async def on_order(session: AsyncSession) -> Order:
            if message_id is not None and not await taken_once(session, message_id, EXPIRE_ACTOR):
                raise _NotDue
            order = await repository.take(session, key, SYSTEM.sees)
            now = desk.clock()
            if order is None or now < order.pay_by:
                raise _NotDue
            return await desk.record(
                session,
                order,
                _expired(order),
                event=Event.EXPIRE,
                kind="order_expired",
                actor=SYSTEM,
                at=now,
                xid=tx.xid,
                values={"closed_at": now},
            )

        order = await desk.store_of(key).branch(on_order)
        await all_of(desk.capacity.release(order.id), desk.pets.release(order.id), desk.copy_status(order))
        return True


def _expired(order: Order) -> Status:
    try:
        return transition(order.status, Event.EXPIRE, Party.SYSTEM)
    except Illegal:
        raise _NotDue from None
