"""Brings the databases of an embedded system into being, or to their newest form. Repeatable.

Runs as a process of its own between the start of the servers and the start of the services: roles and databases, then
every service's migration. Alembic keeps its context in module globals, so migrations run side by side in processes,
never in threads; the processes are forked after the imports, which are most of the cost, but on macOS, whose libraries
do not bear it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import multiprocessing
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.resources import files
from pathlib import Path

import asyncpg
import msgspec

from deploy.embedded.layout import write_private

PROCESSES_MAX = 3
START_METHOD = "fork" if sys.platform.startswith("linux") else "spawn"
CONNECT_TIMEOUT_S = 10
PLAN_VARIABLE = "PAWSTAY_PROVISION_FILE"
FAILED_EXIT = 1


class DatabasePlan(msgspec.Struct, frozen=True):
    """One database to be: `service` is whose tables it holds, None when its user installs them itself."""

    server: str
    name: str
    role: str
    service: str | None
    admin_dsn: str


class ProvisionPlan(msgspec.Struct, frozen=True):
    """Everything to be there afterwards.

    `servers` maps a server to its superuser's DSN, `passwords` a role to its password.
    """

    servers: dict[str, str]
    passwords: dict[str, str]
    databases: list[DatabasePlan]
    shards: list[str]
    shard_map_dsn: str
    shard_map_reader: str


def main(environ: Mapping[str, str] = os.environ) -> int:
    """Carries the plan out that PAWSTAY_PROVISION_FILE names; an exit code."""
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    plan = msgspec.json.decode(Path(environ[PLAN_VARIABLE]).read_bytes(), type=ProvisionPlan)
    try:
        provision(plan)
    except Exception:  # whatever it was, it belongs into the log that the supervisor shows
        traceback.print_exc()
        return FAILED_EXIT
    return 0


def provision(plan: ProvisionPlan) -> None:
    """Makes roles and databases on all servers at the same time, then migrates every database."""
    asyncio.run(_make_databases(plan))
    from deploy.embedded import migrations  # here: its imports take as long as what was just awaited

    asyncio.run(migrations.prepare_shard_map(plan.shard_map_dsn, plan.shards, plan.shard_map_reader))
    owned = [database for database in plan.databases if database.service is not None]
    with ProcessPoolExecutor(PROCESSES_MAX, mp_context=multiprocessing.get_context(START_METHOD)) as pool:
        list(pool.map(migrations.migrate_database, owned, [plan.shard_map_dsn] * len(owned)))


async def _make_databases(plan: ProvisionPlan) -> None:
    await asyncio.gather(*(_make_on_server(plan, server, dsn) for server, dsn in plan.servers.items()))


async def _make_on_server(plan: ProvisionPlan, server: str, dsn: str) -> None:
    statements = _statements()
    connection: asyncpg.Connection = await asyncpg.connect(dsn, timeout=CONNECT_TIMEOUT_S)
    try:
        roles = {row["rolname"] for row in await connection.fetch("SELECT rolname FROM pg_roles")}
        databases = {row["datname"] for row in await connection.fetch("SELECT datname FROM pg_database")}
        for database in (found for found in plan.databases if found.server == server):
            steps = ["role-password"]
            if database.role not in roles:
                steps.insert(0, "role-create")
                roles.add(database.role)
            if database.name not in databases:
                steps += ["database-create", "database-close"]
            values = (database.role, database.name, plan.passwords[database.role])
            for step in steps:
                await connection.execute(await _formatted(connection, statements[step], values))
    finally:
        await connection.close()


async def _formatted(connection: asyncpg.Connection, statement: str, values: Sequence[str]) -> str:
    """The statement with its names and texts quoted by PostgreSQL itself; DDL takes no parameters."""
    return str(await connection.fetchval("SELECT format($1, VARIADIC $2::text[])", statement, list(values)))


def _statements() -> dict[str, str]:
    text = files("deploy.embedded").joinpath("provision.sql").read_text(encoding="utf-8")
    parts = text.split("-- name: ")[1:]
    return {part.split("\n", 1)[0].strip(): part.split("\n", 1)[1].strip() for part in parts}


def write_plan(path: Path, plan: ProvisionPlan) -> None:
    """Writes the plan where only this user can read it: it holds passwords."""
    write_private(path, json.dumps(msgspec.to_builtins(plan)))


if __name__ == "__main__":
    raise SystemExit(main())
