"""A bank in two databases and a coordinator process: the world of the client's tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.integration.coordinator.client.world import Bank, TcProcess, open_bank
from tests.support.servers import TestPostgres


@pytest.fixture(scope="session")
def tc(postgres: TestPostgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TcProcess]:
    """A coordinator in a process of its own, shared by the tests that leave it alive."""
    process = TcProcess(postgres.create_database(), tmp_path_factory.mktemp("tc"))
    process.start()
    try:
        yield process
    finally:
        process.stop()


@pytest.fixture
def own_tc(postgres: TestPostgres, tmp_path: Path) -> Iterator[TcProcess]:
    """A coordinator of the test's own, not started: to be killed."""
    process = TcProcess(postgres.create_database(), tmp_path)
    try:
        yield process
    finally:
        process.stop()


@pytest.fixture
async def bank(postgres: TestPostgres, tc: TcProcess) -> AsyncIterator[Bank]:
    """Two fresh databases, east and west, with the same accounts, and an entered Coordinator over them."""
    async with open_bank(postgres, tc) as bank:
        yield bank
