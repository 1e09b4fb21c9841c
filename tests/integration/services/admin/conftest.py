"""The admin and the user service, made once for each file."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.support.servers import TestPostgres
from tests.support.system import System, running_system


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def system(
    postgres: TestPostgres, valkey: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[System]:
    """The running system. No listings: boarding is not there."""
    folder = tmp_path_factory.mktemp("admin")
    async with running_system(postgres, valkey, folder, services=["user", "admin"]) as running:
        yield running
