"""What the order service is, and its constants."""

from __future__ import annotations

from services.kit.spec import ServiceSpec

TABLES = ("orders", "order_details", "order_events", "care_logs", "provider_orders")

SPEC = ServiceSpec(
    name="order",
    port=8084,
    purpose="Bookings and their life from the first request to the settled stay.",
    storage="sharded",
    managed=TABLES,
    guarded=(*TABLES, "idempotency_keys"),
    monthly=("orders",),
    calls=("capacity", "pet", "payment", "user", "boarding"),
    has_worker=True,
)

QUEUE = "order"
EXPIRE_ACTOR = "order.expire"
NOTIFICATION_QUEUE = "notification"
NOTIFICATION_ACTOR = "notification.notify"

TRANSACTION_TIMEOUT_S = 10.0
"""Life of a global transaction: shorter than the gate's lease (15 s) and an idempotency key's (30 s)."""

TRANSACTION_ATTEMPTS_MAX = 3
"""How often an operation that lost a deadlock is begun anew before the person is told to try again."""

SWEEP_INTERVAL_S = 5.0
SWEEP_GRACE_S = 2
"""How long the sweeper leaves an unpaid order to its message."""
SWEEP_BATCH_MAX = 100

MONTHS_AHEAD = 3
MONTHS_INTERVAL_S = 86_400.0

CARE_LOGS_PER_ORDER_MAX = 2_000
CONSISTENCY_BATCH_MAX = 1_000
