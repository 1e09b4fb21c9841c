"""What messages make the order service do."""

from __future__ import annotations

from uuid import UUID

import dramatiq

from services.order.config import EXPIRE_ACTOR, QUEUE
from services.order.use_cases import Expiry


def declare_expire(broker: dramatiq.Broker, expiry: Expiry) -> None:
    """Declares the actor that ends an unpaid order when its window is over."""

    @dramatiq.actor(broker=broker, actor_name=EXPIRE_ACTOR, queue_name=QUEUE)
    async def expire(*, order_id: str, message_id: str) -> None:
        await expiry.expire(UUID(order_id), UUID(message_id))
