"""Back-off between tries."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from coordinator.client.backoff import backoff_s


@given(st.integers(0, 10**6), st.integers())
def test_a_pause_is_positive_and_never_above_its_cap(attempt: int, seed: int) -> None:
    """However often it failed."""
    assert 0 < backoff_s(attempt, 0.01, 2.0, Random(seed)) <= 2.0


def test_pauses_grow_and_differ_between_clients() -> None:
    """Each try waits longer, and two clients do not come back at the same moment."""
    dice = Random(7)
    pauses = [backoff_s(attempt, 0.01, 100.0, dice) for attempt in range(10)]
    assert all(later > earlier for earlier, later in zip(pauses, pauses[2:], strict=False))
    assert len({backoff_s(3, 0.01, 100.0, Random(seed)) for seed in range(20)}) == 20
