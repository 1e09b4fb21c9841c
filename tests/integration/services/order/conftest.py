"""One marketplace for all tests here: they use people and listings of their own."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.integration.services.order.market import Market, running_market
from tests.support.servers import TestPostgres


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def market(
    postgres: TestPostgres, valkey: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Market]:
    """A running marketplace, with the gate."""
    async with running_market(postgres, valkey, tmp_path_factory.mktemp("order")) as market:
        yield market
