"""The notification service and the user service that knows addresses, made once for each file."""

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
    """The running system."""
    folder = tmp_path_factory.mktemp("notification")
    async with running_system(postgres, valkey, folder, services=["user", "notification"]) as running:
        yield running
