"""The rules of pets: pure, no clock, no database."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from enum import IntEnum, StrEnum
from uuid import UUID

MONTHS_A_YEAR = 12
LAST_SAFE_DAY = 28
"""Every month has it."""


class Species(StrEnum):
    """What a listing distinguishes. The words are stored."""

    CAT = "cat"
    DOG = "dog"
    OTHER = "other"


class Gender(IntEnum):
    """The seed's numbers."""

    UNKNOWN = 0
    MALE = 1
    FEMALE = 2


class Size(StrEnum):
    """By weight; with the species it names the pool of a listing, such as ``dog-M``."""

    S = "S"
    M = "M"
    L = "L"
    XL = "XL"


_SIZES = ((10_000, Size.S), (25_000, Size.M), (40_000, Size.L))
"""Each size is for pets lighter than so many grams; heavier ones are XL."""


def size_of(weight_g: int) -> Size:
    """The size of a pet of `weight_g` grams."""
    return next((size for limit_g, size in _SIZES if weight_g < limit_g), Size.XL)


def born_about(age_months: int, today: date) -> date:
    """When a pet of that age was born, near enough: the month is right, the day is not known."""
    months = today.year * MONTHS_A_YEAR + today.month - 1 - age_months
    return date(months // MONTHS_A_YEAR, months % MONTHS_A_YEAR + 1, min(today.day, LAST_SAFE_DAY))


def age_in_months(born: date, today: date) -> int:
    """Whole months from `born` to `today`, never negative."""
    months = (today.year - born.year) * MONTHS_A_YEAR + today.month - born.month - (today.day < born.day)
    return max(0, months)


@dataclass(frozen=True)
class Vaccination:
    """What protects a pet, and until when."""

    pet_id: UUID
    vaccine: str
    expires_on: date


def lapsed(records: Iterable[Vaccination], check_out: date) -> list[Vaccination]:
    """The vaccinations that end before `check_out`. Of each pet and vaccine only the last counts: it was renewed."""
    last: dict[tuple[UUID, str], Vaccination] = {}
    for record in records:
        key = (record.pet_id, record.vaccine.strip().casefold())
        if key not in last or last[key].expires_on < record.expires_on:
            last[key] = record
    return [record for record in last.values() if record.expires_on < check_out]


@dataclass(frozen=True)
class Claim:
    """An order's pets on every night of the half-open [check_in, check_out)."""

    owner_id: UUID
    pet_ids: frozenset[UUID]
    check_in: date
    check_out: date

    @property
    def nights(self) -> int:
        """Pet nights: what the claim takes."""
        return (self.check_out - self.check_in).days * len(self.pet_ids)
