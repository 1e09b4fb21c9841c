"""What the admin service is, and its constants."""

from __future__ import annotations

from services.kit.spec import ServiceSpec

SPEC = ServiceSpec(
    name="admin",
    port=8087,
    purpose="Approvals, moderation and the audit log; the running state of the whole.",
    managed=("audit_log", "audit_head"),
    calls=("user", "boarding", "capacity", "payment", "order"),
)

DECISION_TIMEOUT_S = 10.0
CHECKED = ("capacity", "payment", "order")
"""Services that can tell whether their part of the promises holds."""
HEALTH_TIMEOUT_S = 3.0
