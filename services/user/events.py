"""What the user service tells people, past tense; sent through the outbox to the notification service."""

from __future__ import annotations

from typing import Any
from uuid import UUID

NOTIFICATION_QUEUE = "notification"
NOTIFICATION_ACTOR = "notification.notify"

TEXTS = {
    "account_approved": ("账号已通过审核", "欢迎使用 PawStay，现在可以预订和发布了。"),
    "provider_approved": ("寄养服务提供者申请已通过", "现在可以发布寄养服务了。"),
    "account_rejected": ("申请未通过", "您的申请未通过审核。"),
    "account_suspended": ("账号已停用", "您的账号已被管理员停用。"),
    "account_restored": ("账号已恢复", "您的账号已恢复正常。"),
}


def told(kind: str, user_id: UUID) -> dict[str, Any]:
    """The arguments of one notification to `user_id`."""
    title, text = TEXTS[kind]
    return {"recipient": str(user_id), "kind": kind, "title": title, "text": text, "order_id": None}
