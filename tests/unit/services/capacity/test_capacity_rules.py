"""The rules of nights."""

from __future__ import annotations

from datetime import date
from itertools import product
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from services.capacity.domain import HoldState, Move, Night, Stay, move, shortage

LISTING = UUID(int=1)
FRIDAY, SATURDAY, SUNDAY = date(2026, 12, 4), date(2026, 12, 5), date(2026, 12, 6)


def night(on: date, *, total: int = 3, held: int = 0, booked: int = 0, fence: int = 0, pool: str = "dog-M") -> Night:
    return Night(on, pool, total, held, booked, fence)


def test_a_stay_has_its_check_in_night_and_not_its_check_out_night() -> None:
    """Stays are half-open: one guest may come on the day on which another goes."""
    assert Stay(LISTING, {"dog-M": 1}, FRIDAY, SUNDAY).nights == [FRIDAY, SATURDAY]


def test_a_stay_that_runs_backwards_has_no_nights() -> None:
    """Empty and reversed ranges take nothing."""
    assert Stay(LISTING, {"dog-M": 1}, SUNDAY, FRIDAY).nights == []
    assert Stay(LISTING, {"dog-M": 1}, FRIDAY, FRIDAY).nights == []


@given(st.lists(st.sampled_from(HoldState), max_size=8))
def test_whatever_order_the_steps_come_in_nothing_goes_below_zero(steps: list[HoldState]) -> None:
    """Every sequence of allowed moves leaves one unit held, or booked, or none: never a negative count."""
    state, held, booked = HoldState.HELD, 1, 0
    for to in steps:
        by = move(state, to)
        if by is not None:
            state, held, booked = to, held + by.held, booked + by.booked
        assert (held, booked) == {
            HoldState.HELD: (1, 0),
            HoldState.BOOKED: (0, 1),
            HoldState.RELEASED: (0, 0),
        }[state]


def test_a_step_that_comes_twice_does_nothing_the_second_time() -> None:
    """Moving a hold to the state that it is in changes no night."""
    for state in HoldState:
        by = move(state, state)
        assert by is not None
        assert not by.changes


def test_the_moves_that_are_refused_are_these_two() -> None:
    """Released nights are not booked, and booked ones do not become held again; all else is allowed."""
    refused = [(now, to) for now, to in product(HoldState, HoldState) if move(now, to) is None]
    assert refused == [(HoldState.BOOKED, HoldState.HELD), (HoldState.RELEASED, HoldState.BOOKED)]


def test_booking_moves_units_from_held_to_booked() -> None:
    """The total taken stays the same, so booking cannot fail for lack of places."""
    assert move(HoldState.HELD, HoldState.BOOKED) == Move(held=-1, booked=+1)


def test_a_night_with_too_little_left_is_named_as_full() -> None:
    """The answer names exactly the nights that are short."""
    stay = Stay(LISTING, {"dog-M": 2}, FRIDAY, SUNDAY)
    why = shortage(stay, {(SATURDAY, "dog-M")}, [night(SATURDAY, held=1, booked=1)])
    assert (why.full, why.stale) == ([SATURDAY], [])


def test_a_place_without_a_row_is_full() -> None:
    """A listing that has no such pool takes no such pet."""
    stay = Stay(LISTING, {"dog-XL": 1}, FRIDAY, SATURDAY)
    assert shortage(stay, stay.places, []).full == [FRIDAY]


def test_a_night_with_room_that_was_refused_is_stale() -> None:
    """Where there is room, only a later fencing number can have refused the hold."""
    stay = Stay(LISTING, {"dog-M": 1}, FRIDAY, SATURDAY)
    why = shortage(stay, stay.places, [night(FRIDAY, fence=9)])
    assert (why.full, why.stale) == ([], [FRIDAY])
