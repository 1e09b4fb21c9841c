"""The messages that the notification service takes."""

from __future__ import annotations

from uuid import UUID

import dramatiq

from services.notification.config import QUEUE
from services.notification.use_cases import Notifications

NOTIFY = "notification.notify"


def declare_actors(broker: dramatiq.Broker, notifications: Notifications) -> None:
    """Declares the actors on `broker`."""

    @dramatiq.actor(broker=broker, actor_name=NOTIFY, queue_name=QUEUE)
    async def notify(
        *, recipient: str, kind: str, title: str, text: str, message_id: str, order_id: str | None = None
    ) -> None:
        await notifications.notify(
            message_id=UUID(message_id),
            recipient=UUID(recipient),
            kind=kind,
            title=title,
            text=text,
            order_id=None if order_id is None else UUID(order_id),
        )
