"""What the boarding service tells people, through its outbox."""

from __future__ import annotations

from typing import Any
from uuid import UUID

NOTIFICATION_QUEUE = "notification"
NOTIFICATION_ACTOR = "notification.notify"

TITLES = {
    "approve": ("listing_approved", "寄养服务已通过审核"),
    "reject": ("listing_rejected", "寄养服务未通过审核"),
    "take-down": ("listing_taken_down", "寄养服务已下架"),
    "restore": ("listing_restored", "寄养服务已恢复上架"),
}


def moderated(verb: str, provider_id: UUID, title: str, reason: str) -> dict[str, Any]:
    """The arguments of the notification to the provider."""
    kind, headline = TITLES[verb]
    text = f"《{title}》" + (f"：{reason}" if reason else "")
    return {"recipient": str(provider_id), "kind": kind, "title": headline, "text": text, "order_id": None}
