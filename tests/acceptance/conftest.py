"""One whole system for all acceptance tests, started as a newcomer starts it and reached through its gateway."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest

from deploy.commands.demo import Target
from deploy.demo import Report
from deploy.demo.cast import Cast
from deploy.demo.world import Api, Databases
from deploy.embedded.system import EmbeddedSystem
from tests.support.servers import free_port


@pytest.fixture(scope="session")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedSystem]:
    """The embedded system, up in a folder and on ports of its own."""
    found = EmbeddedSystem(tmp_path_factory.mktemp("acceptance") / "data folder")
    found.up(free_port())
    try:
        yield found
    finally:
        found.down()


@pytest.fixture
async def cast(system: EmbeddedSystem) -> AsyncIterator[Cast]:
    """People who act through the gateway, with the administrator logged in."""
    target = Target(system, system.gateway_url, system.admin_password)
    databases = Databases(target.databases())
    async with aiohttp.ClientSession() as session:
        cast = Cast(target, Api(target.gateway_url, session), databases, Report(console=None))
        cast.people["admin"] = await cast.log_in("admin", target.admin_password)
        yield cast
    await databases.close()


@pytest.fixture
def root() -> Path:
    """The checkout."""
    return Path(__file__).resolve().parents[2]
