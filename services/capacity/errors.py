"""The refusals of this service, as problems."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from uuid import UUID

from services.kit.problems import Problem, conflict, not_found, unprocessable


def capacity_exhausted(nights: Sequence[date]) -> Problem:
    """409: other nights or another listing would do."""
    named = ", ".join(str(night) for night in nights)
    return conflict(
        "capacity-exhausted",
        f"There is no place left for these pets on {named}. Choose other nights or another listing.",
        nights=[str(night) for night in nights],
    )


def stale_fence(fence: int | None) -> Problem:
    """409: a later holder of the booking lock was here first; a booking that is sent again gets a new number."""
    return conflict("stale-fence", f"A booking with a later number than {fence} came first. Send the booking again.")


def capacity_in_use(nights: Sequence[date]) -> Problem:
    """409: guests are booked; a smaller total would put them out."""
    named = ", ".join(str(night) for night in nights)
    return conflict(
        "capacity-in-use",
        f"More places than that are taken on {named}. Keep the total, or wait until those stays are over.",
        nights=[str(night) for night in nights],
    )


def hold_exists(order_id: UUID) -> Problem:
    """409: the order holds other nights already."""
    return conflict("hold-exists", f"The order {order_id} holds other nights already. Release them first.")


def hold_released(order_id: UUID) -> Problem:
    """409: what was given back cannot be booked."""
    return conflict("hold-released", f"The nights of the order {order_id} were given back; they cannot be booked.")


def no_hold(order_id: UUID) -> Problem:
    """404: the order never held anything."""
    return not_found("hold for the order", order_id)


def bad_range(nights_max: int) -> Problem:
    """422: the dates make no stay."""
    return unprocessable("bad-dates", f"The last day must come after the first, by at most {nights_max} nights.")
