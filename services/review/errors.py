"""What the review service refuses."""

from __future__ import annotations

from uuid import UUID

from services.kit.problems import Problem, conflict


def stay_not_finished(order_id: UUID) -> Problem:
    """409: only a completed stay is reviewed."""
    return conflict("stay-not-completed", f"The stay {order_id} is not completed; review it afterwards.")


def already_reviewed(order_id: UUID) -> Problem:
    """409: one review for each side of a stay."""
    return conflict("already-reviewed", f"You have reviewed the stay {order_id} already.")


def already_replied() -> Problem:
    """409: one reply."""
    return conflict("already-replied", "This review has its reply already.")
