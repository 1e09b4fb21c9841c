"""The wire shapes of the notification service."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

import msgspec


class Notification(msgspec.Struct, frozen=True):
    """One thing that somebody was told; `number` rises."""

    number: int
    id: UUID
    kind: str
    title: str
    text: str
    order_id: UUID | None
    created_at: datetime
    read_at: datetime | None


class Unread(msgspec.Struct, frozen=True):
    """How many are unread."""

    unread: int


class Preferences(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """By kind, whether somebody wants it by e-mail; what is absent is wanted."""

    email: dict[str, bool]


class Contact(msgspec.Struct, frozen=True):
    """What the user service says of somebody's addresses."""

    id: UUID
    name: str
    email: str | None = None
