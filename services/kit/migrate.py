"""Brings one database of one service to its newest form: tables, then transaction capture, then the shard guard.

Repeatable, and safe when two run at once (one waits). Tables belong to the role of the service; the functions and undo
tables that make transactions and placement safe belong to the administrator who runs this.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import asyncpg
from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from coordinator.resource import install
from services.kit.spec import ServiceSpec
from services.kit.sql import KIT_TABLES
from sharding import Bucket, GuardReport, ShardId, install_guard

MIGRATION_LOCK = 7_204_512
"""Key of the advisory lock that lets one migration run at a time."""
EXEMPT = ("alembic_version",)


@dataclass(frozen=True)
class Placement:
    """Which shard a database is, and which buckets the shard map gives it now."""

    shard: ShardId
    owned: Collection[Bucket]


async def migrate(spec: ServiceSpec, admin_dsn: str, role: str, placement: Placement | None = None) -> None:
    """Migrates the database at `admin_dsn` (a superuser's) for `spec`; `role` is the service's own.

    With a `placement` a sharded service's database becomes that shard and guards its buckets. Without one it is only
    a template for shards: `guard` makes one of it before it is used.
    """
    await _upgrade(spec, admin_dsn, role)
    connection = await asyncpg.connect(admin_dsn)
    try:
        await connection.execute("SELECT pg_advisory_lock($1)", MIGRATION_LOCK)
        await install(
            connection,
            managed=[*spec.managed, *KIT_TABLES],
            exempt=[*spec.exempt, *EXEMPT],
            roles=[role],
        )
    finally:
        await connection.close()
    if spec.storage == "sharded" and placement is not None:
        await guard(spec, admin_dsn, role, placement)


async def guard(spec: ServiceSpec, admin_dsn: str, role: str, placement: Placement) -> GuardReport:
    """Makes a migrated database a shard: rows of buckets that it does not own are refused. Repeatable.

    Buckets that were moved since keep their state: see sharding.install_guard.
    """
    connection = await asyncpg.connect(admin_dsn)
    try:
        return await install_guard(connection, spec.guarded, placement.shard, placement.owned, roles=[role])
    finally:
        await connection.close()


async def _upgrade(spec: ServiceSpec, admin_dsn: str, role: str) -> None:
    engine = create_async_engine(make_url(admin_dsn).set(drivername="postgresql+asyncpg"), poolclass=NullPool)
    try:
        async with engine.connect() as connection:
            await connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": MIGRATION_LOCK})
            quoted = role.replace('"', '""')
            await connection.execute(text(f'SET ROLE "{quoted}"'))
            await connection.commit()
            await connection.run_sync(_run_alembic, spec)
            await connection.commit()
    finally:
        await engine.dispose()


def _run_alembic(connection: Connection, spec: ServiceSpec) -> None:
    config = Config()
    config.set_main_option("script_location", str(spec.migrations).replace("%", "%%"))
    config.set_main_option("version_locations", str(spec.migrations).replace("%", "%%"))
    config.set_main_option("path_separator", "newline")
    script = ScriptDirectory.from_config(config)
    with EnvironmentContext(config, script, fn=lambda rev, _: script._upgrade_revs("head", rev)) as environment:
        environment.configure(connection=connection, transaction_per_migration=True)
        with environment.begin_transaction():
            environment.run_migrations()
