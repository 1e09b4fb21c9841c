"""The boarding service between a real capacity and a real pet service, made once for each file."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.integration.services.capacity.callers import Caller, caller_of
from tests.support.servers import TestPostgres
from tests.support.system import System, running_system


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def system(
    postgres: TestPostgres, valkey: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[System]:
    """The running system."""
    folder = tmp_path_factory.mktemp("boarding")
    async with running_system(postgres, valkey, folder, services=["boarding", "capacity", "pet"]) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def admin(system: System) -> AsyncIterator[Caller]:
    """Whoever decides about listings, each time in a global transaction."""
    async with caller_of(system, "boarding", name="admin") as caller:
        yield caller
