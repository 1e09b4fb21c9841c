"""Waits that are shortened in the processes under test, so that a recovery takes seconds and not half a minute.

Their order stays what it is: a global transaction ends before the gate's lease, and that before the lease of a key.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

from tests.faults.crash.injection import resolve

QUICK: Mapping[str, tuple[float, float]] = {
    "services.order.config.TRANSACTION_TIMEOUT_S": (10.0, 1.5),
    "services.kit.locks.LEASE_S": (15, 2),
    "services.kit.idempotency.LEASE_S": (30, 3),
    "services.kit.outbox.POLL_MAX_S": (1.0, 0.5),
    "services.kit.broker.HEARTBEAT_TIMEOUT_MS": (10_000, 1_000),
    "services.kit.broker.MAINTENANCE_CHANCE": (20_000, 1_000_000),
    "coordinator.client.settle.LEASE_TTL_S": (5.0, 1.0),
}
"""What is shortened: from, to. A value that has changed is an error: think again about its order."""

EARLY_HINTS: Mapping[str, tuple[float, float]] = {
    "coordinator.client.transport.HINT_AGE_S": (0.25, 0.0),
    "coordinator.client.transport.HINT_LINGER_S": (0.05, 0.0),
}
"""Begin and register leave at once, as they do in a transaction that lasts longer than these."""

LATE_HINTS: Mapping[str, tuple[float, float]] = {"coordinator.client.transport.HINT_AGE_S": (0.25, 60.0)}
"""Begin and register are not sent before the decision, as in a quick transaction, however slow the machine is."""


def hurry(changes: Mapping[str, tuple[float, float]]) -> None:
    """Makes the changes, also where a constant was imported by its name. Raises LookupError, ValueError."""
    for target, (was, shall_be) in changes.items():
        _, name, found = resolve(target)
        if found != was:
            raise ValueError(f"{target} is {found}, not {was}: think about what follows from it, then correct the list")
        room = target.split(".")[0]
        for module_name, module in list(sys.modules.items()):
            if module_name.split(".")[0] == room and vars(module).get(name) == was:
                setattr(module, name, shall_be)
