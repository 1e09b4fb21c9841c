"""`shards`: what lies where."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import asyncpg

from deploy.console import out, plain_words, print_json, table
from deploy.embedded.problems import ExitCode
from deploy.embedded.system import EmbeddedSystem, data_folder
from deploy.embedded.topology import DATABASES, SHARD_MAP, SHARDS, Topology

CONNECT_TIMEOUT_S = 3.0

TABLES_SQL = """
SELECT coalesce(sum(greatest(s.n_live_tup, 0)), 0)::bigint AS rows_about, pg_database_size(current_database()) AS bytes
FROM pg_stat_user_tables AS s WHERE s.schemaname = 'public'
"""


def status(data: Path | None, as_json: bool) -> None:
    """Prints each shard's databases. Exit code 1 when one does not answer."""
    with plain_words():
        found = asyncio.run(_status(EmbeddedSystem(data_folder(data)).topology()))
        if as_json:
            print_json(found)
        else:
            out.print(f"shard map version {found['map_version']}, {found['buckets']} buckets")
            shown = table("shard", "state", "buckets", "database", "rows (about)", "size")
            for shard in found["shards"]:
                for number, database in enumerate(shard["databases"]):
                    first = number == 0
                    shown.add_row(
                        shard["name"] if first else "",
                        ("[green]up[/green]" if shard["up"] else "[red]down[/red]") if first else "",
                        str(shard["buckets"]) if first else "",
                        database["name"],
                        str(database["rows_about"]),
                        f"{database['bytes'] / 1_000_000:.1f} MB",
                    )
            out.print(shown)
        raise SystemExit(int(ExitCode.OK if all(shard["up"] for shard in found["shards"]) else ExitCode.FAILED))


async def _status(topology: Topology) -> dict[str, Any]:
    shards = await asyncio.gather(*(_shard(topology, shard) for shard in SHARDS))
    version, owned = await _shard_map(topology)
    for shard in shards:
        shard["buckets"] = owned.get(shard["name"], 0)
    return {"map_version": version, "buckets": sum(owned.values()), "shards": shards}


async def _shard_map(topology: Topology) -> tuple[int, dict[str, int]]:
    """The version of the shard map and how many buckets each shard holds."""
    from sharding import load_map

    database = next(found for found in DATABASES if found.name == SHARD_MAP)
    connection: asyncpg.Connection = await asyncpg.connect(topology.database_url(database, admin=True))
    try:
        found = await load_map(connection)
    finally:
        await connection.close()
    return found.version, dict(Counter(str(shard) for shard in found.placements))


async def _shard(topology: Topology, shard: str) -> dict[str, Any]:
    databases = []
    for database in (found for found in DATABASES if found.server == shard):
        try:
            dsn = topology.database_url(database, admin=True)
            connection: asyncpg.Connection = await asyncpg.connect(dsn, timeout=CONNECT_TIMEOUT_S)
        except (OSError, TimeoutError, asyncpg.exceptions.PostgresError):
            return {"name": shard, "up": False, "databases": []}
        try:
            row = await connection.fetchrow(TABLES_SQL)
        finally:
            await connection.close()
        databases.append({"name": database.name, "rows_about": row["rows_about"], "bytes": row["bytes"]})
    return {"name": shard, "up": True, "databases": databases}
