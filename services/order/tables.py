"""The tables of one shard, as SQLAlchemy sees them. The migrations make them; a test compares the two."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Date,
    DateTime,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

metadata = MetaData()

_INSTANT = DateTime(timezone=True)

orders = Table(
    "orders",
    metadata,
    Column("bucket", SmallInteger, primary_key=True, autoincrement=False),
    Column("id", Uuid, primary_key=True),
    Column("created_at", _INSTANT, primary_key=True),
    Column("owner_id", Uuid, nullable=False),
    Column("provider_id", Uuid, nullable=False),
    Column("listing_id", Uuid, nullable=False),
    Column("title", Text, nullable=False),
    Column("check_in", Date, nullable=False),
    Column("check_out", Date, nullable=False),
    Column("status", SmallInteger, CheckConstraint("status BETWEEN 0 AND 10"), nullable=False),
    Column("total_cents", BigInteger, nullable=False),
    Column("refund_cents", BigInteger, nullable=False, server_default=text("0")),
    Column("currency", Text, nullable=False),
    Column("policy", Text, nullable=False),
    Column("instant_book", Boolean, nullable=False),
    Column("time_zone", Text, nullable=False),
    Column("pay_by", _INSTANT, nullable=False),
    Column("version", Integer, nullable=False),
    Column("paid_at", _INSTANT),
    Column("confirmed_at", _INSTANT),
    Column("checked_in_at", _INSTANT),
    Column("checked_out_at", _INSTANT),
    Column("closed_at", _INSTANT),
    postgresql_partition_by="RANGE (created_at)",
)
Index("orders_of_owner", orders.c.bucket, orders.c.owner_id, orders.c.created_at.desc(), orders.c.id.desc())
Index("orders_unpaid", orders.c.pay_by, postgresql_where=text("status = 0"))

order_details = Table(
    "order_details",
    metadata,
    Column("bucket", SmallInteger, primary_key=True, autoincrement=False),
    Column("order_id", Uuid, primary_key=True),
    Column("pets", JSONB, nullable=False),
    Column("lines", JSONB, nullable=False),
    Column("pools", JSONB, nullable=False),
)

order_events = Table(
    "order_events",
    metadata,
    Column("bucket", SmallInteger, primary_key=True, autoincrement=False),
    Column("order_id", Uuid, primary_key=True),
    Column("seq", Integer, primary_key=True, autoincrement=False),
    Column("at", _INSTANT, nullable=False),
    Column("event", Text, nullable=False),
    Column("actor_id", Uuid),
    Column("actor_role", Text, nullable=False),
    Column("from_status", SmallInteger),
    Column("to_status", SmallInteger, nullable=False),
    Column("xid", Uuid),
    Column("data", JSONB, nullable=False),
)

care_logs = Table(
    "care_logs",
    metadata,
    Column("bucket", SmallInteger, primary_key=True, autoincrement=False),
    Column("order_id", Uuid, primary_key=True),
    Column("seq", Integer, primary_key=True, autoincrement=False),
    Column("at", _INSTANT, nullable=False),
    Column("author_id", Uuid, nullable=False),
    Column("entry", JSONB, nullable=False),
    Column("previous_hash", LargeBinary, nullable=False),
    Column("hash", LargeBinary, nullable=False),
)

provider_orders = Table(
    "provider_orders",
    metadata,
    Column("bucket", SmallInteger, primary_key=True, autoincrement=False),
    Column("order_id", Uuid, primary_key=True),
    Column("provider_id", Uuid, nullable=False),
    Column("created_at", _INSTANT, nullable=False),
    Column("owner_id", Uuid, nullable=False),
    Column("listing_id", Uuid, nullable=False),
    Column("title", Text, nullable=False),
    Column("check_in", Date, nullable=False),
    Column("check_out", Date, nullable=False),
    Column("status", SmallInteger, nullable=False),
    Column("total_cents", BigInteger, nullable=False),
    Column("currency", Text, nullable=False),
)
Index(
    "provider_orders_of_provider",
    provider_orders.c.bucket,
    provider_orders.c.provider_id,
    provider_orders.c.created_at.desc(),
    provider_orders.c.order_id.desc(),
)
