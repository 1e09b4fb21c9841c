"""The wire: what people and services send and get. Amounts are integer cents, days ``YYYY-MM-DD``, instants UTC."""

from __future__ import annotations

from datetime import date, datetime
from typing import Annotated, Any
from uuid import UUID

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

QUOTE_LENGTH_MAX = 16_384
REASON_LENGTH_MAX = 500
NOTE_LENGTH_MAX = 2_000

Text = Annotated[str, Meta(max_length=NOTE_LENGTH_MAX)]
Short = Annotated[str, Meta(max_length=100)]
Cents = Annotated[int, Meta(ge=0)]


class BookRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """A booking is nothing but an accepted quote: price, pets and days are what boarding signed."""

    quote: Annotated[str, Meta(min_length=1, max_length=QUOTE_LENGTH_MAX)]


class EmptyRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """A step that needs to know nothing more: ``{}``, or no body at all."""


class ReasonRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """A step that may be explained."""

    reason: Annotated[str, Meta(max_length=REASON_LENGTH_MAX)] = ""


class CareRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """One entry of the care log. `day` is today in the listing's time zone where it is left out."""

    pet_id: UUID
    day: date | None = None
    meals: Short = ""
    water: Short = ""
    walk: Short = ""
    toilet: Short = ""
    mood: Short = ""
    medicine: Short = ""
    weight_g: Annotated[int, Meta(gt=0, le=200_000)] | None = None
    incident: bool = False
    note: Text = ""


class QuoteLine(Struct, frozen=True):
    """One line of a quote; `nights` is 0 for what is bought once."""

    label: str
    amount_cents: int
    nights: int | None = 0


class Quote(Struct, frozen=True):
    """The claims of a quote that boarding signed."""

    listing_id: UUID
    provider_id: UUID
    owner_id: UUID
    pet_ids: Annotated[list[UUID], Meta(min_length=1, max_length=10)]
    pools: dict[str, Annotated[int, Meta(gt=0)]]
    check_in: date
    check_out: date
    lines: list[QuoteLine]
    total_cents: Cents
    policy: str
    instant_book: bool
    time_zone: str
    title: str


class BookAnswer(Struct, frozen=True):
    """A booking that waits for its payment."""

    message: str
    order_id: UUID
    status: int
    status_name: str
    total_cents: int
    currency: str
    pay_by: datetime
    xid: UUID


class StepAnswer(Struct, frozen=True):
    """An order after a step. `xid` is the global transaction that did it."""

    message: str
    order_id: UUID
    status: int
    status_name: str
    total_cents: int
    refund_cents: int
    xid: UUID


class OrderItem(Struct, frozen=True):
    """An order in a list."""

    id: UUID
    owner_id: UUID
    provider_id: UUID
    listing_id: UUID
    title: str
    check_in: date
    check_out: date
    status: int
    status_name: str
    total_cents: int
    currency: str
    created_at: datetime
    pay_by: datetime | UnsetType = UNSET


class TransactionItem(Struct, frozen=True):
    """A global transaction that touched an order."""

    xid: UUID
    event: str
    at: datetime


class LineItem(Struct, frozen=True):
    """One line of the price."""

    label: str
    nights: int
    amount_cents: int


class OrderView(Struct, frozen=True):
    """An order with everything that was agreed and the global transactions that touched it."""

    id: UUID
    owner_id: UUID
    provider_id: UUID
    listing_id: UUID
    title: str
    check_in: date
    check_out: date
    status: int
    status_name: str
    total_cents: int
    refund_cents: int
    currency: str
    policy: str
    instant_book: bool
    time_zone: str
    pay_by: datetime
    created_at: datetime
    paid_at: datetime | None
    confirmed_at: datetime | None
    checked_in_at: datetime | None
    checked_out_at: datetime | None
    closed_at: datetime | None
    pets: list[dict[str, Any]]
    pools: dict[str, int]
    lines: list[LineItem]
    allowed: list[str]
    transactions: list[TransactionItem]


class CancellationPreview(Struct, frozen=True):
    """What a cancellation at this moment would give back. `free_until` is local to the listing's time zone."""

    order_id: UUID
    allowed: bool
    policy: str
    time_zone: str
    free_until: str
    total_cents: int
    refund_cents: int
    provider_cents: int


class EventItem(Struct, frozen=True):
    """One thing that happened to an order."""

    seq: int
    at: datetime
    event: str
    actor_id: UUID | None
    actor_role: str
    from_status: int | None
    to_status: int
    xid: UUID | None
    data: dict[str, Any]


class CareItem(Struct, frozen=True):
    """One entry of a care log; `hash` covers the entry and `previous_hash`."""

    seq: int
    at: datetime
    author_id: UUID
    entry: dict[str, Any]
    previous_hash: str
    hash: str


class CarePage(Struct, frozen=True):
    """A page of a care log, oldest first. `chain_intact` says that each hash follows from the one before it."""

    items: list[CareItem]
    chain_intact: bool
    next_cursor: str | None = None


class InternalOrder(Struct, frozen=True):
    """An order as other services see it."""

    id: UUID
    owner_id: UUID
    provider_id: UUID
    listing_id: UUID
    status: int
    check_in: date
    check_out: date
    total_cents: int
    closed_at: datetime | None = None


class Consistency(Struct, frozen=True):
    """What must hold over all shards; every count but the first two must be zero after quiet."""

    orders_checked: int
    orders_by_status: dict[str, int]
    orders_without_index: int
    index_status_differs: int
    index_without_order: int
    unpaid_past_window: int


class Statistics(Struct, frozen=True):
    """Figures for the administrator."""

    orders: int
    orders_by_status: dict[str, int]
    orders_24h: int
    completed_cents: int
    refunded_cents: int
    escrow_cents: int


def to_json(value: Any) -> Any:
    """A struct as plain JSON values."""
    return msgspec.to_builtins(value)
