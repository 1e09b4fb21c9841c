"""The boarding service's tables."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Date,
    DateTime,
    Float,
    Index,
    Integer,
    MetaData,
    SmallInteger,
    Table,
    Text,
    Uuid,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

metadata = MetaData()

listings = Table(
    "listings",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("provider_id", Uuid, nullable=False),
    Column("title", Text, nullable=False),
    Column("city", Text, nullable=False),
    Column("latitude", Float, nullable=False),
    Column("longitude", Float, nullable=False),
    Column("price_cents", BigInteger, nullable=False),
    Column("pools", ARRAY(Text), nullable=False),
    Column("instant_book", Boolean, nullable=False),
    Column("policy", Text, nullable=False),
    Column("time_zone", Text, nullable=False),
    Column("audit_status", SmallInteger, nullable=False),
    Column("rating_count", Integer, nullable=False, server_default="0"),
    Column("rating_x100", Integer, nullable=False, server_default="0"),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.clock_timestamp()),
    Column("updated_at", DateTime(timezone=True), nullable=False, server_default=func.clock_timestamp()),
    Index("listings_of_provider", "provider_id", "id"),
    Index("listings_found", "city", "price_cents", postgresql_where=text("audit_status = 1")),
    Index("listings_by_state", "audit_status", "id"),
)

listing_details = Table(
    "listing_details",
    metadata,
    Column("listing_id", Uuid, primary_key=True),
    Column("description", Text, nullable=False),
    Column("address", Text, nullable=False),
    Column("house_rules", Text, nullable=False),
    Column("schedule", JSONB, nullable=False),
    Column("prices", JSONB, nullable=False),
)

blocked_dates = Table(
    "blocked_dates",
    metadata,
    Column("listing_id", Uuid, primary_key=True),
    Column("night", Date, primary_key=True),
)
