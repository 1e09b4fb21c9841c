"""What is due with time: transactions past their deadline, decisions not followed yet, alerts, and old history.

Any number of replicas run this; they share the work by row locks that nobody waits for.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import structlog

from coordinator.tc.alerts import Alerts
from coordinator.tc.config import Limits
from coordinator.tc.core.backoff import Backoff
from coordinator.tc.store import CLASH_ERRORS, Ruled, Store, StoreUnavailable

RETRY = Backoff(first_s=0.25, cap_s=15.0)
ALERT_LOOK_INTERVAL_S = 1.0

log = structlog.get_logger(__name__)


class Recovery:
    """The loop of one replica. `decided` hears of the rollbacks made here; `nudge` of what should be told again."""

    def __init__(
        self,
        store: Store,
        limits: Limits,
        decided: Callable[[list[Ruled]], None],
        nudge: Callable[[list[Ruled]], None],
        alerts: Alerts,
        dice: Callable[[], float],
    ) -> None:
        self.timed_out = 0
        self._store = store
        self._limits = limits
        self._decided = decided
        self._nudge = nudge
        self._alerts = alerts
        self._dice = dice
        self._alerts_at = 0.0
        self._purge_at = 0.0

    async def run(self) -> None:
        """Sweeps for ever; backs off while the store is away."""
        failures = 0
        while True:
            try:
                more = await self.sweep()
                failures = 0
                # Where a round was full there is more: go on at once, but let others run.
                await asyncio.sleep(0 if more else self._limits.sweep_interval_s * (0.75 + self._dice() / 2))
            except (StoreUnavailable, *CLASH_ERRORS) as error:
                delay_s = RETRY.delay_s(failures, self._dice()) or 0.0
                failures += 1
                log.warning("recovery.failed", error=str(error), failures=failures, retry_s=round(delay_s, 3))
                await asyncio.sleep(delay_s)

    async def sweep(self) -> bool:
        """One round; True when a batch was full. Raises StoreUnavailable or one of CLASH_ERRORS."""
        limit = self._limits.sweep_transactions_max
        expired = await self._store.expire(limit)
        if expired:
            self.timed_out += len(expired)
            for ruled in expired:
                log.info(
                    "transaction.rolled_back", xid=str(ruled.xid), reason=ruled.reason, resources=list(ruled.resources)
                )
            self._decided(expired)
        due = await self._store.take_due_nudges(limit, self._dice)
        self._nudge(due)
        now = time.monotonic()
        if now >= self._alerts_at:
            self._alerts_at = now + ALERT_LOOK_INTERVAL_S
            await self._alerts.look()
        purged = 0
        if now >= self._purge_at:
            purged = await self._store.purge()
            if purged < self._limits.purge_transactions_max:
                self._purge_at = now + self._limits.purge_interval_s
        return len(expired) >= limit or len(due) >= limit or purged >= self._limits.purge_transactions_max
