"""What the boarding service refuses."""

from __future__ import annotations

from services.kit.problems import Problem, bad_request, conflict, unprocessable


def outside_window(detail: str) -> Problem:
    """422: the stay breaks one of the listing's rules."""
    return unprocessable("outside-booking-window", detail)


def pool_not_accepted(pool: str) -> Problem:
    """422: the listing takes no such pet."""
    return unprocessable("pet-not-accepted", f"This listing takes no pet of the kind {pool}.")


def too_dear(total_cents: int, most_cents: int) -> Problem:
    """422: nobody could pay it."""
    return unprocessable(
        "total-too-large", f"This stay comes to {total_cents} cents, and {most_cents} is the most. Book fewer nights."
    )


def illegal_moderation(detail: str) -> Problem:
    """409: the listing is not in the state for it."""
    return conflict("illegal-transition", detail)


def unusable(pointer: str, detail: str) -> Problem:
    """400: a member of the body makes no sense."""
    return bad_request(detail, code="invalid-request", errors=[{"pointer": pointer, "detail": detail}])
