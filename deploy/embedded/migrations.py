"""Migrates one database of one service. Its imports are heavy: only the provisioning process imports it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import asyncpg

from deploy.embedded.provision import DatabasePlan
from services.catalog import spec_of
from services.kit.migrate import Placement, migrate
from services.kit.spec import ServiceSpec
from sharding import Bucket, ShardId, create_catalog, load_map

CONNECT_TIMEOUT_S = 10


async def prepare_shard_map(dsn: str, shards: Sequence[str], reader: str) -> None:
    """Makes the shard map when there is none, spread evenly over `shards`; the role `reader` may read it."""
    connection: asyncpg.Connection = await asyncpg.connect(dsn, timeout=CONNECT_TIMEOUT_S)
    try:
        await create_catalog(connection, [ShardId(shard) for shard in shards], roles=[reader])
    finally:
        await connection.close()


def migrate_database(database: DatabasePlan, shard_map_dsn: str) -> None:
    """Brings one service's database to its newest form. Runs in a process of its own."""
    if database.service is not None:
        asyncio.run(_migrate(spec_of(database.service), database, shard_map_dsn))


async def _migrate(spec: ServiceSpec, database: DatabasePlan, shard_map_dsn: str) -> None:
    placement = await _placement(ShardId(database.server), shard_map_dsn) if spec.storage == "sharded" else None
    await migrate(spec, database.admin_dsn, database.role, placement)


async def _placement(shard: ShardId, shard_map_dsn: str) -> Placement:
    """Which buckets the shard map gives `shard` now."""
    catalog: asyncpg.Connection = await asyncpg.connect(shard_map_dsn, timeout=CONNECT_TIMEOUT_S)
    try:
        placements = (await load_map(catalog)).placements
    finally:
        await catalog.close()
    return Placement(shard, [Bucket(number) for number, owner in enumerate(placements) if owner == shard])
