"""Steps of the recovery, in which it is killed again: by the dotted name of the code, and in which processes."""

from __future__ import annotations

from tests.faults.crash.steps import ALL_LOSSES, SAY, SUBMIT
from tests.faults.crash.vocabulary import AFTER, KILLS, Step, no_coordinator, says

ORDERS = "order+worker"
"""Both have the order service's databases, and one of them the lease to sweep them."""


def _in(*processes: str) -> dict[str, str]:
    return dict.fromkeys(processes, "")


RECOVERY: tuple[Step, ...] = (
    Step("key is taken again", "services.kit.idempotency._open", _in("order"), AFTER),
    Step("kept answer is given", "services.kit.idempotency.once", _in("order"), AFTER),
    Step(
        "service starts",
        "services.kit.runtime.Runtime.start",
        _in("order", "capacity", "pet", "payment", "worker", "messenger"),
    ),
    Step("coordinator opens its store", "coordinator.tc.store.Store.open", _in("coordinator")),
    Step(
        "sweep finds open branches",
        "coordinator.resource.unsettled",
        _in(ORDERS, "capacity", "pet", "payment"),
        AFTER,
        done=bool,
    ),
    Step("sweep asks", SAY, _in(ORDERS, "capacity"), ALL_LOSSES, says("Ask"), lost=no_coordinator),
    Step("question is answered", SUBMIT, _in("coordinator"), KILLS, says("Ask")),
    Step("time-out is decided", "coordinator.tc.store.Store.expire", _in("coordinator"), AFTER, done=bool),
    Step("recovery undoes", "coordinator.resource.undo", _in(ORDERS, "capacity", "pet", "payment")),
    Step("recovery forgets", "coordinator.resource.forget", _in(ORDERS, "capacity", "pet", "payment")),
    Step("resources are nudged again", "coordinator.tc.nudges.Nudger._post", _in("coordinator")),
    Step("recovery confirms", SUBMIT, _in("coordinator"), KILLS, says("Confirm")),
    Step("commit is repeated", SAY, _in("order"), KILLS, says("Decide", commit=True)),
    Step("outbox is read again", "services.kit.outbox.Relay._send_all", _in("order")),
    Step("notification comes again", "services.notification.use_cases.Notifications.notify", _in("messenger")),
    Step("expiry comes again", "services.order.use_cases.expiry.Expiry.expire", _in("worker")),
)
"""Whether a step comes depends on what was killed first."""
