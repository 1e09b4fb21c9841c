"""Orders in one shard, through a session. Nothing here commits; every write may be undone with its branch.

A key of an order is (bucket, id, created_at); the last two parts of it are read from the id, so that a look-up touches
one partition.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    RowMapping,
    and_,
    cast,
    func,
    insert,
    or_,
    select,
    text,
    true,
    tuple_,
    update,
)
from sqlalchemy.ext.asyncio import AsyncSession

from services.order.domain import Line, Order, Party, Policy, Status
from services.order.tables import care_logs, order_details, order_events, orders, provider_orders


@dataclass(frozen=True)
class OrderKey:
    """The whole primary key of an order."""

    bucket: int
    id: UUID
    created_at: datetime


@dataclass(frozen=True)
class Details:
    """What was agreed, as it was at booking."""

    pets: list[dict[str, Any]]
    lines: list[Line]
    pools: dict[str, int]


@dataclass(frozen=True)
class EventRow:
    """One thing that happened to an order."""

    seq: int
    at: datetime
    event: str
    actor_id: UUID | None
    actor_role: str
    from_status: Status | None
    to_status: Status
    xid: UUID | None
    data: dict[str, Any]


@dataclass(frozen=True)
class CareRow:
    """One entry of a care log."""

    seq: int
    at: datetime
    author_id: UUID
    entry: dict[str, Any]
    previous_hash: bytes
    hash: bytes


@dataclass(frozen=True)
class IndexRow:
    """An order as the provider's index has it."""

    order_id: UUID
    provider_id: UUID
    created_at: datetime
    owner_id: UUID
    listing_id: UUID
    title: str
    check_in: Any
    check_out: Any
    status: Status
    total_cents: int
    currency: str


@dataclass(frozen=True)
class OrderState:
    """What the consistency check needs of an order."""

    bucket: int
    id: UUID
    provider_id: UUID
    status: Status


@dataclass(frozen=True)
class Totals:
    """One shard's orders of one status."""

    status: Status
    orders: int
    recent: int
    total_cents: int
    refund_cents: int


Place = tuple[int, UUID]
"""(bucket, order id): where a pass over a shard has come."""

Position = tuple[datetime, UUID]
"""Where a page ends: the last row's (created_at, id)."""


async def insert_order(session: AsyncSession, order: Order, details: Details) -> None:
    """Writes a new order with its details."""
    await session.execute(insert(orders), [asdict(order)])
    row = {
        "bucket": order.bucket,
        "order_id": order.id,
        "pets": details.pets,
        "lines": [asdict(line) for line in details.lines],
        "pools": details.pools,
    }
    await session.execute(insert(order_details), [row])


async def find(session: AsyncSession, key: OrderKey, person: UUID | None) -> Order | None:
    """The order, if it is one of `person`'s (or anybody's, for None). It may be of an undecided transaction."""
    row = (await session.execute(select(orders).where(_is(key), _seen_by(person)))).mappings().first()
    return None if row is None else _order(row)


async def take(session: AsyncSession, key: OrderKey, person: UUID | None) -> Order | None:
    """Takes the order for a change: raises its version, and holds its global lock until the transaction is decided.

    A decision about an order begins here: what it reads can no longer be undone by somebody else.
    """
    statement = update(orders).where(_is(key), _seen_by(person)).values(version=orders.c.version + 1).returning(orders)
    row = (await session.execute(statement)).mappings().first()
    return None if row is None else _order(row)


async def change(session: AsyncSession, key: OrderKey, values: Mapping[str, Any]) -> None:
    """Sets columns of an order that was taken before in this session."""
    await session.execute(update(orders).where(_is(key)).values(dict(values)))


async def find_details(session: AsyncSession, key: OrderKey) -> Details:
    """What was agreed. Raises LookupError when there is no such order."""
    where = and_(order_details.c.bucket == key.bucket, order_details.c.order_id == key.id)
    row = (await session.execute(select(order_details).where(where))).mappings().first()
    if row is None:
        raise LookupError(f"order {key.id} has no details")
    return Details(row["pets"], [Line(**line) for line in row["lines"]], row["pools"])


async def append_event(
    session: AsyncSession,
    order: Order,
    *,
    at: datetime,
    event: str,
    actor_id: UUID | None,
    actor_role: Party,
    from_status: Status | None,
    to_status: Status,
    xid: UUID | None,
    data: Mapping[str, Any],
) -> None:
    """Notes what happened to an order that was taken (or made) in this session: its version numbers the event."""
    row = {
        "bucket": order.bucket,
        "order_id": order.id,
        "seq": order.version,
        "at": at,
        "event": event,
        "actor_id": actor_id,
        "actor_role": actor_role.value,
        "from_status": from_status,
        "to_status": to_status,
        "xid": xid,
        "data": dict(data),
    }
    await session.execute(insert(order_events), [row])


