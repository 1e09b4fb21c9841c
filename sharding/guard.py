"""Installing and steering the write guard of a shard. What it is made of is in guard.sql."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sharding.buckets import BUCKET_COUNT, Bucket
from sharding.connections import AnyConnection, bare, load_sql, local_setting
from sharding.errors import GuardRefused
from sharding.shard_map import ShardId

INSTALL_LOCK = 7_204_515
"""Key of the advisory lock that lets one installation run at a time."""
FENCE_TIMEOUT_MS = 5_000
TRIGGER = "sharding_guard"
TABLE_SQL = """
SELECT c.oid, c.relkind, c.relispartition, c.oid::regclass::text AS name,
       a.atttypid = 'smallint'::regtype AS is_smallint, a.attnotnull AS not_null, a.attgenerated <> '' AS generated,
       EXISTS (
           SELECT FROM pg_index AS i WHERE i.indrelid = c.oid AND i.indisprimary AND a.attnum = ANY (i.indkey::int2[])
       ) AS in_primary_key
FROM pg_class AS c LEFT JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attname = 'bucket' AND NOT a.attisdropped
WHERE c.oid = to_regclass($1)
"""


class BucketState(StrEnum):
    """How a shard stands to a bucket: writes pass only where it is owned."""

    OWNED = "owned"
    MOVED = "moved"
    ABSENT = "absent"


@dataclass(frozen=True)
class GuardReport:
    """What stands after an installation. `differs` are buckets whose state in the shard is not what was asked for."""

    shard: ShardId
    tables: tuple[str, ...]
    owned: frozenset[Bucket]
    differs: frozenset[Bucket]


async def install_guard(
    connection: AnyConnection,
    tables: Sequence[str],
    shard_id: ShardId,
    owned: Collection[Bucket],
    *,
    roles: Sequence[str] = (),
) -> GuardReport:
    """Makes this database the shard `shard_id` and guards `tables` ("orders" or "schema.orders") in one transaction.

    Repeatable, for new tables too; concurrent callers wait. Buckets that have a state keep it, for only a move may
    change it: an installation with an old map gives nothing back to this shard; it reports what `differs`. Partitions
    made later are guarded by their parent. `roles` may read who owns what; they need nothing to write.
    Raises GuardRefused when the database is another shard already or a table cannot be guarded.
    """
    raw = await bare(connection)
    async with raw.transaction():
        await raw.execute("SELECT pg_advisory_xact_lock($1)", INSTALL_LOCK)
        await raw.execute(load_sql("guard.sql"))
        found = await raw.fetchval(
            "INSERT INTO sharding.self (shard) VALUES ($1) ON CONFLICT (only_row) DO UPDATE SET shard = self.shard"
            " RETURNING shard",
            str(shard_id),
        )
        if found != shard_id:
            raise GuardRefused(f"this database is the shard {found} already, it cannot become {shard_id}")
        await raw.execute(
            "INSERT INTO sharding.bucket (bucket, state, epoch)"
            " SELECT b, CASE WHEN b = ANY ($1::smallint[]) THEN 'owned' ELSE 'absent' END, 1"
            " FROM generate_series(0, $2::int - 1) AS b ON CONFLICT (bucket) DO NOTHING",
            list(owned),
            BUCKET_COUNT,
        )
        names = [await _guard_table(raw, table) for table in tables]
        for role in roles:
            quoted = await raw.fetchval("SELECT quote_ident($1)", role)
            await raw.execute(f"GRANT USAGE ON SCHEMA sharding TO {quoted}")
            await raw.execute(f"GRANT SELECT ON sharding.self, sharding.bucket TO {quoted}")
        states = await bucket_states(raw)
    standing = frozenset(where for where, state in states.items() if state is BucketState.OWNED)
    return GuardReport(shard_id, tuple(names), standing, standing ^ frozenset(owned))


async def bucket_states(connection: AnyConnection) -> dict[Bucket, BucketState]:
    """How this shard stands to each bucket."""
    rows = await (await bare(connection)).fetch("SELECT bucket, state FROM sharding.bucket ORDER BY bucket")
    return {Bucket(row["bucket"]): BucketState(row["state"]) for row in rows}


async def set_bucket_states(
    connection: AnyConnection, buckets: Collection[Bucket], state: BucketState, *, epoch: int
) -> None:
    """Changes how this shard stands to `buckets`, in the caller's transaction where there is one.

    Waits for transactions that write these buckets, up to FENCE_TIMEOUT_MS milliseconds; writers that come after wait
    for the caller's commit and are then judged by the new state. Raises asyncpg.QueryCanceledError on time-out.
    """
    raw = await bare(connection)
    async with raw.transaction():
        # Not lock_timeout: under overlapping readers of a row it starts again with each of them.
        async with local_setting(raw, "statement_timeout", f"{FENCE_TIMEOUT_MS}ms"):
            await raw.execute("SELECT sharding.set_state($1::smallint[], $2, $3)", list(buckets), state.value, epoch)


async def _guard_table(raw: Any, table: str) -> str:
    row = await raw.fetchrow(TABLE_SQL, table)
    if row is None:
        raise GuardRefused(f"there is no table {table}: migrate first")
    name = str(row["name"])
    if row["relkind"] not in (b"r", b"p") or row["relispartition"]:
        raise GuardRefused(f"{name} is not a table of its own: guard ordinary tables and partitioned parents")
    if not row["is_smallint"] or not row["not_null"] or row["generated"]:
        raise GuardRefused(f"{name} needs a plain column: bucket smallint NOT NULL")
    if not row["in_primary_key"]:
        raise GuardRefused(f"{name} needs bucket in its primary key, best as its first column: moves filter by it")
    await raw.execute(
        f"CREATE OR REPLACE TRIGGER {TRIGGER} BEFORE INSERT OR UPDATE OR DELETE ON {name}"
        " FOR EACH ROW EXECUTE FUNCTION sharding.guard()"
    )
    return name
