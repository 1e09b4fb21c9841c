"""The refusals of this service, as problems."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from uuid import UUID

from services.kit.problems import Problem, conflict, not_found, unprocessable


def no_pet(pet_id: UUID) -> Problem:
    """404: there is none, or it is somebody else's."""
    return not_found("pet", pet_id)


def no_vaccination(vaccination_id: UUID) -> Problem:
    """404: there is none, or it is somebody else's pet's."""
    return not_found("vaccination", vaccination_id)


def pet_already_booked(taken: Mapping[UUID, Sequence[date]]) -> Problem:
    """409: a pet cannot be in two places."""
    named = "; ".join(f"pet {pet} on {', '.join(map(str, nights))}" for pet, nights in taken.items())
    return conflict(
        "pet-already-booked",
        f"Booked elsewhere: {named}. Choose other nights, or cancel that stay.",
        pets=[{"pet_id": str(pet), "nights": [str(night) for night in nights]} for pet, nights in taken.items()],
    )


def vaccine_expired(lapsing: Sequence[tuple[UUID, str, date]]) -> Problem:
    """422: a record must be renewed first."""
    named = "; ".join(f"{vaccine} of pet {pet} ends on {ends}" for pet, vaccine, ends in lapsing)
    return unprocessable("vaccine-expired", f"A vaccination ends before the stay does: {named}. Record its renewal.")


def claim_exists(order_id: UUID) -> Problem:
    """409: the order has claimed other nights or pets."""
    return conflict("claim-exists", f"The order {order_id} has other pets or nights already. Release them first.")


def has_coming_stays(pet_id: UUID, nights: Sequence[date]) -> Problem:
    """409: somebody waits for this pet."""
    return conflict(
        "pet-has-stays", f"The pet {pet_id} is booked from {nights[0]} to {nights[-1]}. Cancel that stay first."
    )


def birth_or_age() -> Problem:
    """422: one of them, not both."""
    return unprocessable("birth-or-age", "Send 'birth_date' or 'age_months', not both.")


def born_later(today: date) -> Problem:
    """422: not born yet."""
    return unprocessable("birth-in-future", f"'birth_date' must not come after {today}.")


def bad_stay(nights_max: int) -> Problem:
    """422: the dates make no stay."""
    return unprocessable("bad-dates", f"check_out must come after check_in, by at most {nights_max} nights.")


def bad_vaccination() -> Problem:
    """422: the dates contradict each other."""
    return unprocessable("bad-dates", "'expires_on' must not come before 'given_on'.")


def too_many_vaccinations(most: int) -> Problem:
    """409: remove old ones first."""
    return conflict("too-many", f"A pet has at most {most} vaccinations on record. Remove old ones first.")


def too_many_pets(most: int) -> Problem:
    """422: ask for fewer at once."""
    return unprocessable("too-many", f"At most {most} pets at once.")
