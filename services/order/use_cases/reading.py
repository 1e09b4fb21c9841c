"""Looking at orders."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from services.kit.paging import LIMIT_MAX, Page, page_of
from services.kit.problems import not_found
from services.order import errors, repository
from services.order.domain import Order, Status, allowed_events
from services.order.repository import Details, EventRow
from services.order.schemas import EventItem, InternalOrder, LineItem, OrderItem, OrderView, TransactionItem
from services.order.use_cases.answers import index_item, order_item
from services.order.use_cases.desk import Actor, Desk
from sharding import bucket_of_id

TRANSACTIONS_MAX = 100
"""Events of an order that are looked through for its global transactions; an order has a dozen, and its care log."""


class Reading:
    """Lists, views and histories. What is read may belong to a transaction that is not decided yet."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def of_owner(self, owner_id: UUID, status: Status | None, limit: int, cursor: str | None) -> Page[OrderItem]:
        """An owner's orders, newest first."""
        desk = self._desk
        bucket = int(bucket_of_id(owner_id))
        after = desk.runtime.cursors.decode(cursor, tuple[datetime, UUID])
        rows = await desk.runtime.store_of(owner_id).read(
            lambda session: repository.orders_of_owner(session, bucket, owner_id, status, after, limit + 1)
        )
        return page_of([order_item(row) for row in rows], limit, desk.runtime.cursors, _position)

    async def of_provider(
        self, provider_id: UUID, status: Status | None, limit: int, cursor: str | None
    ) -> Page[OrderItem]:
        """A provider's orders, newest first, by the index on the provider's own shard."""
        desk = self._desk
        bucket = int(bucket_of_id(provider_id))
        after = desk.runtime.cursors.decode(cursor, tuple[datetime, UUID])
        rows = await desk.runtime.store_of(provider_id).read(
            lambda session: repository.orders_of_provider(session, bucket, provider_id, status, after, limit + 1)
        )
        return page_of([index_item(row) for row in rows], limit, desk.runtime.cursors, _position)

    async def of_user(self, actor: Actor, user_id: UUID, status: Status | None) -> list[OrderItem]:
        """The seed's list: a person's newest orders, for themselves or an administrator. Raises 404 for others."""
        if actor.person != user_id and not actor.is_admin:
            raise not_found("user", user_id)
        try:
            page = await self.of_owner(user_id, status, LIMIT_MAX, None)
        except (ValueError, OverflowError):
            raise not_found("user", user_id) from None
        return page.items

    async def view(self, actor: Actor, order_id: UUID) -> OrderView:
        """An order with what was agreed and the global transactions that touched it. Raises 404."""
        desk = self._desk
        key = desk.key(order_id)

        async def look(session: AsyncSession) -> tuple[Order, Details, list[EventRow]]:
            order = await repository.find(session, key, actor.sees)
            if order is None:
                raise errors.order_not_found(order_id)
            details = await desk.agreed(session, key)
            return order, details, await repository.events_of(session, key, 0, TRANSACTIONS_MAX)

        order, details, events = await desk.store_of(key).read(look)
        return _view(
            order, details, events, [event.value for event in allowed_events(order.status, actor.party(order))]
        )

    async def events(self, actor: Actor, order_id: UUID, limit: int, cursor: str | None) -> Page[EventItem]:
        """What happened to an order, oldest first. Raises 404."""
        desk = self._desk
        key = desk.key(order_id)
        position = desk.runtime.cursors.decode(cursor, tuple[int])
        after = 0 if position is None else position[0]

        async def look(session: AsyncSession) -> list[EventRow]:
            if await repository.find(session, key, actor.sees) is None:
                raise errors.order_not_found(order_id)
            return await repository.events_of(session, key, after, limit + 1)

        rows = await desk.store_of(key).read(look)
        return page_of([_event(row) for row in rows], limit, desk.runtime.cursors, lambda item: [item.seq])

    async def for_service(self, order_id: UUID) -> InternalOrder:
        """An order as other services need it. Raises 404."""
        desk = self._desk
        key = desk.key(order_id)
        order = await desk.store_of(key).read(lambda session: repository.find(session, key, None))
        if order is None:
            raise errors.order_not_found(order_id)
        return InternalOrder(
            id=order.id,
            owner_id=order.owner_id,
            provider_id=order.provider_id,
            listing_id=order.listing_id,
            status=int(order.status),
            check_in=order.check_in,
            check_out=order.check_out,
            total_cents=order.total_cents,
            closed_at=order.closed_at,
        )


def _position(item: OrderItem) -> tuple[object, object]:
    return item.created_at, item.id


def _event(row: EventRow) -> EventItem:
    return EventItem(
        seq=row.seq,
        at=row.at,
        event=row.event,
        actor_id=row.actor_id,
        actor_role=row.actor_role,
        from_status=None if row.from_status is None else int(row.from_status),
        to_status=int(row.to_status),
        xid=row.xid,
        data=row.data,
    )


def _view(order: Order, details: Details, events: list[EventRow], allowed: list[str]) -> OrderView:
    return OrderView(
        id=order.id,
        owner_id=order.owner_id,
        provider_id=order.provider_id,
        listing_id=order.listing_id,
        title=order.title,
        check_in=order.check_in,
        check_out=order.check_out,
        status=int(order.status),
        status_name=order.status.label,
        total_cents=order.total_cents,
        refund_cents=order.refund_cents,
        currency=order.currency,
        policy=order.policy.value,
        instant_book=order.instant_book,
        time_zone=order.time_zone,
        pay_by=order.pay_by,
        created_at=order.created_at,
        paid_at=order.paid_at,
        confirmed_at=order.confirmed_at,
        checked_in_at=order.checked_in_at,
        checked_out_at=order.checked_out_at,
        closed_at=order.closed_at,
        pets=details.pets,
        pools=details.pools,
        lines=[LineItem(line.label, line.nights, line.amount_cents) for line in details.lines],
        allowed=allowed,
        transactions=[TransactionItem(row.xid, row.event, row.at) for row in events if row.xid is not None],
    )