async def events_of(session: AsyncSession, key: OrderKey, after_seq: int, limit: int) -> list[EventRow]:
    """The events after `after_seq`, oldest first, at most `limit`."""
    where = and_(order_events.c.bucket == key.bucket, order_events.c.order_id == key.id, order_events.c.seq > after_seq)
    statement = select(order_events).where(where).order_by(order_events.c.seq).limit(limit)
    return [
        EventRow(
            seq=row["seq"],
            at=row["at"],
            event=row["event"],
            actor_id=row["actor_id"],
            actor_role=row["actor_role"],
            from_status=None if row["from_status"] is None else Status(row["from_status"]),
            to_status=Status(row["to_status"]),
            xid=row["xid"],
            data=row["data"],
        )
        for row in (await session.execute(statement)).mappings()
    ]


async def orders_of_owner(
    session: AsyncSession, bucket: int, owner_id: UUID, status: Status | None, after: Position | None, limit: int
) -> list[Order]:
    """An owner's orders, newest first, at most `limit`."""
    statement = select(orders).where(orders.c.bucket == bucket, orders.c.owner_id == owner_id)
    if status is not None:
        statement = statement.where(orders.c.status == status)
    if after is not None:
        statement = statement.where(tuple_(orders.c.created_at, orders.c.id) < after)
    statement = statement.order_by(orders.c.created_at.desc(), orders.c.id.desc()).limit(limit)
    return [_order(row) for row in (await session.execute(statement)).mappings()]


async def insert_index(session: AsyncSession, bucket: int, order: Order) -> None:
    """Writes the provider's index entry; `bucket` is the provider's."""
    row = {name: getattr(order, name) for name in _COPIED} | {"bucket": bucket, "order_id": order.id}
    await session.execute(insert(provider_orders), [row])


async def change_index(session: AsyncSession, bucket: int, order_id: UUID, status: Status) -> None:
    """Copies an order's status into the provider's index."""
    where = and_(provider_orders.c.bucket == bucket, provider_orders.c.order_id == order_id)
    await session.execute(update(provider_orders).where(where).values(status=status))


async def orders_of_provider(
    session: AsyncSession, bucket: int, provider_id: UUID, status: Status | None, after: Position | None, limit: int
) -> list[IndexRow]:
    """A provider's orders, newest first, at most `limit`."""
    columns = [column for column in provider_orders.c if column.name != "bucket"]
    statement = select(*columns).where(provider_orders.c.bucket == bucket, provider_orders.c.provider_id == provider_id)
    if status is not None:
        statement = statement.where(provider_orders.c.status == status)
    if after is not None:
        statement = statement.where(tuple_(provider_orders.c.created_at, provider_orders.c.order_id) < after)
    statement = statement.order_by(provider_orders.c.created_at.desc(), provider_orders.c.order_id.desc()).limit(limit)
    rows = (await session.execute(statement)).mappings()
    return [IndexRow(**{**row, "status": Status(row["status"])}) for row in rows]


async def index_states(session: AsyncSession, places: Sequence[Place]) -> dict[UUID, int]:
    """The statuses that a provider's index holds for orders named by (provider's bucket, order id)."""
    return {row.order_id: row.status for row in await session.execute(_INDEXED, _names(places))}


async def last_care(session: AsyncSession, key: OrderKey) -> CareRow | None:
    """The newest entry of an order's care log."""
    statement = select(care_logs).where(*_care_of(key)).order_by(care_logs.c.seq.desc()).limit(1)
    row = (await session.execute(statement)).mappings().first()
    return None if row is None else _care(row)


async def append_care(session: AsyncSession, key: OrderKey, care: CareRow) -> None:
    """Appends an entry; a second one with the same number is refused by the primary key."""
    await session.execute(insert(care_logs), [{"bucket": key.bucket, "order_id": key.id, **asdict(care)}])


async def care_of(session: AsyncSession, key: OrderKey, after_seq: int, limit: int) -> list[CareRow]:
    """The entries after `after_seq`, oldest first, at most `limit`."""
    statement = select(care_logs).where(*_care_of(key), care_logs.c.seq > after_seq).order_by(care_logs.c.seq)
    return [_care(row) for row in (await session.execute(statement.limit(limit))).mappings()]


async def unpaid_past(session: AsyncSession, now: datetime, limit: int) -> list[UUID]:
    """Orders whose payment window ended before `now`, the longest ago first, at most `limit`."""
    where = and_(orders.c.status == Status.PENDING_PAYMENT, orders.c.pay_by < now)
    statement = select(orders.c.id).where(where).order_by(orders.c.pay_by).limit(limit)
    return list((await session.execute(statement)).scalars())


