"""Brings one database of one service to its newest form: tables, then transaction capture, then the shard guard.

Repeatable, and safe when two run at once (one waits). Tables belong to the service's role; what makes transactions and
placement safe belongs to the administrator who runs this, so a service cannot take it off.
"""

from __future__ import annotations

import asyncio

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

MIGRATION_LOCK = 7_204_512
"""Key of the advisory lock that lets one migration run at a time."""
EXEMPT = ("alembic_version",)


async def migrate(spec: ServiceSpec, admin_dsn: str, role: str) -> None:
    """Migrates the database at `admin_dsn` (a superuser's) for `spec`; `role` is the service's own."""
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


def migrate_now(spec: ServiceSpec, admin_dsn: str, role: str) -> None:
    """`migrate` for callers without an event loop."""
    asyncio.run(migrate(spec, admin_dsn, role))
