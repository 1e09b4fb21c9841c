"""Migrates one database of one service. Its imports are heavy: only the provisioning process imports it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import asyncpg

from deploy.embedded.provision import DatabasePlan
from services.catalog import spec_of
from services.kit.migrate import migrate
from services.kit.spec import ServiceSpec
from sharding import Bucket, ShardId, create_catalog, install_guard, load_map

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
    await migrate(spec, database.admin_dsn, database.role)
    if spec.storage == "sharded":
        await _guard(spec, database, shard_map_dsn)


async def _guard(spec: ServiceSpec, database: DatabasePlan, shard_map_dsn: str) -> None:
    """Has the shard refuse rows of buckets that it does not own."""
    shard = ShardId(database.server)
    catalog: asyncpg.Connection = await asyncpg.connect(shard_map_dsn, timeout=CONNECT_TIMEOUT_S)
    try:
        placements = (await load_map(catalog)).placements
    finally:
        await catalog.close()
    owned = [Bucket(number) for number, owner in enumerate(placements) if owner == shard]
    connection: asyncpg.Connection = await asyncpg.connect(database.admin_dsn, timeout=CONNECT_TIMEOUT_S)
    try:
        await install_guard(connection, spec.guarded, shard, owned, roles=[database.role])
    finally:
        await connection.close()
