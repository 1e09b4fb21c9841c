"""How long to wait before trying again."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backoff:
    """Doubling delays from `first_s` up to `cap_s`; after `attempts_max` tries (None: no end) there is no next one."""

    first_s: float
    cap_s: float
    attempts_max: int | None = None

    def delay_s(self, attempt: int, dice: float) -> float | None:
        """Seconds before try number `attempt` + 1, or None when it was the last.

        `dice` in [0, 1) spreads it over the upper half of the step, so that those who failed together do not come
        back together, and nobody comes back at once.
        """
        if self.attempts_max is not None and attempt >= self.attempts_max:
            return None
        step = min(self.cap_s, self.first_s * 2.0 ** min(attempt, 60))
        return step * (0.5 + dice / 2)
