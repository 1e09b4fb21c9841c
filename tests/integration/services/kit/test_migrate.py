"""Migrating: repeatable, safe side by side, and a shard that refuses what is not its own."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from services.kit.migrate import Placement, guard, migrate
from services.kit.sql import KIT_TABLES
from services.notification.config import SPEC as OWN
from services.user.config import SPEC as SHARDED
from sharding import Bucket, GuardRefused, ShardId
from tests.support.servers import TestPostgres

ROLE = "migration_tests"
INSERT = "INSERT INTO user_credentials (bucket, user_id, password_hash) VALUES ($1, gen_random_uuid(), 'x')"


@pytest.fixture
def role(postgres: TestPostgres) -> str:
    """A role that owns nothing yet."""
    postgres.execute(f"DO $$ BEGIN CREATE ROLE {ROLE} LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$")
    return ROLE


@pytest.fixture
def owned(postgres: TestPostgres, database: str, role: str) -> str:
    """A fresh database of that role."""
    postgres.execute(f'ALTER DATABASE "{database.rsplit("/", 1)[1]}" OWNER TO {role}')
    return database


async def test_a_migration_can_be_repeated_and_run_twice_at_once(owned: str, role: str) -> None:
    """One waits for the other; the second changes nothing; the tables are the role's and take part in transactions."""
    await asyncio.gather(migrate(OWN, owned, role), migrate(OWN, owned, role))
    await migrate(OWN, owned, role)
    connection = await asyncpg.connect(owned)
    try:
        managed = {r["name"] for r in await connection.fetch("SELECT relation::text AS name FROM at.managed")}
        owners = await connection.fetch("SELECT tablename, tableowner FROM pg_tables WHERE schemaname = 'public'")
    finally:
        await connection.close()
    assert managed == {*OWN.managed, *KIT_TABLES}
    assert {row["tableowner"] for row in owners} == {role}


async def test_a_shard_takes_rows_of_its_own_buckets_only(owned: str, role: str) -> None:
    """With a placement the database is that shard; the service's own role is refused elsewhere."""
    mine = [Bucket(number) for number in range(512)]
    await migrate(SHARDED, owned, role, Placement(ShardId("shard-0"), mine))
    connection = await asyncpg.connect(owned.replace("postgres@", f"{role}@", 1))
    try:
        await connection.execute(INSERT, 511)
        with pytest.raises(asyncpg.PostgresError, match="bucket 512 is not on shard shard-0"):
            await connection.execute(INSERT, 512)
    finally:
        await connection.close()
    with pytest.raises(GuardRefused):
        await guard(SHARDED, owned, role, Placement(ShardId("shard-1"), mine))
