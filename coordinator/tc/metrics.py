"""Figures for Prometheus, in its text format (version 0.0.4): gauges over all replicas, counters of this one."""

from __future__ import annotations

import time
from collections.abc import Mapping

from coordinator.tc import views
from coordinator.tc.replica import Replica

MEDIA_TYPE = "text/plain; version=0.0.4"
ALERT_KINDS = (
    "transaction.unsettled", "transaction.quarantined", "transaction.diverged", "resource.silent", "resource.went_back",
)  # fmt: skip
"""The kinds that are shown also while there is none."""


async def text(replica: Replica) -> str:
    """All figures. Raises StoreUnavailable."""
    counts = await views.counts(replica.store)
    alerts = dict.fromkeys(ALERT_KINDS, 0) | await views.open_alerts(replica.store)
    opened = dict.fromkeys(ALERT_KINDS, 0) | dict(replica.alerts.opened)
    lines = _metric(
        "transactions",
        "gauge",
        "Global transactions that are not finished, over all replicas.",
        {f'state="{state}"': counts[state] or 0 for state in ("undecided", "settling", "quarantined")},
    )
    oldest_ms = counts["oldest_unsettled_ms"]
    age_s = 0.0 if oldest_ms is None else max(time.time() - oldest_ms / 1000, 0.0)
    help_ = "Age of the oldest decision that its resources have not followed, over all replicas."
    lines += _metric("oldest_unsettled_seconds", "gauge", help_, {"": round(age_s, 3)})
    lines += _metric("waits", "gauge", "Waits for rows of others, over all replicas.", {"": counts["waits"] or 0})
    by_kind = {f'kind="{kind}"': count for kind, count in sorted(alerts.items())}
    lines += _metric("alerts_open", "gauge", "Alerts that hold now, over all replicas.", by_kind)
    by_kind = {f'kind="{kind}"': count for kind, count in sorted(opened.items())}
    lines += _metric("alerts_total", "counter", "Alerts that this replica opened since its start.", by_kind)
    for name, value in replica.statistics().items():
        if name == "waits_open":
            lines += _metric("replica_waits_open", "gauge", "Waits that this replica holds open.", {"": value})
        elif name != "alerts_opened":
            lines += _metric(f"{name}_total", "counter", f"Of this replica since its start: {name}.", {"": value})
    return "\n".join(lines) + "\n"


def _metric(name: str, kind: str, help_: str, values: Mapping[str, float]) -> list[str]:
    full = f"coordinator_{name}"
    shown = [f"{full}{{{labels}}} {value}" if labels else f"{full} {value}" for labels, value in values.items()]
    return [f"# HELP {full} {help_}", f"# TYPE {full} {kind}", *shown]
