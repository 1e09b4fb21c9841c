"""What the review service tells others, through its outbox."""

from __future__ import annotations

from typing import Any
from uuid import UUID

NOTIFICATION_QUEUE = "notification"
NOTIFICATION_ACTOR = "notification.notify"
BOARDING_QUEUE = "boarding"
RATING_ACTOR = "boarding.rating"


def review_published(recipient: UUID, order_id: UUID, rating: int) -> dict[str, Any]:
    """The arguments of the notification to whoever was reviewed."""
    return {
        "recipient": str(recipient),
        "kind": "review_published",
        "title": "您收到了新的评价",
        "text": f"评分 {rating} 星，双方评价已公开。",
        "order_id": str(order_id),
    }


def rating_changed(listing_id: UUID, count: int, mean_x100: int) -> dict[str, Any]:
    """The arguments of the listing's new rating."""
    return {"listing_id": str(listing_id), "count": count, "mean_x100": mean_x100}
