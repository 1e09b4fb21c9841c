"""The messages that the boarding service takes."""

from __future__ import annotations

from uuid import UUID

import dramatiq

from services.boarding.config import QUEUE
from services.boarding.use_cases import Listings

RATING = "boarding.rating"


def declare_actors(broker: dramatiq.Broker, listings: Listings) -> None:
    """Declares the actors on `broker`."""

    @dramatiq.actor(broker=broker, actor_name=RATING, queue_name=QUEUE)
    async def rating(*, listing_id: str, count: int, mean_x100: int, message_id: str) -> None:
        await listings.rate(UUID(listing_id), count, mean_x100)
