"""How long to wait before the next try: exponential, capped, with full jitter (the dice are passed in)."""

from __future__ import annotations

from random import Random


def backoff_s(attempt: int, base_s: float, cap_s: float, dice: Random) -> float:
    """Seconds to wait after failed try number `attempt` (from 0): between half and all of the doubled, capped base."""
    ceiling: float = min(cap_s, base_s * 2.0 ** min(attempt, 32))
    return ceiling * (0.5 + dice.random() / 2)
