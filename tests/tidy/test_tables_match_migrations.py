"""What the code believes of its tables is what the migrations make."""

from __future__ import annotations

import asyncio
import importlib
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, MetaData
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from services.catalog import SERVICES
from services.kit.migrate import EXEMPT, migrate
from services.kit.spec import ServiceSpec
from services.kit.sql import KIT_TABLES
from tests.support.servers import TestPostgres

NOT_THE_SERVICES = {*KIT_TABLES, *EXEMPT}


def differences(connection: Connection, metadata: MetaData, monthly: tuple[str, ...]) -> list[Any]:
    """What alembic would change to make the database like the metadata."""

    def ours(name: str | None, kind: str, parents: Any) -> bool:
        if kind != "table":
            return True
        partition = any(name is not None and name.startswith(f"{parent}_2") for parent in monthly)
        return name not in NOT_THE_SERVICES and not partition

    context = MigrationContext.configure(
        connection, opts={"include_name": ours, "compare_type": True, "compare_server_default": False}
    )
    return list(compare_metadata(context, metadata))


@pytest.mark.parametrize("spec", SERVICES, ids=lambda spec: spec.name)
async def test_the_migrated_database_is_what_tables_py_says(
    postgres: TestPostgres, database: str, spec: ServiceSpec
) -> None:
    """Columns, types, nullability, keys and indexes of every service agree with its tables.py."""
    postgres.execute(f'DO $$ BEGIN CREATE ROLE "{spec.name}" LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$')
    postgres.execute(f'ALTER DATABASE "{database.rsplit("/", 1)[1]}" OWNER TO "{spec.name}"')
    await asyncio.to_thread(lambda: asyncio.run(migrate(spec, database, spec.name)))
    metadata = importlib.import_module(f"services.{spec.name}.tables").metadata
    engine = create_async_engine(make_url(database).set(drivername="postgresql+asyncpg"), poolclass=NullPool)
    try:
        async with engine.connect() as connection:
            found = await connection.run_sync(differences, metadata, spec.monthly)
            tables = await connection.run_sync(
                lambda sync: {name for name in metadata.tables if sync.dialect.has_table(sync, name)}
            )
    finally:
        await engine.dispose()
    assert found == []
    assert {*spec.managed, *spec.guarded, *spec.monthly} <= tables | set(KIT_TABLES)
