"""The tables as SQLAlchemy Core sees them; the migrations are what makes them."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Date, DateTime, Integer, MetaData, SmallInteger, Table, Text, Uuid, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.schema import Index

metadata = MetaData()

pools = Table(
    "pools",
    metadata,
    Column("listing_id", Uuid, primary_key=True),
    Column("pool", Text, primary_key=True),
    Column("total", Integer, nullable=False),
)

nights = Table(
    "nights",
    metadata,
    Column("listing_id", Uuid, primary_key=True),
    Column("night", Date, primary_key=True),
    Column("pool", Text, primary_key=True),
    Column("total", Integer, nullable=False),
    Column("held", Integer, nullable=False, server_default=text("0")),
    Column("booked", Integer, nullable=False, server_default=text("0")),
    Column("fence", BigInteger, nullable=False, server_default=text("0")),
)

holds = Table(
    "holds",
    metadata,
    Column("order_id", Uuid, primary_key=True),
    Column("listing_id", Uuid, nullable=False),
    Column("pools", JSONB, nullable=False),
    Column("check_in", Date, nullable=False),
    Column("check_out", Date, nullable=False),
    Column("state", SmallInteger, nullable=False),
    Column("fence", BigInteger),
    Column("changed_at", DateTime(timezone=True), nullable=False, server_default=text("clock_timestamp()")),
    Index("holds_listing", "listing_id", "check_in"),
)
