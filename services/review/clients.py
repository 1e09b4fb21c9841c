"""The services that the review service asks."""

from __future__ import annotations

from uuid import UUID

from services.kit.runtime import Runtime
from services.review.schemas import Stay


async def stay_of(runtime: Runtime, order_id: UUID) -> Stay:
    """A stay. Raises the order service's 404 when there is none."""
    return await runtime.service("order").call("GET", f"/internal/orders/{order_id}", Stay)
