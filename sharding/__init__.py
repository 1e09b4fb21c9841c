"""Shards for SQLAlchemy and asyncpg over PostgreSQL: ids that carry their bucket, a versioned map, routing, fan-out.

    tables = ShardedTables()
    tables.sharded(Invoice, id_columns=("id", "customer_id"))
    async with MapStore(catalog_url) as store:
        shards = Shards(store, engines)
        async with shards.session(customer_id) as session: ...
        answer = await Router(shards, tables).execute(select(Invoice).order_by(Invoice.id).limit(20))

Knows nothing of any service and nothing of global transactions. See docs/how-to/use-sharding.md.
"""

from __future__ import annotations

from sharding.buckets import BUCKET_COUNT, Bucket, Key, bucket, bucket_of
from sharding.catalog import MapStore, change_map, create_catalog, load_map
from sharding.connections import is_moved
from sharding.cursors import Cursors, Position, page
from sharding.errors import (
    BadCursor,
    BucketMoved,
    CannotMerge,
    CannotPlace,
    CatalogUnavailable,
    GuardRefused,
    MapConflict,
    NotAKey,
    PartitionsRefused,
    ShardingError,
    ShardUnavailable,
    TooManyRows,
    UnknownShard,
)
from sharding.fan_out import FAN_OUT_ROWS_MAX, FAN_OUT_TIMEOUT_S, Answer, fan_out
from sharding.guard import BucketState, GuardReport, bucket_states, install_guard, set_bucket_states
from sharding.ids import IdMaker, bucket_for, bucket_of_id, new_id, time_of_id
from sharding.partitions import Partition, ensure_months, month_of, partitions_of
from sharding.router import Router
from sharding.routing import Part, Plan, plan
from sharding.shard_map import ShardId, ShardMap, even_map, with_placements
from sharding.shards import Shards
from sharding.status import FleetStatus, ShardStatus, summarize
from sharding.tables import ShardedTable, ShardedTables

__all__ = [
    "BUCKET_COUNT",
    "FAN_OUT_ROWS_MAX",
    "FAN_OUT_TIMEOUT_S",
    "Answer",
    "BadCursor",
    "Bucket",
    "BucketMoved",
    "BucketState",
    "CannotMerge",
    "CannotPlace",
    "CatalogUnavailable",
    "Cursors",
    "FleetStatus",
    "GuardRefused",
    "GuardReport",
    "IdMaker",
    "Key",
    "MapConflict",
    "MapStore",
    "NotAKey",
    "Part",
    "Partition",
    "PartitionsRefused",
    "Plan",
    "Position",
    "Router",
    "ShardId",
    "ShardMap",
    "ShardStatus",
    "ShardUnavailable",
    "ShardedTable",
    "ShardedTables",
    "ShardingError",
    "Shards",
    "TooManyRows",
    "UnknownShard",
    "bucket",
    "bucket_for",
    "bucket_of",
    "bucket_of_id",
    "bucket_states",
    "change_map",
    "create_catalog",
    "ensure_months",
    "even_map",
    "fan_out",
    "install_guard",
    "is_moved",
    "load_map",
    "month_of",
    "new_id",
    "page",
    "partitions_of",
    "plan",
    "set_bucket_states",
    "summarize",
    "time_of_id",
    "with_placements",
]
