"""What happens to a paid order: confirmed, rejected, checked in and out, cancelled."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from coordinator.client import Transaction
from services.kit.idempotency import Keyed, Reply, keyed, once
from services.order import errors, repository
from services.order.domain import (
    Event,
    Order,
    Split,
    free_until,
    may_check_in,
    split_of_cancellation,
    transition,
)
from services.order.domain import IllegalTransition as Illegal
from services.order.schemas import CancellationPreview, ReasonRequest, StepAnswer
from services.order.use_cases.answers import step_answer
from services.order.use_cases.desk import Actor, Desk, all_of

Step = Callable[[Keyed, Transaction], Awaitable[Reply]]


class Changes:
    """The steps of an order after its payment."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def confirm(self, actor: Actor, order_id: UUID) -> StepAnswer:
        """The provider accepts. Raises 404, 409 `illegal-transition`."""
        return await self._plain(actor, order_id, Event.CONFIRM, "order_confirmed", "confirmed_at", "订单已确认")

    async def check_in(self, actor: Actor, order_id: UUID) -> StepAnswer:
        """The pets have come. Raises 404, 409 `illegal-transition`, `too-early`."""
        return await self._plain(actor, order_id, Event.CHECK_IN, "check_in", "checked_in_at", "宠物已入住")

    async def reject(self, actor: Actor, order_id: UUID, request: ReasonRequest, key: str | None) -> Reply:
        """The provider declines: all money, nights and pets are free again. Raises 404, 409 `illegal-transition`."""
        return await self._once(
            actor, order_id, "reject", request, key, lambda kept, tx: self._reject(kept, tx, actor, order_id, request)
        )

    async def cancel(self, actor: Actor, order_id: UUID, request: ReasonRequest, key: str | None) -> Reply:
        """Owner, provider or administrator end the order before its stay; the policy divides the money.

        Raises 404, 409 `illegal-transition`.
        """
        return await self._once(
            actor, order_id, "cancel", request, key, lambda kept, tx: self._cancel(kept, tx, actor, order_id, request)
        )

    async def check_out(self, actor: Actor, order_id: UUID, key: str | None) -> Reply:
        """The pets go home and the provider is paid: one fact. Raises 404, 409 `illegal-transition`."""
        return await self._once(
            actor, order_id, "check-out", {}, key, lambda kept, tx: self._check_out(kept, tx, actor, order_id)
        )

    async def preview(self, actor: Actor, order_id: UUID) -> CancellationPreview:
        """What `cancel` would give back at this moment. Raises 404."""
        desk = self._desk
        key = desk.key(order_id)

        async def look(session: AsyncSession) -> tuple[Order, Split]:
            order = await repository.find(session, key, actor.sees)
            if order is None:
                raise errors.order_not_found(order_id)
            details = await desk.agreed(session, key)
            return order, split_of_cancellation(order, details.lines, actor.party(order), desk.local_now(order))

        order, split = await desk.store_of(key).read(look)
        try:
            transition(order.status, Event.CANCEL, actor.party(order))
            allowed = True
        except Illegal:
            allowed = False
        return CancellationPreview(
            order_id=order.id,
            allowed=allowed,
            policy=order.policy.value,
            time_zone=order.time_zone,
            free_until=free_until(order.policy, order.check_in).isoformat(),
            total_cents=order.total_cents,
            refund_cents=split.owner_cents if allowed else 0,
            provider_cents=split.provider_cents if allowed else 0,
        )

    async def _plain(
        self, actor: Actor, order_id: UUID, event: Event, kind: str, column: str, message: str
    ) -> StepAnswer:
        """A step that moves nothing but the order itself and its copy."""
        desk = self._desk
        key = desk.key(order_id)

        async def body(tx: Transaction) -> StepAnswer:
            async def on_order(session: AsyncSession) -> Order:
                order, party = await desk.take(session, key, actor)
                to = desk.next_status(order, event, party)
                if event is Event.CHECK_IN:
                    self._check_day(order)
                now = desk.clock()
                return await desk.record(
                    session, order, to, event=event, kind=kind, actor=actor, at=now, xid=tx.xid, values={column: now}
                )

            order = await desk.store_of(key).branch(on_order)
            await desk.copy_status(order)
            return step_answer(message, order, tx.xid)

        return await desk.in_transaction(event.value, body)

    def _check_day(self, order: Order) -> None:
        today = self._desk.local_now(order).date()
        early_days = self._desk.runtime.settings.early_check_in_days
        if not may_check_in(order.check_in, today, early_days):
            raise errors.too_early(order.check_in - timedelta(days=early_days), today)

    async def _once(
        self, actor: Actor, order_id: UUID, step: str, request: object, key: str | None, body: Step
    ) -> Reply:
        desk = self._desk
        order_key = desk.key(order_id)
        if actor.person is None:
            raise ValueError("a step with an Idempotency-Key is a person's")
        wanted = keyed(actor.person, key, "POST", f"/api/orders/{order_id}/{step}", request, bucket=order_key.bucket)

        async def work(kept: Keyed) -> Reply:
            return await desk.in_transaction(step, lambda tx: body(kept, tx))

        return await once(desk.store_of(order_key), wanted, work)

    async def _reject(
        self, kept: Keyed, tx: Transaction, actor: Actor, order_id: UUID, request: ReasonRequest
    ) -> Reply:
        desk = self._desk
        key = desk.key(order_id)

        async def on_order(session: AsyncSession) -> tuple[Order, Reply]:
            order, party = await desk.take(session, key, actor)
            to = desk.next_status(order, Event.REJECT, party)
            now = desk.clock()
            after = await desk.record(
                session,
                order,
                to,
                event=Event.REJECT,
                kind="order_rejected",
                actor=actor,
                at=now,
                xid=tx.xid,
                values={"closed_at": now, "refund_cents": order.total_cents},
                data={"reason": request.reason, "refund_cents": order.total_cents},
            )
            return after, await kept.keep(session, 200, step_answer("订单已拒绝", after, tx.xid))

        order, reply = await desk.store_of(key).branch(on_order)
        await self._undo_booking(order, Split(order.total_cents, 0), was_paid=True)
        return reply

    async def _cancel(
        self, kept: Keyed, tx: Transaction, actor: Actor, order_id: UUID, request: ReasonRequest
    ) -> Reply:
        desk = self._desk
        key = desk.key(order_id)

        async def on_order(session: AsyncSession) -> tuple[Order, bool, Split, Reply]:
            order, party = await desk.take(session, key, actor)
            details = await repository.find_details(session, key)
            split = split_of_cancellation(order, details.lines, party, desk.local_now(order))
            to = desk.next_status(order, Event.CANCEL, party, refund_cents=split.owner_cents)
            now = desk.clock()
            after = await desk.record(
                session,
                order,
                to,
                event=Event.CANCEL,
                kind="order_cancelled",
                actor=actor,
                at=now,
                xid=tx.xid,
                values={"closed_at": now, "refund_cents": split.owner_cents},
                data={
                    "reason": request.reason,
                    "refund_cents": split.owner_cents,
                    "provider_cents": split.provider_cents,
                },
            )
            reply = await kept.keep(session, 200, step_answer("订单已取消", after, tx.xid))
            return after, order.is_paid, split, reply

        order, was_paid, split, reply = await desk.store_of(key).branch(on_order)
        await self._undo_booking(order, split, was_paid=was_paid)
        return reply

    async def _check_out(self, kept: Keyed, tx: Transaction, actor: Actor, order_id: UUID) -> Reply:
        desk = self._desk
        key = desk.key(order_id)

        async def on_order(session: AsyncSession) -> tuple[Order, Reply]:
            order, party = await desk.take(session, key, actor)
            to = desk.next_status(order, Event.CHECK_OUT, party)
            now = desk.clock()
            after = await desk.record(
                session,
                order,
                to,
                event=Event.CHECK_OUT,
                kind="order_completed",
                actor=actor,
                at=now,
                xid=tx.xid,
                values={"checked_out_at": now, "closed_at": now},
                data={"settled_cents": order.total_cents},
            )
            return after, await kept.keep(session, 200, step_answer("寄养已完成", after, tx.xid))

        order, reply = await desk.store_of(key).branch(on_order)
        steps: list[Awaitable[object]] = [
            desk.payments.settle(order_id=order.id, provider_id=order.provider_id, amount_cents=order.total_cents),
            desk.copy_status(order),
        ]
        today = desk.local_now(order).date()
        if today < order.check_out:
            # An early pick-up keeps the price and the nights, but the pets may sleep elsewhere tonight.
            steps.append(desk.pets.release(order.id, since=today))
        await all_of(*steps)
        return reply

    async def _undo_booking(self, order: Order, split: Split, *, was_paid: bool) -> None:
        desk = self._desk
        steps: list[Awaitable[object]] = [
            desk.capacity.release(order.id),
            desk.pets.release(order.id),
            desk.copy_status(order),
        ]
        if was_paid:
            steps.append(
                desk.payments.refund(
                    order_id=order.id,
                    owner_id=order.owner_id,
                    amount_cents=split.owner_cents,
                    provider_id=order.provider_id if split.provider_cents else None,
                    provider_cents=split.provider_cents,
                )
            )
        await all_of(*steps)
