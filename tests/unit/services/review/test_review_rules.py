"""When a review is shown, and what its stars come to."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from fractions import Fraction
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.review.domain import (
    PRIOR_COUNT,
    PRIOR_MEAN_X100,
    Direction,
    direction_of,
    is_due,
    mean_x100,
    score_x100,
)

WRITTEN = datetime(2026, 11, 1, tzinfo=UTC)
DAYS = 14


@pytest.mark.parametrize(
    ("passed", "other_is_in", "due"),
    [
        (timedelta(0), False, False),
        (timedelta(0), True, True),
        (timedelta(days=DAYS) - timedelta(seconds=1), False, False),
        (timedelta(days=DAYS), False, True),
    ],
)
def test_a_review_is_shown_when_both_are_in_or_the_days_have_passed(
    passed: timedelta, other_is_in: bool, due: bool
) -> None:
    """Not a second earlier."""
    assert is_due(WRITTEN, WRITTEN + passed, other_is_in, DAYS) is due


def test_who_asks_decides_who_is_reviewed() -> None:
    """The owner reviews the listing, the provider the owner, nobody else anything."""
    owner, provider, other = UUID(int=1), UUID(int=2), UUID(int=3)
    assert direction_of(owner, owner, provider) is Direction.OF_LISTING
    assert direction_of(provider, owner, provider) is Direction.OF_OWNER
    assert direction_of(other, owner, provider) is None


@given(st.lists(st.integers(1, 5), max_size=200))
def test_mean_and_score_are_rounded_half_up_and_the_score_lies_between_mean_and_prior(ratings: list[int]) -> None:
    """The score is the mean with the imagined reviews added."""
    count, total = len(ratings), sum(ratings)
    exact = Fraction(total * 100 + PRIOR_COUNT * PRIOR_MEAN_X100, count + PRIOR_COUNT)
    assert score_x100(count, total) == int(exact + Fraction(1, 2))
    if not ratings:
        assert (mean_x100(0, 0), score_x100(0, 0)) == (0, PRIOR_MEAN_X100)
        return
    mean = mean_x100(count, total)
    assert mean == int(Fraction(total * 100, count) + Fraction(1, 2))
    assert min(mean, PRIOR_MEAN_X100) <= score_x100(count, total) <= max(mean, PRIOR_MEAN_X100)


def test_one_perfect_review_does_not_stand_above_a_hundred_nearly_perfect_ones() -> None:
    """That is what the imagined reviews are for."""
    assert score_x100(1, 5) < score_x100(100, 490)
