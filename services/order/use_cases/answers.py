"""Domain values as the wire has them."""

from __future__ import annotations

from uuid import UUID

from services.order.domain import Order
from services.order.repository import IndexRow
from services.order.schemas import OrderItem, StepAnswer


def step_answer(message: str, order: Order, xid: UUID) -> StepAnswer:
    """An order after a step."""
    return StepAnswer(
        message=message,
        order_id=order.id,
        status=int(order.status),
        status_name=order.status.label,
        total_cents=order.total_cents,
        refund_cents=order.refund_cents,
        xid=xid,
    )


def order_item(order: Order) -> OrderItem:
    """An order in its owner's list."""
    return OrderItem(
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
        currency=order.currency,
        created_at=order.created_at,
        pay_by=order.pay_by,
    )


def index_item(row: IndexRow) -> OrderItem:
    """An order in its provider's list."""
    return OrderItem(
        id=row.order_id,
        owner_id=row.owner_id,
        provider_id=row.provider_id,
        listing_id=row.listing_id,
        title=row.title,
        check_in=row.check_in,
        check_out=row.check_out,
        status=int(row.status),
        status_name=row.status.label,
        total_cents=row.total_cents,
        currency=row.currency,
        created_at=row.created_at,
    )
