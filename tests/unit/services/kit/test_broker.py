"""How long a message is tried again."""

from __future__ import annotations

from dramatiq.common import compute_backoff
from dramatiq.middleware import Retries

from services.kit.broker import make_broker

NIGHT_MS = 12 * 3600 * 1000


def test_a_message_outlives_what_it_needs_being_away_for_a_night() -> None:
    """The pauses between its retries add up to more, so that nobody has to bring it back by hand."""
    [retries] = [m for m in make_broker("redis://127.0.0.1:1/0", processing=True).middleware if isinstance(m, Retries)]
    pauses_ms = (
        compute_backoff(number, factor=retries.min_backoff, max_backoff=retries.max_backoff)[1]
        for number in range(retries.max_retries)
    )
    assert sum(pauses_ms) > NIGHT_MS
