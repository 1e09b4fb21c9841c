"""A coordinator and one service's runtime without its web process: no relay runs but those that a test runs."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from services.kit.migrate import migrate
from services.kit.runtime import Runtime
from services.kit.settings import Settings
from services.notification.config import SPEC
from tests.support.servers import TestPostgres
from tests.support.system import System, running_system

ROLE = "kit_tests"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def system(
    postgres: TestPostgres, valkey: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[System]:
    """A coordinator and keys for everybody."""
    async with running_system(postgres, valkey, tmp_path_factory.mktemp("kit"), services=[]) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def runtime(postgres: TestPostgres, system: System) -> AsyncIterator[Runtime]:
    """A runtime over a database of its own; the notification service lends its tables."""
    postgres.execute(f"DO $$ BEGIN CREATE ROLE {ROLE} LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$")
    dsn = postgres.create_database()
    name = dsn.rsplit("/", 1)[1]
    postgres.execute(f'ALTER DATABASE "{name}" OWNER TO {ROLE}')
    await migrate(SPEC, dsn, ROLE)
    settings = Settings(
        service=SPEC.name,
        port=1,
        database_url=postgres.dsn(name, ROLE),
        redis_url=system.redis_url,
        coordinator_urls=[system.urls["coordinator"]],
        key_file=system.folder / f"{SPEC.name}.jwk",
        keys_file=system.folder / "keys.json",
    )
    made = Runtime(SPEC, settings, processing=True)
    try:
        await made.start()
        yield made
    finally:
        await made.stop()
        postgres.drop_database(name)
