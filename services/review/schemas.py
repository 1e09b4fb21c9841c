"""The wire shapes of the review service."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated
from uuid import UUID

import msgspec
from msgspec import Meta

Text = Annotated[str, Meta(min_length=1, max_length=4000)]


class Write(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A review of a completed stay; which side it is from follows from who asks."""

    order_id: UUID
    rating: Annotated[int, Meta(ge=1, le=5)]
    text: Text


class ReplyTo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The one reply of whoever was reviewed."""

    text: Text


class ReportOf(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Why a review breaks the rules."""

    reason: Annotated[str, Meta(min_length=1, max_length=1000)]


class Review(msgspec.Struct, frozen=True):
    """A review; `published_at` is None while it is hidden."""

    id: UUID
    order_id: UUID
    direction: str
    author_id: UUID
    subject_id: UUID
    listing_id: UUID
    rating: int
    text: str
    written_at: datetime
    published_at: datetime | None = None
    reply: str | None = None
    replied_at: datetime | None = None


class Summary(msgspec.Struct, frozen=True):
    """How a listing is rated; `score` is what sorts, made by `formula`."""

    listing_id: UUID
    count: int
    mean: float
    score: float
    formula: str


class Stay(msgspec.Struct, frozen=True):
    """What the order service says of a stay."""

    id: UUID
    owner_id: UUID
    provider_id: UUID
    listing_id: UUID
    status: int


class Message(msgspec.Struct, frozen=True):
    """A plain answer."""

    message: str
