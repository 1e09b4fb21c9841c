"""The wire shapes of the boarding service. A listing is what the seed calls a service, hence `service_id`."""

from __future__ import annotations

from datetime import date, datetime
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
from msgspec import Meta

POOL = r"^(dog|cat|other)-(S|M|L|XL)$"
Pool = Annotated[str, Meta(pattern=POOL)]
Cents = Annotated[int, Meta(ge=1, le=100_000_000)]
Percent = Annotated[int, Meta(ge=0, le=500)]
Places = Annotated[int, Meta(ge=0, le=1000)]
STORABLE = r"^[^\x00]*$"
"""PostgreSQL's text has no NUL."""
Title = Annotated[str, Meta(min_length=1, max_length=128, pattern=STORABLE)]
Prose = Annotated[str, Meta(max_length=10_000, pattern=STORABLE)]
City = Annotated[str, Meta(min_length=1, max_length=64, pattern=STORABLE)]
Address = Annotated[str, Meta(max_length=255, pattern=STORABLE)]
TimeZone = Annotated[str, Meta(min_length=1, max_length=64, pattern=STORABLE)]
Latitude = Annotated[float, Meta(ge=-90, le=90)]
Longitude = Annotated[float, Meta(ge=-180, le=180)]
PolicyName = Literal["same_day", "one_day", "three_day", "seven_day"]
Sort = Literal["recommended", "price", "-rating", "distance"]


class Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A body in which nothing unknown may stand."""


class Schedule(Strict, frozen=True):
    """When a stay may be booked."""

    min_nights: Annotated[int, Meta(ge=1, le=365)] = 1
    max_nights: Annotated[int, Meta(ge=1, le=365)] = 90
    lead_hours: Annotated[int, Meta(ge=0, le=720)] = 0
    horizon_days: Annotated[int, Meta(ge=1, le=730)] = 365


class Tier(Strict, frozen=True):
    """From so many nights on, so many percent off."""

    nights: Annotated[int, Meta(ge=2, le=365)]
    percent_off: Annotated[int, Meta(ge=1, le=90)]


class Prices(Strict, frozen=True):
    """What is added to a night's price, or taken off a long stay."""

    weekend_percent: Percent = 0
    extra_pet_percent: Percent = 100
    long_stay: Annotated[tuple[Tier, ...], Meta(max_length=20)] = ()


class Publish(Strict, frozen=True):
    """A new listing, a draft until it is submitted. `capacity` says how many places each kind of pet has."""

    title: Title
    description: Prose
    price_cents: Cents
    city: City
    latitude: Latitude
    longitude: Longitude
    address: Address = ""
    house_rules: Prose = ""
    policy: PolicyName = "one_day"
    instant_book: bool = False
    time_zone: TimeZone = "Asia/Shanghai"
    schedule: Schedule = msgspec.field(default_factory=Schedule)
    prices: Prices = msgspec.field(default_factory=Prices)
    capacity: dict[Pool, Places] = msgspec.field(default_factory=dict)


class Change(Strict, frozen=True):
    """What a provider changes; absent members stay."""

    title: Title | msgspec.UnsetType = msgspec.UNSET
    description: Prose | msgspec.UnsetType = msgspec.UNSET
    price_cents: Cents | msgspec.UnsetType = msgspec.UNSET
    house_rules: Prose | msgspec.UnsetType = msgspec.UNSET
    policy: PolicyName | msgspec.UnsetType = msgspec.UNSET
    instant_book: bool | msgspec.UnsetType = msgspec.UNSET
    schedule: Schedule | msgspec.UnsetType = msgspec.UNSET
    prices: Prices | msgspec.UnsetType = msgspec.UNSET


class Capacity(Strict, frozen=True):
    """Places by kind of pet."""

    pools: dict[Pool, Places]


class Blocked(Strict, frozen=True):
    """Nights on which the provider takes nobody; replaces all from today on."""

    nights: Annotated[list[date], Meta(max_length=730)]


class AskQuote(Strict, frozen=True):
    """Which pets, from when to when."""

    pet_ids: Annotated[list[UUID], Meta(min_length=1, max_length=10)]
    check_in: date
    check_out: date


class Moderate(Strict, frozen=True):
    """An administrator's word, passed on by the admin service."""

    reason: Annotated[str, Meta(max_length=1000, pattern=STORABLE)] = ""


class Listing(msgspec.Struct, frozen=True):
    """A listing with everything that is public about it."""

    service_id: UUID
    provider_id: UUID
    title: str
    description: str
    price_cents: int
    city: str
    address: str
    latitude: float
    longitude: float
    pools: list[str]
    house_rules: str
    policy: str
    instant_book: bool
    time_zone: str
    schedule: Schedule
    prices: Prices
    audit_status: int
    rating: float
    rating_count: int
    created_at: datetime


class Published(msgspec.Struct, frozen=True):
    """The seed's kind of answer."""

    message: str
    service_id: UUID
    audit_status: int


class Found(msgspec.Struct, frozen=True):
    """A listing in a list; `distance_km` where the search had a place."""

    service_id: UUID
    provider_id: UUID
    title: str
    city: str
    price_cents: int
    pools: list[str]
    instant_book: bool
    rating: float
    rating_count: int
    audit_status: int
    distance_km: float | None = None


class QuoteLine(msgspec.Struct, frozen=True):
    """One line; a discount is negative."""

    label: str
    nights: int
    amount_cents: int


class Quote(msgspec.Struct, frozen=True):
    """A price that holds until `expires_at`; `quote` is what a booking sends."""

    quote: str
    lines: list[QuoteLine]
    total_cents: int
    currency: str
    expires_at: datetime


class Suggestion(msgspec.Struct, frozen=True):
    """A stay that is free, and what it costs."""

    check_in: date
    check_out: date
    total_cents: int
    days_away: int


class Suggestions(msgspec.Struct, frozen=True):
    """Free stays near the wish: the nearest first, and which is the cheapest."""

    items: list[Suggestion]
    cheapest: Suggestion | None


class Internal(msgspec.Struct, frozen=True):
    """A listing as other services see it."""

    id: UUID
    provider_id: UUID
    title: str
    audit_status: int
    price_cents: int
    city: str
    time_zone: str


class PetFacts(msgspec.Struct, frozen=True):
    """What the pet service says of a pet."""

    id: UUID
    owner_id: UUID
    name: str
    species: str
    size: str


class Free(msgspec.Struct, frozen=True):
    """What the capacity service says is free."""

    free: list[UUID]


class FreeNight(msgspec.Struct, frozen=True):
    """What the capacity service says of one night of one kind of pet."""

    night: date
    left: int


class Availability(msgspec.Struct, frozen=True):
    """The nights of a listing, as the capacity service knows them."""

    nights: list[FreeNight]


class Message(msgspec.Struct, frozen=True):
    """A plain answer."""

    message: str


def builtins(value: Any) -> Any:
    """A struct as JSON values, for a jsonb column."""
    return msgspec.to_builtins(value)
