"""Two real servers: each shard of a fleet is a PostgreSQL of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import pytest

from sharding import ShardId
from tests.support.fleet import SHARD_0, SHARD_1, Fleet, fleet_over, make_fleet, reset_fleet
from tests.support.servers import TestPostgres, postgres_server


@dataclass(frozen=True)
class FleetDatabases:
    """Where the databases of a fleet are."""

    catalog: str
    shards: dict[ShardId, str]


@pytest.fixture(scope="session")
def second_postgres() -> Iterator[TestPostgres]:
    """A second server beside that of the test run."""
    with postgres_server() as server:
        yield server


@pytest.fixture(scope="session")
def fleet_databases(postgres: TestPostgres, second_postgres: TestPostgres) -> FleetDatabases:
    """Two shards on two servers and a catalog, made once; they go with their servers."""
    shards = {SHARD_0: postgres.create_database(), SHARD_1: second_postgres.create_database()}
    made = FleetDatabases(postgres.create_database(), shards)
    asyncio.run(make_fleet(made.catalog, made.shards))
    return made


@pytest.fixture
async def fleet(fleet_databases: FleetDatabases) -> AsyncIterator[Fleet]:
    """A fleet without rows, under an even map."""
    await reset_fleet(fleet_databases.catalog, fleet_databases.shards)
    async with fleet_over(fleet_databases.catalog, fleet_databases.shards) as made:
        yield made
