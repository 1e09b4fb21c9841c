"""The boarding service's SQL."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any
from uuid import UUID

from sqlalchemy import Float, Select, asc, delete, desc, func, insert, literal, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from services.boarding.domain import EARTH_RADIUS_KM, AuditStatus
from services.boarding.tables import blocked_dates, listing_details, listings
from services.kit.undecided import undecided


@dataclass(frozen=True)
class Search:
    """What somebody looks for; None is no wish."""

    text: str | None = None
    city: str | None = None
    pool: str | None = None
    price_min: int | None = None
    price_max: int | None = None
    rating_min: float | None = None
    instant: bool | None = None
    near: tuple[float, float] | None = None
    radius_km: float | None = None
    sort: str = "recommended"


async def add(session: AsyncSession, row: dict[str, Any], details: dict[str, Any]) -> None:
    """Writes a new listing."""
    await session.execute(insert(listings).values(row))
    await session.execute(insert(listing_details).values(listing_id=row["id"], **details))


async def listing(session: AsyncSession, listing_id: UUID, *, lock: bool = False) -> Any:
    """A listing with its details, or None; `undecided` says whether it may still be undone.

    With `lock` nobody else changes it until this transaction ends: for who writes what depends on what is read.
    """
    query = (
        select(listings, listing_details, undecided(listings))
        .join(listing_details, listing_details.c.listing_id == listings.c.id)
        .where(listings.c.id == listing_id)
    )
    if lock:
        query = query.with_for_update(of=listings)
    return (await session.execute(query)).mappings().first()


async def change(session: AsyncSession, listing_id: UUID, row: dict[str, Any], details: dict[str, Any]) -> None:
    """Changes columns of a listing."""
    await session.execute(
        update(listings).where(listings.c.id == listing_id).values(updated_at=func.clock_timestamp(), **row)
    )
    if details:
        await session.execute(update(listing_details).where(listing_details.c.listing_id == listing_id).values(details))


async def of_provider(session: AsyncSession, provider_id: UUID, after: UUID | None, limit: int) -> Sequence[Any]:
    """A provider's own listings, in any state."""
    query = select(listings).where(listings.c.provider_id == provider_id).order_by(listings.c.id).limit(limit)
    if after is not None:
        query = query.where(listings.c.id > after)
    return (await session.execute(query)).all()


async def in_state(session: AsyncSession, status: int, after: UUID | None, limit: int) -> Sequence[Any]:
    """Listings in one state of moderation, oldest first."""
    query = select(listings).where(listings.c.audit_status == status).order_by(listings.c.id).limit(limit)
    if after is not None:
        query = query.where(listings.c.id > after)
    return (await session.execute(query)).all()


async def search(
    session: AsyncSession, wish: Search, after: tuple[float, UUID] | None, limit: int
) -> list[tuple[Any, float, float | None]]:
    """Approved listings that fit, in the order asked for: (row, position in the order, distance in km or None)."""
    distance = _distance(wish.near) if wish.near is not None else literal(None, Float)
    rank, rising = _rank(wish, distance)
    found = _matching(select(listings, rank.label("rank"), distance.label("distance_km")), wish, distance)
    direction = asc if rising else desc
    query = found.order_by(direction(rank), listings.c.id).limit(limit)
    if after is not None:
        value, last_id = after
        beyond = rank > value if rising else rank < value
        query = query.where(or_(beyond, (rank == value) & (listings.c.id > last_id)))
    return [(row, row.rank, row.distance_km) for row in (await session.execute(query)).all()]


async def blocked(session: AsyncSession, listing_id: UUID, first: date, last: date) -> frozenset[date]:
    """The nights in [first, last) on which the provider takes nobody."""
    query = select(blocked_dates.c.night).where(
        blocked_dates.c.listing_id == listing_id, blocked_dates.c.night >= first, blocked_dates.c.night < last
    )
    return frozenset((await session.execute(query)).scalars())


async def blocked_among(session: AsyncSession, listing_ids: Iterable[UUID], first: date, last: date) -> frozenset[UUID]:
    """Those of the listings that are closed on a night of [first, last)."""
    query = select(blocked_dates.c.listing_id).where(
        blocked_dates.c.listing_id.in_(list(listing_ids)),
        blocked_dates.c.night >= first,
        blocked_dates.c.night < last,
    )
    return frozenset((await session.execute(query)).scalars())


async def set_blocked(session: AsyncSession, listing_id: UUID, today: date, nights: Iterable[date]) -> None:
    """Replaces the closed nights from `today` on."""
    await session.execute(
        delete(blocked_dates).where(blocked_dates.c.listing_id == listing_id, blocked_dates.c.night >= today)
    )
    rows = [{"listing_id": listing_id, "night": night} for night in sorted(set(nights)) if night >= today]
    if rows:
        await session.execute(insert(blocked_dates), rows)


def _matching(query: Select[Any], wish: Search, distance: Any) -> Select[Any]:
    c = listings.c
    query = query.where(c.audit_status == int(AuditStatus.APPROVED))
    if wish.text:
        pattern = "%" + wish.text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") + "%"
        described = select(listing_details.c.listing_id).where(listing_details.c.description.ilike(pattern))
        query = query.where(or_(c.title.ilike(pattern), c.city.ilike(pattern), c.id.in_(described)))
    if wish.city:
        query = query.where(c.city == wish.city)
    if wish.pool:
        query = query.where(literal(wish.pool) == func.any(c.pools))
    if wish.price_min is not None:
        query = query.where(c.price_cents >= wish.price_min)
    if wish.price_max is not None:
        query = query.where(c.price_cents <= wish.price_max)
    if wish.rating_min is not None:
        query = query.where(c.rating_x100 >= round(wish.rating_min * 100))
    if wish.instant is not None:
        query = query.where(c.instant_book == wish.instant)
    if wish.near is not None and wish.radius_km is not None:
        query = query.where(distance <= wish.radius_km)
    return query


def _rank(wish: Search, distance: Any) -> tuple[Any, bool]:
    """The column that orders the result, and whether it rises."""
    c = listings.c
    match wish.sort:
        case "price":
            return c.price_cents.cast(Float), True
        case "-rating":
            return c.rating_x100.cast(Float), False
        case "distance":
            return distance, True
        case _:
            # Well rated by many, and not too dear: each further yuan weighs as much as a hundredth of a star.
            return (c.rating_x100 * func.least(c.rating_count, 20) / 20.0 - c.price_cents / 100.0).cast(Float), False


def _distance(near: tuple[float, float]) -> Any:
    """The haversine formula, as in domain.distance_km, in SQL."""
    latitude, longitude = near
    c = listings.c
    half = func.power(func.sin(func.radians(c.latitude - latitude) / 2), 2) + func.cos(
        func.radians(latitude)
    ) * func.cos(func.radians(c.latitude)) * func.power(func.sin(func.radians(c.longitude - longitude) / 2), 2)
    return (2 * EARTH_RADIUS_KM * func.asin(func.sqrt(func.least(1.0, half)))).cast(Float)