async def totals(session: AsyncSession, since: datetime) -> list[Totals]:
    """Counts and sums by status; `recent` counts those made after `since`."""
    statement = select(
        orders.c.status,
        func.count(),
        func.count().filter(orders.c.created_at > since),
        cast(func.sum(orders.c.total_cents), BigInteger),
        cast(func.sum(orders.c.refund_cents), BigInteger),
    ).group_by(orders.c.status)
    return [Totals(Status(row[0]), row[1], row[2], row[3], row[4]) for row in await session.execute(statement)]


async def settled_orders(session: AsyncSession, after: Place, limit: int) -> list[OrderState]:
    """Orders by bucket and id, without those that an undecided transaction holds."""
    rows = await session.execute(_SETTLED_ORDERS, {"bucket": after[0], "id": after[1], "limit": limit})
    return [OrderState(row.bucket, row.id, row.provider_id, Status(row.status)) for row in rows]


async def settled_named(session: AsyncSession, places: Sequence[Place]) -> list[OrderState]:
    """The same for orders by name."""
    rows = await session.execute(_SETTLED_NAMED, _names(places))
    return [OrderState(row.bucket, row.id, row.provider_id, Status(row.status)) for row in rows]


async def settled_index(session: AsyncSession, after: Place, limit: int) -> list[Place]:
    """Index entries by bucket and order, without those that an undecided transaction holds."""
    rows = await session.execute(_SETTLED_INDEX, {"bucket": after[0], "id": after[1], "limit": limit})
    return [(row.bucket, row.order_id) for row in rows]


async def known_orders(session: AsyncSession, places: Sequence[Place]) -> set[UUID]:
    """Which of the named orders are here."""
    return set((await session.execute(_KNOWN, _names(places))).scalars())


def _names(places: Sequence[Place]) -> dict[str, Any]:
    return {"buckets": sorted({bucket for bucket, _ in places}), "ids": [order_id for _, order_id in places]}


def _is(key: OrderKey) -> ColumnElement[bool]:
    return and_(orders.c.bucket == key.bucket, orders.c.id == key.id, orders.c.created_at == key.created_at)


def _seen_by(person: UUID | None) -> ColumnElement[bool]:
    if person is None:
        return true()
    return or_(orders.c.owner_id == person, orders.c.provider_id == person)


def _care_of(key: OrderKey) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return care_logs.c.bucket == key.bucket, care_logs.c.order_id == key.id


def _order(row: RowMapping) -> Order:
    return Order(**{**row, "status": Status(row["status"]), "policy": Policy(row["policy"])})


def _care(row: RowMapping) -> CareRow:
    return CareRow(
        seq=row["seq"],
        at=row["at"],
        author_id=row["author_id"],
        entry=row["entry"],
        previous_hash=bytes(row["previous_hash"]),
        hash=bytes(row["hash"]),
    )


# A row and the global lock on it become visible in the same commit, so one snapshot sees both or neither.
_SETTLED_ORDERS = text(
    """
    SELECT o.bucket, o.id, o.provider_id, o.status
    FROM orders AS o
    WHERE (o.bucket, o.id) > (:bucket, :id) AND NOT EXISTS (SELECT FROM at."public.orders" AS u WHERE u.id = o.id)
    ORDER BY o.bucket, o.id
    LIMIT :limit
    """
)
_SETTLED_NAMED = text(
    """
    SELECT o.bucket, o.id, o.provider_id, o.status
    FROM orders AS o
    WHERE o.bucket = ANY(:buckets) AND o.id = ANY(:ids)
      AND NOT EXISTS (SELECT FROM at."public.orders" AS u WHERE u.id = o.id)
    """
)
_SETTLED_INDEX = text(
    """
    SELECT p.bucket, p.order_id
    FROM provider_orders AS p
    WHERE (p.bucket, p.order_id) > (:bucket, :id)
      AND NOT EXISTS (SELECT FROM at."public.provider_orders" AS u WHERE u.order_id = p.order_id)
    ORDER BY p.bucket, p.order_id
    LIMIT :limit
    """
)
_INDEXED = text("SELECT order_id, status FROM provider_orders WHERE bucket = ANY(:buckets) AND order_id = ANY(:ids)")
_KNOWN = text("SELECT id FROM orders WHERE bucket = ANY(:buckets) AND id = ANY(:ids)")

_COPIED = (
    "provider_id",
    "created_at",
    "owner_id",
    "listing_id",
    "title",
    "check_in",
    "check_out",
    "status",
    "total_cents",
    "currency",
)
