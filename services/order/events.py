"""What people are told when an order changes: one message for each of them, through the outbox."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any, Literal
from uuid import UUID

Recipient = Literal["owner", "provider"]


@dataclass(frozen=True)
class Subject:
    """The order that a message is about."""

    order_id: UUID
    owner_id: UUID
    provider_id: UUID
    title: str
    check_in: date
    check_out: date


@dataclass(frozen=True)
class Notification:
    """The arguments of the actor ``notification.notify``."""

    recipient: UUID
    kind: str
    title: str
    text: str
    order_id: UUID

    def args(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "recipient": str(self.recipient),
            "kind": self.kind,
            "title": self.title,
            "text": self.text,
            "order_id": str(self.order_id),
        }


# kind -> recipient -> (title, text)
_TEXTS: Mapping[str, Mapping[Recipient, tuple[str, str]]] = {
    "order_created": {
        "owner": ("预订已提交", "「{title}」{stay} 的预订已创建，请在规定时间内完成支付。"),
        "provider": ("收到新的预订", "「{title}」收到 {stay} 的预订，等待宠物主人支付。"),
    },
    "payment_completed": {
        "owner": ("支付成功", "「{title}」{stay} 的订单已支付成功。"),
        "provider": ("订单已支付", "「{title}」{stay} 的订单已支付，请尽快处理。"),
    },
    "order_confirmed": {
        "owner": ("预订已确认", "「{title}」{stay} 的预订已被接受。"),
        "provider": ("预订已确认", "您已接受「{title}」{stay} 的预订。"),
    },
    "order_rejected": {
        "owner": ("预订被拒绝", "「{title}」{stay} 的预订未被接受，款项已全额退回。"),
        "provider": ("预订已拒绝", "您已拒绝「{title}」{stay} 的预订。"),
    },
    "order_cancelled": {
        "owner": ("订单已取消", "「{title}」{stay} 的订单已取消，应退款项已退回钱包。"),
        "provider": ("订单已取消", "「{title}」{stay} 的订单已取消。"),
    },
    "order_expired": {
        "owner": ("订单已过期", "「{title}」{stay} 的订单因未按时支付已失效。"),
        "provider": ("订单已过期", "「{title}」{stay} 的订单因未按时支付已失效。"),
    },
    "check_in": {
        "owner": ("宠物已入住", "「{title}」已为您的宠物办理入住。"),
        "provider": ("入住已办理", "「{title}」{stay} 的入住已办理。"),
    },
    "care_log": {
        "owner": ("新的护理记录", "「{title}」更新了今日护理记录。"),
    },
    "order_completed": {
        "owner": ("寄养已完成", "「{title}」{stay} 的寄养已完成，欢迎评价。"),
        "provider": ("寄养已完成", "「{title}」{stay} 的寄养已完成，款项已结算。"),
    },
}

KINDS: tuple[str, ...] = tuple(_TEXTS)


def notifications(kind: str, subject: Subject) -> list[Notification]:
    """The messages that an event of `kind` sends, one for each person concerned. Raises KeyError for other kinds."""
    people: dict[Recipient, UUID] = {"owner": subject.owner_id, "provider": subject.provider_id}
    words = {"title": subject.title, "stay": f"{subject.check_in} 至 {subject.check_out}"}
    return [
        Notification(people[recipient], kind, title, text.format_map(words), subject.order_id)
        for recipient, (title, text) in _TEXTS[kind].items()
    ]
