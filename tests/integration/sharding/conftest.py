"""Two real servers: each shard of a fleet is a PostgreSQL of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.support.fleet import SHARD_0, SHARD_1, Fleet, fleet_over
from tests.support.servers import TestPostgres, postgres_server


@pytest.fixture(scope="session")
def second_postgres() -> Iterator[TestPostgres]:
    """A second server beside that of the test run."""
    with postgres_server() as server:
        yield server


@pytest.fixture
async def fleet(postgres: TestPostgres, second_postgres: TestPostgres, database: str) -> AsyncIterator[Fleet]:
    """A fresh fleet of two shards on two servers, its catalog in a third database."""
    dsns = {SHARD_0: postgres.create_database(), SHARD_1: second_postgres.create_database()}
    async with fleet_over(database, dsns) as made:
        yield made
    postgres.drop_database(dsns[SHARD_0].rsplit("/", 1)[1])
    second_postgres.drop_database(dsns[SHARD_1].rsplit("/", 1)[1])
