"""The problems that only this service knows, by what the caller should do next."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime
from uuid import UUID

from services.kit.problems import Problem, conflict, forbidden, not_found, unprocessable


def order_not_found(order_id: UUID) -> Problem:
    """There is no such order, or it is somebody else's."""
    return not_found("order", order_id)


def illegal_transition(status: str, event: str, allowed: Sequence[str]) -> Problem:
    """The order's state does not allow this; names what it does allow to the one who asks."""
    ways = f"Possible for you now: {', '.join(allowed)}." if allowed else "Nothing is left for you to do with it."
    return conflict(
        "illegal-transition", f"An order that is {status} cannot {event}. {ways}", order_status=status, allowed=allowed
    )


def pay_window_over(pay_by: datetime) -> Problem:
    """The booking waited for its payment, and the time is over: it is never revived."""
    return conflict(
        "pay-window-over",
        f"This booking could be paid until {pay_by.isoformat()}. Nothing was charged; book again with a new quote.",
    )


def quote_invalid() -> Problem:
    """The text is no quote of ours."""
    return unprocessable("quote-invalid", "This is not a quote of ours. Ask for one at /api/boarding/services.")


def quote_expired() -> Problem:
    """The quote was good and has ended."""
    return conflict("quote-expired", "The quote has ended (it holds ten minutes). Ask for a new one.")


def quote_of_another() -> Problem:
    """Only the one who was quoted may book."""
    return forbidden("This quote was made for somebody else. Ask for your own.", code="quote-of-another")


def own_listing() -> Problem:
    """A provider cannot book with themselves."""
    return unprocessable("own-listing", "This is your own listing. Book with another provider.")


def listing_unavailable() -> Problem:
    """The listing or its provider is not approved any more."""
    return conflict("listing-unavailable", "This listing takes no bookings at the moment. Choose another one.")


def too_early(check_in: date, today: date) -> Problem:
    """The stay has not begun yet."""
    return conflict("too-early", f"The stay begins on {check_in}; it is {today} there. Check in on that day.")


def pet_not_staying(pet_id: UUID) -> Problem:
    """A care entry names a pet that is not part of this stay."""
    return unprocessable("pet-not-staying", f"Pet {pet_id} is not part of this stay.")


def too_many_entries(limit: int) -> Problem:
    """An order has as many care entries as it may have."""
    return conflict("too-many-entries", f"An order holds at most {limit} care entries.")
