"""A database with the protocol in it, and what the tests of this folder do to it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import asyncpg
import pytest


@pytest.fixture
async def connection(database: str) -> AsyncIterator[asyncpg.Connection]:
    """A superuser's connection to a fresh database."""
    opened = await asyncpg.connect(database)
    try:
        yield opened
    finally:
        await opened.close()


@pytest.fixture
async def second(database: str) -> AsyncIterator[asyncpg.Connection]:
    """Another connection to the same database."""
    opened = await asyncpg.connect(database)
    try:
        yield opened
    finally:
        await opened.close()
