"""The rules of pets."""

from __future__ import annotations

from datetime import date
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.pet.domain import Claim, Size, Vaccination, age_in_months, born_about, lapsed, size_of

REX, MIA = UUID(int=1), UUID(int=2)
CHECK_OUT = date(2026, 12, 6)


@pytest.mark.parametrize(
    ("weight_g", "size"),
    [
        (9_999, Size.S),
        (10_000, Size.M),
        (24_999, Size.M),
        (25_000, Size.L),
        (39_999, Size.L),
        (40_000, Size.XL),
        (99_000, Size.XL),
    ],
)
def test_the_size_follows_from_the_weight(weight_g: int, size: Size) -> None:
    """Each limit belongs to the larger size."""
    assert size_of(weight_g) is size


@given(st.integers(min_value=0, max_value=1200), st.dates(min_value=date(2020, 1, 1), max_value=date(2035, 12, 31)))
def test_an_age_that_was_told_is_told_back(age_months: int, today: date) -> None:
    """An age is stored as a birth near enough that it reads as the same age today."""
    assert age_in_months(born_about(age_months, today), today) == age_months


def test_a_month_is_full_on_its_day() -> None:
    """Ages count whole months."""
    assert age_in_months(date(2026, 1, 15), date(2026, 2, 14)) == 0
    assert age_in_months(date(2026, 1, 15), date(2026, 2, 15)) == 1


def test_a_vaccination_must_hold_until_check_out() -> None:
    """One that ends on the day of check-out holds; one that ends a day before does not."""
    good, bad = Vaccination(REX, "rabies", CHECK_OUT), Vaccination(MIA, "rabies", date(2026, 12, 5))
    assert lapsed([good, bad], CHECK_OUT) == [bad]


def test_a_renewed_vaccination_replaces_the_old_one() -> None:
    """Of one pet and vaccine only the last counts, however it was spelled and in whatever order it was recorded."""
    old, new = Vaccination(REX, "Rabies", date(2026, 1, 1)), Vaccination(REX, "rabies ", date(2027, 1, 1))
    assert lapsed([old, new], CHECK_OUT) == []
    assert lapsed([new, old], CHECK_OUT) == []


def test_another_vaccine_does_not_renew_it() -> None:
    """Each vaccine is looked at for itself, and for each pet."""
    rabies = Vaccination(REX, "rabies", date(2026, 1, 1))
    others = [Vaccination(REX, "parvo", date(2027, 1, 1)), Vaccination(MIA, "rabies", date(2027, 1, 1))]
    assert lapsed([rabies, *others], CHECK_OUT) == [rabies]


def test_a_claim_counts_pet_nights() -> None:
    """Two pets on three nights are six."""
    assert Claim(REX, frozenset({REX, MIA}), date(2026, 12, 3), CHECK_OUT).nights == 6
