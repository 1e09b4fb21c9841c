"""A small fleet for the tests of sharding: two shards, a catalog, and one unsharded twin to compare with."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import asyncpg
from sqlalchemy import (
    BigInteger,
    Column,
    DateTime,
    Double,
    Integer,
    MetaData,
    Numeric,
    SmallInteger,
    String,
    Table,
    Uuid,
)
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from sharding import MapStore, Router, ShardedTables, ShardId, Shards, create_catalog, install_guard

SHARD_0 = ShardId("shard-0")
SHARD_1 = ShardId("shard-1")
metadata = MetaData()
invoices = Table(
    "invoices",
    metadata,
    Column("bucket", SmallInteger, primary_key=True),
    Column("id", Uuid, primary_key=True),
    Column("customer_id", Uuid, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False),
    Column("amount", Numeric),
    Column("pieces", Integer),
    Column("weight", BigInteger),
    Column("ratio", Double),
    Column("note", String(collation="C")),
    Column("title", String),
)
lines = Table(
    "lines",
    metadata,
    Column("bucket", SmallInteger, primary_key=True),
    Column("invoice_id", Uuid, primary_key=True),
    Column("line", Integer, primary_key=True),
    Column("text", String),
)
logins = Table(
    "logins",
    metadata,
    Column("bucket", SmallInteger, primary_key=True),
    Column("login", String, primary_key=True),
    Column("customer_id", Uuid),
)
colors = Table("colors", metadata, Column("name", String, primary_key=True))


def declared() -> ShardedTables:
    """The declarations of the tables above; `colors` has none."""
    tables = ShardedTables()
    tables.sharded(invoices, id_columns=("id", "customer_id"))
    tables.sharded(lines, id_columns=("invoice_id",))
    tables.sharded(logins, key="login")
    return tables


@dataclass
class Fleet:
    """Two shards behind a map, as an application holds them."""

    catalog_dsn: str
    dsns: dict[ShardId, str]
    store: MapStore
    shards: Shards
    tables: ShardedTables = field(default_factory=declared)

    @property
    def router(self) -> Router:
        """A router over the fleet's tables."""
        return Router(self.shards, self.tables)

    async def raw(self, shard: ShardId) -> Any:
        """A new asyncpg connection to a shard; the caller closes it."""
        return await asyncpg.connect(self.dsns[shard])


async def make_fleet(catalog_dsn: str, dsns: dict[ShardId, str]) -> None:
    """Makes tables, guards and catalog in empty databases."""
    for dsn in dsns.values():
        engine = create_async_engine(dsn.replace("postgresql://", "postgresql+asyncpg://"))
        async with engine.begin() as connection:
            await connection.run_sync(metadata.create_all)
        await engine.dispose()
    await reset_fleet(catalog_dsn, dsns)


async def reset_fleet(catalog_dsn: str, dsns: dict[ShardId, str]) -> None:
    """Empties the tables and puts map and guards back to even."""
    catalog = await asyncpg.connect(catalog_dsn)
    await catalog.execute("DROP SCHEMA IF EXISTS sharding CASCADE")
    first = await create_catalog(catalog, sorted(dsns))
    await catalog.close()
    for shard, dsn in dsns.items():
        raw = await asyncpg.connect(dsn)
        await raw.execute("DROP SCHEMA IF EXISTS sharding CASCADE; TRUNCATE invoices, lines, logins")
        await install_guard(raw, ["invoices", "lines", "logins"], shard, first.buckets_of(shard))
        await raw.close()


@asynccontextmanager
async def fleet_over(catalog_dsn: str, dsns: dict[ShardId, str]) -> AsyncIterator[Fleet]:
    """Connects to a fleet that was made."""
    async with AsyncExitStack() as stack:
        engines: dict[ShardId, AsyncEngine] = {}
        for shard, dsn in dsns.items():
            engines[shard] = create_async_engine(dsn.replace("postgresql://", "postgresql+asyncpg://"))
            stack.push_async_callback(engines[shard].dispose)
        store = await stack.enter_async_context(MapStore(catalog_dsn, poll_interval_s=30))
        yield Fleet(catalog_dsn, dsns, store, Shards(store, engines))
