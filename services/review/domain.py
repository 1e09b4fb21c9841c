"""The rules of reviews. Pure.

The score is a Bayesian mean: `PRIOR_COUNT` imagined reviews of `PRIOR_MEAN_X100` are added, so that one five-star
review does not stand above a hundred that average 4.9.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import StrEnum
from uuid import UUID

PRIOR_COUNT = 5
PRIOR_MEAN_X100 = 400
FORMULA = f"(sum of ratings + {PRIOR_COUNT} * {PRIOR_MEAN_X100 / 100:.1f}) / (count + {PRIOR_COUNT})"


class Direction(StrEnum):
    """Who reviews whom."""

    OF_LISTING = "of_listing"  # the owner reviews the provider's service
    OF_OWNER = "of_owner"  # the provider reviews the owner and the pet


def direction_of(asking: UUID, owner_id: UUID, provider_id: UUID) -> Direction | None:
    """What somebody may review of a stay; None when they had no part in it."""
    if asking == owner_id:
        return Direction.OF_LISTING
    if asking == provider_id:
        return Direction.OF_OWNER
    return None


def is_due(written_at: datetime, now: datetime, other_is_in: bool, blind_days: int) -> bool:
    """Whether a review is to be shown now."""
    return other_is_in or now - written_at >= timedelta(days=blind_days)


def score_x100(count: int, total: int) -> int:
    """The score in hundredths, from how many ratings there are and their sum; rounded half up."""
    numerator = total * 100 + PRIOR_COUNT * PRIOR_MEAN_X100
    denominator = count + PRIOR_COUNT
    return (2 * numerator + denominator) // (2 * denominator)


def mean_x100(count: int, total: int) -> int:
    """The plain mean in hundredths; 0 without ratings."""
    return 0 if count == 0 else (200 * total + count) // (2 * count)
