"""The tables as SQLAlchemy Core sees them; the migrations are what makes them."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, DateTime, MetaData, SmallInteger, Table, Text, UniqueConstraint, Uuid, text
from sqlalchemy.schema import Index

metadata = MetaData()

wallets = Table(
    "wallets",
    metadata,
    Column("user_id", Uuid, primary_key=True),
    Column("balance_cents", BigInteger, nullable=False, server_default=text("0")),
    Column("opened_at", DateTime(timezone=True), nullable=False, server_default=text("clock_timestamp()")),
)

escrows = Table(
    "escrows",
    metadata,
    Column("order_id", Uuid, primary_key=True),
    Column("owner_id", Uuid, nullable=False),
    Column("charged_cents", BigInteger, nullable=False),
    Column("balance_cents", BigInteger, nullable=False),
    Column("opened_at", DateTime(timezone=True), nullable=False, server_default=text("clock_timestamp()")),
)

ledger_entries = Table(
    "ledger_entries",
    metadata,
    Column("transfer_id", Uuid, primary_key=True),
    Column("line", SmallInteger, primary_key=True, autoincrement=False),
    Column("kind", Text, nullable=False),
    Column("order_id", Uuid),
    Column("account_kind", Text, nullable=False),
    Column("account_id", Uuid),
    Column("amount_cents", BigInteger, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=text("clock_timestamp()")),
    UniqueConstraint("order_id", "kind", "line", name="ledger_entries_once"),
    Index("ledger_entries_account", "account_id", "transfer_id", "line"),
)
