"""Delays between tries."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from coordinator.tc.core.backoff import Backoff

dice = st.floats(0, 1, exclude_max=True)


@given(st.integers(0, 10_000), dice)
def test_delays_grow_to_the_cap_and_never_vanish(attempt: int, thrown: float) -> None:
    """Whatever the dice say, nobody comes back at once or later than the cap."""
    delay_s = Backoff(first_s=0.1, cap_s=30.0).delay_s(attempt, thrown)
    assert delay_s is not None
    step = min(30.0, 0.1 * 2.0 ** min(attempt, 60))
    assert step / 2 <= delay_s <= step


def test_tries_end_where_an_end_is_given() -> None:
    """After the last try there is no next one."""
    limited = Backoff(first_s=1.0, cap_s=2.0, attempts_max=3)
    assert [limited.delay_s(attempt, 0.0) for attempt in range(5)] == [0.5, 1.0, 1.0, None, None]
