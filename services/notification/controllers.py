"""The notification service's HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any
from uuid import UUID

import msgspec
from litestar import Controller, Request, get, post, put
from litestar.params import Parameter
from litestar.response import ServerSentEvent, ServerSentEventMessage

from services.kit.auth import any_user, principal_of
from services.kit.paging import LIMIT_DEFAULT, LIMIT_MAX, Page
from services.notification import domain, schemas
from services.notification.use_cases import Notifications

Asking = Request[Any, Any, Any]
Limit = Annotated[int, Parameter(ge=1, le=LIMIT_MAX)]


class NotificationController(Controller):
    """What whoever asks was told."""

    path = "/api/notifications"
    guards = [any_user]

    @get("/")
    async def page(
        self,
        request: Asking,
        notifications: Notifications,
        unread: bool = False,
        cursor: str | None = None,
        limit: Limit = LIMIT_DEFAULT,
    ) -> Page[schemas.Notification]:
        """Notifications, newest first."""
        return await notifications.page(principal_of(request).user_id, unread=unread, cursor=cursor, limit=limit)

    @get("/unread-count")
    async def unread_count(self, request: Asking, notifications: Notifications) -> schemas.Unread:
        """How many are unread."""
        return schemas.Unread(await notifications.unread(principal_of(request).user_id))

    @post("/{notification_id:uuid}/read", status_code=200)
    async def read(self, request: Asking, notifications: Notifications, notification_id: UUID) -> schemas.Unread:
        """Marks one as read; answers how many are left."""
        user_id = principal_of(request).user_id
        await notifications.read(user_id, notification_id)
        return schemas.Unread(await notifications.unread(user_id))

    @post("/read-all", status_code=200)
    async def read_all(self, request: Asking, notifications: Notifications) -> schemas.Unread:
        """Marks all as read."""
        await notifications.read_all(principal_of(request).user_id)
        return schemas.Unread(0)

    @get("/stream")
    async def stream(
        self,
        request: Asking,
        notifications: Notifications,
        last_event_id: Annotated[str | None, Parameter(header="Last-Event-ID")] = None,
    ) -> ServerSentEvent:
        """Notifications as they come (server-sent events); with Last-Event-ID none is missed."""
        user_id = principal_of(request).user_id
        last = domain.number_of(last_event_id)

        async def events() -> AsyncIterator[ServerSentEventMessage]:
            async for item in notifications.stream(user_id, last):
                yield ServerSentEventMessage(
                    id=str(item.number), event=item.kind, data=msgspec.json.encode(item).decode()
                )

        return ServerSentEvent(events())

    @get("/preferences")
    async def preferences(self, request: Asking, notifications: Notifications) -> schemas.Preferences:
        """By kind, whether it is also sent by e-mail."""
        return await notifications.preferences(principal_of(request).user_id)

    @put("/preferences")
    async def set_preferences(
        self, request: Asking, notifications: Notifications, data: schemas.Preferences
    ) -> schemas.Preferences:
        """Says anew which kinds are sent by e-mail; what is absent is."""
        return await notifications.set_preferences(principal_of(request).user_id, data)
