"""Rows of listings as what the use cases and the wire know them as."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec

from services.boarding import domain, schemas
from services.boarding.config import CACHE_KEY
from services.kit.clock import Clock


def key_of(listing_id: UUID) -> str:
    """Where a listing stands in the cache."""
    return CACHE_KEY.format(id=listing_id)


def local_now(clock: Clock, time_zone: str) -> datetime:
    """The time where the listing is."""
    return clock().astimezone(ZoneInfo(time_zone))


def prices_of(row: Any) -> domain.PriceRules:
    """A listing's price rules."""
    prices = msgspec.convert(row["prices"], schemas.Prices)
    tiers = tuple(sorted((tier.nights, tier.percent_off) for tier in prices.long_stay))
    return domain.PriceRules(row["price_cents"], prices.weekend_percent, prices.extra_pet_percent, tiers)


def listing_of(row: Any) -> schemas.Listing:
    """A listing with its details, for people."""
    names = set(schemas.Listing.__struct_fields__) - {"service_id", "schedule", "prices", "rating"}
    return schemas.Listing(
        service_id=row["id"],
        schedule=msgspec.convert(row["schedule"], schemas.Schedule),
        prices=msgspec.convert(row["prices"], schemas.Prices),
        rating=row["rating_x100"] / 100,
        **{name: row[name] for name in names},
    )


def internal_of(row: Any) -> schemas.Internal:
    """A listing, for other services."""
    return schemas.Internal(**{name: row[name] for name in schemas.Internal.__struct_fields__})


def found_of(row: Any, distance_km: float | None = None) -> schemas.Found:
    """A listing in a list."""
    return schemas.Found(
        row.id,
        row.provider_id,
        row.title,
        row.city,
        row.price_cents,
        list(row.pools),
        row.instant_book,
        row.rating_x100 / 100,
        row.rating_count,
        row.audit_status,
        None if distance_km is None else round(distance_km, 2),
    )
