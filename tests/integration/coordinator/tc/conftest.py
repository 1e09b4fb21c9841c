"""One replica, or two on the same store, for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.integration.coordinator.tc.harness import Caller, running, settings_for


@pytest.fixture
async def tc(database: str) -> AsyncIterator[Caller]:
    """A caller of the one replica."""
    async with running(settings_for(database)) as caller:
        yield caller


@pytest.fixture
async def tcs(database: str) -> AsyncIterator[tuple[Caller, Caller]]:
    """Callers of two replicas on one store."""
    async with running(settings_for(database)) as one, running(settings_for(database)) as two:
        yield one, two
