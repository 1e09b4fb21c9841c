"""The tables as SQLAlchemy Core sees them; the migrations are what makes them."""

from __future__ import annotations

from sqlalchemy import Boolean, Column, Date, DateTime, Integer, MetaData, SmallInteger, Table, Text, Uuid, text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.schema import Index

metadata = MetaData()

pets = Table(
    "pets",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("owner_id", Uuid, nullable=False),
    Column("name", Text, nullable=False),
    Column("species", Text, nullable=False),
    Column("breed", Text),
    Column("gender", SmallInteger, nullable=False, server_default=text("0")),
    Column("birth_date", Date),
    Column("birth_is_estimate", Boolean, nullable=False, server_default=text("false")),
    Column("weight_g", Integer, nullable=False),
    Column("description", Text),
    Column("created_at", DateTime(timezone=True), nullable=False),
    Column("updated_at", DateTime(timezone=True), nullable=False),
    Column("deleted_at", DateTime(timezone=True)),
    Index("pets_owner", "owner_id", "id"),
)

vaccinations = Table(
    "vaccinations",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("pet_id", Uuid, nullable=False),
    Column("vaccine", Text, nullable=False),
    Column("given_on", Date, nullable=False),
    Column("expires_on", Date, nullable=False),
    Column("note", Text),
    Index("vaccinations_pet", "pet_id"),
)

care_plans = Table(
    "care_plans",
    metadata,
    Column("pet_id", Uuid, primary_key=True),
    Column("feeding", Text),
    Column("medicines", JSONB, nullable=False, server_default=text("'[]'::jsonb")),
    Column("vet", JSONB(none_as_null=True)),
    Column("contact", JSONB(none_as_null=True)),
    Column("updated_at", DateTime(timezone=True), nullable=False),
)

claims = Table(
    "claims",
    metadata,
    Column("order_id", Uuid, primary_key=True),
    Column("owner_id", Uuid, nullable=False),
    Column("pet_ids", ARRAY(Uuid), nullable=False),
    Column("check_in", Date, nullable=False),
    Column("check_out", Date, nullable=False),
    Column("released", Boolean, nullable=False, server_default=text("false")),
    Column("changed_at", DateTime(timezone=True), nullable=False, server_default=text("clock_timestamp()")),
)

claimed_nights = Table(
    "claimed_nights",
    metadata,
    Column("pet_id", Uuid, primary_key=True),
    Column("night", Date, primary_key=True),
    Column("order_id", Uuid, nullable=False),
    Index("claimed_nights_order", "order_id"),
)
