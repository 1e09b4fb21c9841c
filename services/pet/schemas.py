"""What goes over the wire. Weights are grams."""

from __future__ import annotations

from datetime import date, datetime
from typing import Annotated
from uuid import UUID

import msgspec

from services.pet.config import PETS_PER_QUESTION_MAX
from services.pet.domain import Gender, Size, Species

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=50)]
Breed = Annotated[str, msgspec.Meta(max_length=50)]
WeightG = Annotated[int, msgspec.Meta(ge=1, le=200_000)]
AgeMonths = Annotated[int, msgspec.Meta(ge=0, le=1200)]
Words = Annotated[str, msgspec.Meta(max_length=2000)]
Short = Annotated[str, msgspec.Meta(min_length=1, max_length=100)]
Phone = Annotated[str, msgspec.Meta(min_length=3, max_length=30)]


class NewPet(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A pet as its owner describes it; `birth_date`, or `age_months` where the day is not known."""

    name: Name
    species: Species
    weight_g: WeightG
    breed: Breed | None = None
    gender: Gender = Gender.UNKNOWN
    birth_date: date | None = None
    age_months: AgeMonths | None = None
    description: Words | None = None


class PetChanges(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What changes; members that are not sent stay as they are."""

    name: Name | msgspec.UnsetType = msgspec.UNSET
    species: Species | msgspec.UnsetType = msgspec.UNSET
    weight_g: WeightG | msgspec.UnsetType = msgspec.UNSET
    breed: Breed | msgspec.UnsetType | None = msgspec.UNSET
    gender: Gender | msgspec.UnsetType = msgspec.UNSET
    birth_date: date | msgspec.UnsetType | None = msgspec.UNSET
    age_months: AgeMonths | msgspec.UnsetType | None = msgspec.UNSET
    description: Words | msgspec.UnsetType | None = msgspec.UNSET


class PetView(msgspec.Struct, frozen=True):
    """A pet. `size` follows from the weight, `age_months` from the birth."""

    id: UUID
    owner_id: UUID
    name: str
    species: Species
    size: Size
    weight_g: int
    breed: str | None
    gender: Gender
    birth_date: date | None
    birth_is_estimate: bool
    age_months: int | None
    description: str | None
    created_at: datetime
    updated_at: datetime


class NewVaccination(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was given, and the last day on which it holds."""

    vaccine: Short
    given_on: date
    expires_on: date
    note: Words | None = None


class VaccinationView(msgspec.Struct, frozen=True):
    """A vaccination on record; `expired` as of today."""

    id: UUID
    vaccine: str
    given_on: date
    expires_on: date
    note: str | None
    expired: bool


class Medicine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the pet must be given."""

    name: Short
    dose: Short
    when: Short


class Person(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whom to call."""

    name: Short
    phone: Phone
    address: Words | None = None


class CarePlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How to care for a pet: what it eats, its medicines, its vet, and whom to call."""

    feeding: Words | None = None
    medicines: Annotated[list[Medicine], msgspec.Meta(max_length=20)] = []
    vet: Person | None = None
    contact: Person | None = None


class StayView(msgspec.Struct, frozen=True):
    """Where a pet is or will be: the order, and its nights."""

    order_id: UUID
    check_in: date
    check_out: date


class PetFacts(msgspec.Struct, frozen=True):
    """What other services need to know of a pet."""

    id: UUID
    owner_id: UUID
    name: str
    species: Species
    size: Size
    weight_g: int


class ClaimRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An order's pets on every night of [check_in, check_out)."""

    order_id: UUID
    owner_id: UUID
    pet_ids: Annotated[list[UUID], msgspec.Meta(min_length=1, max_length=PETS_PER_QUESTION_MAX)]
    check_in: date
    check_out: date


class ClaimAnswer(msgspec.Struct, frozen=True):
    """How many pet nights the order has."""

    claims: int


class ReleaseAnswer(msgspec.Struct, frozen=True):
    """How many pet nights were given back; 0 when they had been before."""

    released: int


class ReleaseRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which of an order's pet nights are given back: those from `since` on, or all."""

    since: date | None = None
