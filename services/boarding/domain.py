"""The rules of listings: prices, schedules, moderation. Pure. Money is integer cents."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from enum import IntEnum, StrEnum

CURRENCY = "CNY"
EARTH_RADIUS_KM = 6371.0088
WEEKEND = frozenset({4, 5})
"""Nights that begin on a Friday or a Saturday."""


class AuditStatus(IntEnum):
    """Moderation. A draft has not been submitted."""

    DRAFT = -1
    PENDING = 0
    APPROVED = 1
    REJECTED = 2
    TAKEN_DOWN = 3


MODERATION: dict[str, tuple[frozenset[AuditStatus], AuditStatus]] = {
    "submit": (frozenset({AuditStatus.DRAFT, AuditStatus.REJECTED}), AuditStatus.PENDING),
    "approve": (frozenset({AuditStatus.PENDING}), AuditStatus.APPROVED),
    "reject": (frozenset({AuditStatus.PENDING}), AuditStatus.REJECTED),
    "take-down": (frozenset({AuditStatus.APPROVED}), AuditStatus.TAKEN_DOWN),
    "restore": (frozenset({AuditStatus.TAKEN_DOWN}), AuditStatus.APPROVED),
}


class IllegalModeration(ValueError):
    """The listing is not in a state from which this step leads on."""


def moderate(now: AuditStatus, verb: str) -> AuditStatus:
    """The state after `verb`. Raises IllegalModeration with the states from which it is allowed."""
    allowed, to = MODERATION[verb]
    if now not in allowed:
        names = " or ".join(sorted(state.name.lower() for state in allowed))
        raise IllegalModeration(f"'{verb}' is for a listing that is {names}; this one is {now.name.lower()}.")
    return to


class Policy(StrEnum):
    """Until when a cancellation is free."""

    SAME_DAY = "same_day"
    ONE_DAY = "one_day"
    THREE_DAY = "three_day"
    SEVEN_DAY = "seven_day"


@dataclass(frozen=True)
class PriceRules:
    """What a night costs. Percents are added to the night's price; tiers are (nights, percent off), rising."""

    night_cents: int
    weekend_percent: int = 0
    extra_pet_percent: int = 100
    long_stay: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class ScheduleRules:
    """When a stay may be booked."""

    min_nights: int = 1
    max_nights: int = 90
    lead_hours: int = 0
    horizon_days: int = 365


@dataclass(frozen=True)
class Line:
    """One line of a quote; a discount is negative."""

    label: str
    nights: int
    amount_cents: int


class OutsideWindow(ValueError):
    """The stay does not fit the listing's schedule: says which rule."""


def nights_of(check_in: date, check_out: date) -> list[date]:
    """The nights of the half-open stay [check_in, check_out)."""
    return [check_in + timedelta(days=n) for n in range((check_out - check_in).days)]


def check_schedule(
    rules: ScheduleRules, check_in: date, check_out: date, local_now: datetime, blocked: frozenset[date]
) -> None:
    """Raises OutsideWindow when the stay breaks a rule. `local_now` is in the listing's time zone.

    A notice in hours counts to the end of the check-in day.
    """
    nights = (check_out - check_in).days
    if nights < 1:
        raise OutsideWindow("The check-out must be after the check-in.")
    if check_in < local_now.date():
        raise OutsideWindow(f"The check-in {check_in} has passed.")
    if not rules.min_nights <= nights <= rules.max_nights:
        raise OutsideWindow(f"A stay here is {rules.min_nights} to {rules.max_nights} nights, not {nights}.")
    if (check_in - local_now.date()).days > rules.horizon_days:
        raise OutsideWindow(f"Bookings open {rules.horizon_days} days ahead.")
    starts = datetime.combine(check_in + timedelta(days=1), datetime.min.time(), tzinfo=local_now.tzinfo)
    if rules.lead_hours and starts - local_now < timedelta(hours=rules.lead_hours):
        raise OutsideWindow(f"This provider needs {rules.lead_hours} hours' notice.")
    closed = sorted(blocked & set(nights_of(check_in, check_out)))
    if closed:
        raise OutsideWindow(f"The provider is closed on {', '.join(map(str, closed))}.")


def percent_of(cents: int, percent: int) -> int:
    """`percent` of an amount, rounded half up to the cent."""
    return (2 * cents * percent + 100) // 200


def price(rules: PriceRules, check_in: date, check_out: date, pets: int) -> list[Line]:
    """A quote's lines, in fixed order: nights, weekend nights, further pets, long stay. Their sum is the total."""
    nights = nights_of(check_in, check_out)
    weekend = sum(night.weekday() in WEEKEND for night in nights)
    lines = [Line("nights", len(nights), rules.night_cents * len(nights))]
    if weekend and rules.weekend_percent:
        extra = percent_of(rules.night_cents, rules.weekend_percent)
        lines.append(Line(f"weekend +{rules.weekend_percent}%", weekend, extra * weekend))
    if pets > 1:
        first = total_cents(lines)
        further = percent_of(first, rules.extra_pet_percent) * (pets - 1)
        lines.append(Line(f"{pets - 1} more pet(s) at {rules.extra_pet_percent}%", len(nights), further))
    tier = max((tier for tier in rules.long_stay if tier[0] <= len(nights)), default=None)
    if tier is not None:
        off = percent_of(total_cents(lines), tier[1])
        lines.append(Line(f"{tier[0]}+ nights -{tier[1]}%", len(nights), -off))
    return lines


def total_cents(lines: Iterable[Line]) -> int:
    """What the lines come to."""
    return sum(line.amount_cents for line in lines)


def pools_of(pets: Sequence[tuple[str, str]]) -> dict[str, int]:
    """Units needed of each pool for pets given as (species, size)."""
    return dict(Counter(f"{species}-{size}" for species, size in pets))


def distance_km(a: tuple[float, float], b: tuple[float, float]) -> float:
    """Great-circle distance of two (latitude, longitude) pairs in degrees (haversine)."""
    lat1, lon1, lat2, lon2 = map(math.radians, (*a, *b))
    h = math.sin((lat2 - lat1) / 2) ** 2 + math.cos(lat1) * math.cos(lat2) * math.sin((lon2 - lon1) / 2) ** 2
    return 2 * EARTH_RADIUS_KM * math.asin(math.sqrt(h))


def windows(nights: int, wish: date, *, flexible_days: int) -> list[tuple[date, date]]:
    """Stays of `nights` nights that begin near `wish`: the nearest first, and of two equally near the later one."""
    offsets = sorted(range(-flexible_days, flexible_days + 1), key=lambda n: (abs(n), n < 0))
    return [(wish + timedelta(days=n), wish + timedelta(days=n + nights)) for n in offsets]
