"""The review service's tables."""

from __future__ import annotations

from sqlalchemy import Column, DateTime, Index, MetaData, SmallInteger, Table, Text, UniqueConstraint, Uuid, func, text

metadata = MetaData()

reviews = Table(
    "reviews",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("order_id", Uuid, nullable=False),
    Column("direction", Text, nullable=False),
    Column("author_id", Uuid, nullable=False),
    Column("subject_id", Uuid, nullable=False),
    Column("listing_id", Uuid, nullable=False),
    Column("rating", SmallInteger, nullable=False),
    Column("text", Text, nullable=False),
    Column("reply", Text),
    Column("written_at", DateTime(timezone=True), nullable=False),
    Column("published_at", DateTime(timezone=True)),
    Column("replied_at", DateTime(timezone=True)),
    UniqueConstraint("order_id", "direction"),
    Index("reviews_of_listing", "listing_id", "published_at", "id"),
    Index("reviews_of_subject", "subject_id", "published_at", "id"),
    Index("reviews_hidden", "written_at", postgresql_where=text("published_at IS NULL")),
)

reports = Table(
    "reports",
    metadata,
    Column("review_id", Uuid, primary_key=True),
    Column("reporter_id", Uuid, primary_key=True),
    Column("reason", Text, nullable=False),
    Column("reported_at", DateTime(timezone=True), nullable=False, server_default=func.clock_timestamp()),
)
