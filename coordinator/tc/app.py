"""The coordinator as an ASGI application."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from litestar import Litestar
from litestar.datastructures import State
from litestar.types import ASGIApp

from coordinator.protocol.tokens import TokenVerifier
from coordinator.tc.auth import CallerMiddleware, Callers
from coordinator.tc.config import ISSUER, CoordinatorSettings
from coordinator.tc.controllers import HANDLERS
from coordinator.tc.door import MessagesDoor
from coordinator.tc.problems import problem_handler
from coordinator.tc.replica import Replica


def create_app(settings: CoordinatorSettings) -> ASGIApp:
    """One replica of the coordinator. It touches the store from its start to its stop, and nothing before or after."""
    replica = Replica(settings)
    callers = Callers(TokenVerifier(ISSUER, settings.keys), settings.callers)

    @asynccontextmanager
    async def life(_app: Litestar) -> AsyncIterator[None]:
        await replica.start()
        try:
            yield
        finally:
            await replica.stop()

    others = Litestar(
        route_handlers=list(HANDLERS),
        middleware=[CallerMiddleware(callers)],
        exception_handlers={Exception: problem_handler},
        lifespan=[life],
        state=State({"replica": replica}),
        request_max_body_size=settings.limits.body_bytes_max,
        openapi_config=None,
        logging_config=None,
    )
    return MessagesDoor(replica, callers, others)
