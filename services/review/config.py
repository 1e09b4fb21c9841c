"""What the review service is, and its constants."""

from __future__ import annotations

from services.kit.spec import ServiceSpec

SPEC = ServiceSpec(
    name="review",
    port=8085,
    purpose="Reviews of finished stays, both ways, shown when both are in.",
    calls=("order",),
)

BLIND_DAYS = 14
"""After this many days a review is shown even when the other side wrote none."""
PUBLISH_INTERVAL_S = 60
PUBLISH_BATCH_MAX = 200
ORDER_COMPLETED = 3
"""The order service's number of a completed stay."""
