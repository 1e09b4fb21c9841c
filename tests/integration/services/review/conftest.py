"""The review service with a stand-in for the order service that says which stays there are, made once for each file."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import pytest
import pytest_asyncio
from litestar import Litestar, Response, get

from services.kit.settings import Settings
from tests.support.servers import TestPostgres
from tests.support.system import System, running_system

Stays = dict[UUID, dict[str, Any]]


@pytest.fixture(scope="module")
def stays() -> Stays:
    """The stays that the order service knows."""
    return {}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def system(
    postgres: TestPostgres, valkey: str, tmp_path_factory: pytest.TempPathFactory, stays: Stays
) -> AsyncIterator[System]:
    """The running system."""

    def order(settings: Settings) -> Litestar:
        @get("/internal/orders/{order_id:uuid}", sync_to_thread=False)
        def stay(order_id: UUID) -> Response[dict[str, Any]]:
            if order_id not in stays:
                return Response({"code": "not-found", "detail": f"no order {order_id}"}, status_code=404)
            return Response({**stays[order_id], "check_in": "2026-11-01", "total_cents": 100})

        return Litestar([stay])

    folder = tmp_path_factory.mktemp("review")
    async with running_system(postgres, valkey, folder, services=["review"], stand_ins={"order": order}) as running:
        yield running
