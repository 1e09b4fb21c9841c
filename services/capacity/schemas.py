"""What goes over the wire."""

from __future__ import annotations

from datetime import date
from typing import Annotated
from uuid import UUID

import msgspec

from services.capacity.config import LISTINGS_MAX

Pool = Annotated[str, msgspec.Meta(pattern="^(dog|cat|other)-(S|M|L|XL)$", examples=["dog-M"])]
Units = Annotated[int, msgspec.Meta(ge=1, le=100)]
Total = Annotated[int, msgspec.Meta(ge=0, le=1000)]
Pools = Annotated[dict[Pool, Units], msgspec.Meta(min_length=1, max_length=12)]


class PoolTotals(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How many units a listing has, for each pool that it takes at all."""

    pools: Annotated[dict[Pool, Total], msgspec.Meta(max_length=12)]


class AvailabilityQuestion(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which of these listings could take `pools` on every night of [check_in, check_out)?"""

    listing_ids: Annotated[list[UUID], msgspec.Meta(max_length=LISTINGS_MAX)]
    pools: Pools
    check_in: date
    check_out: date


class FreeListings(msgspec.Struct, frozen=True):
    """Those that could, in the order of the question."""

    free: list[UUID]


class NightView(msgspec.Struct, frozen=True):
    """One night of one pool: `left` = total - held - booked."""

    night: date
    pool: str
    total: int
    held: int
    booked: int
    left: int


class Availability(msgspec.Struct, frozen=True):
    """A listing's nights, by night and pool."""

    listing_id: UUID
    nights: list[NightView]


class FenceNumber(msgspec.Struct, frozen=True):
    """A fencing number: higher than every one before it."""

    fence: int


class HoldRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An order takes `pools` on every night of [check_in, check_out); `fence` is null when no lock is held."""

    order_id: UUID
    listing_id: UUID
    pools: Pools
    check_in: date
    check_out: date
    fence: Annotated[int, msgspec.Meta(ge=1)] | None = None


class Empty(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A body without members."""


class HoldAnswer(msgspec.Struct, frozen=True):
    """How many nights the order has now, and whether they are ``held``, ``booked`` or ``released`` (then 0)."""

    nights: int
    state: str


class Consistency(msgspec.Struct, frozen=True):
    """The service's own audit. `nights_over_total` and `drift` (nights that are not the sum of their holds) are 0."""

    nights_over_total: int
    drift: int
    nights: int
    held: int
    booked: int
