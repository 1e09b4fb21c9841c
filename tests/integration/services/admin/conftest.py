"""The admin and the user service, made once for each file; what they ask others is answered by stand-ins."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from litestar import Litestar, Response, get

from services.kit.settings import Settings
from tests.support.servers import TestPostgres
from tests.support.system import System, running_system

WELL: dict[str, dict[str, int]] = {
    "capacity": {"nights_over_total": 0, "drift": 0},
    "payment": {"ledger_sum_cents": 0, "wallets_wrong": 0, "escrow_cents": 12_000},
    "order": {"orders_without_index": 0},
}


class Answers(dict[str, dict[str, int] | None]):
    """What each stand-in says of its consistency; None when it is down."""


@pytest.fixture(scope="module")
def answers() -> Answers:
    """All is well, until a test says otherwise."""
    return Answers(WELL)


def stand_in(name: str, answers: Answers) -> Litestar:
    """A service that says what `answers` says for it."""

    @get(["/internal/consistency", "/ready"], sync_to_thread=False)
    def say() -> Response[dict[str, int]]:
        told = answers[name]
        return Response(told or {}, status_code=503 if told is None else 200)

    return Litestar([say])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def system(
    postgres: TestPostgres, valkey: str, tmp_path_factory: pytest.TempPathFactory, answers: Answers
) -> AsyncIterator[System]:
    """The running system."""
    folder = tmp_path_factory.mktemp("admin")

    def made(settings: Settings) -> Litestar:
        return stand_in(settings.service, answers)

    async with running_system(
        postgres, valkey, folder, services=["user", "admin"], stand_ins=dict.fromkeys(WELL, made)
    ) as running:
        yield running
