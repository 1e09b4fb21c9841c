"""The application factory: what every service's web process looks like from outside."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from litestar import Litestar, Response, get
from litestar.di import Provide
from litestar.handlers import HTTPRouteHandler
from litestar.openapi.config import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.openapi.spec import Components, SecurityScheme
from litestar.types import ControllerRouterHandler
from sqlalchemy import text

from coordinator.client.contrib.litestar import TransactionMiddleware, nudge_route
from services.kit.auth import IdentityMiddleware, public
from services.kit.problems import problem_handler
from services.kit.requests import RequestMiddleware
from services.kit.runtime import NUDGE_PATH, Runtime

BODY_MAX_BYTES = 1_000_000
VERSION = "0.1.0"


def build_app(
    runtime: Runtime, handlers: Sequence[ControllerRouterHandler], dependencies: dict[str, Provide] | None = None
) -> Litestar:
    """A service: `handlers` plus health, readiness, OpenAPI, problems, identities, transactions and logs."""

    @asynccontextmanager
    async def lifespan(app: Litestar) -> AsyncIterator[None]:
        try:
            await runtime.start()
            yield
        finally:
            await runtime.stop()

    app = Litestar(
        route_handlers=[*handlers, *_health(runtime), nudge_route(runtime.coordinator, path=NUDGE_PATH)],
        dependencies={"runtime": Provide(lambda: runtime, sync_to_thread=False), **(dependencies or {})},
        lifespan=[lifespan],
        middleware=[
            RequestMiddleware(runtime.spec.name),
            IdentityMiddleware(runtime.identities),
            TransactionMiddleware(runtime.coordinator),
        ],
        exception_handlers={Exception: problem_handler},
        openapi_config=OpenAPIConfig(
            title=f"PawStay {runtime.spec.name}",
            version=VERSION,
            description=runtime.spec.purpose,
            path="/schema",
            render_plugins=[JsonRenderPlugin()],
            components=Components(
                security_schemes={"bearer": SecurityScheme(type="http", scheme="bearer", bearer_format="JWT")}
            ),
        ),
        request_max_body_size=BODY_MAX_BYTES,
        logging_config=None,
        debug=False,
    )
    _document_public_routes(app)
    return app


def _document_public_routes(app: Litestar) -> None:
    """What everybody may call is shown without a lock in the API's documents: its guard says so, and nothing else."""
    for route in app.routes:
        for handler in getattr(route, "route_handlers", ()):
            if isinstance(handler, HTTPRouteHandler):
                handler.security = [{}] if public in handler.resolve_guards() else [{"bearer": []}]


def _health(runtime: Runtime) -> list[ControllerRouterHandler]:
    @get("/health", guards=[public], include_in_schema=False)
    async def health() -> dict[str, str]:
        """The process lives."""
        return {"status": "ok", "service": runtime.spec.name}

    @get("/ready", guards=[public], include_in_schema=False)
    async def ready() -> Response[dict[str, Any]]:
        """The process can do its work: each database and Redis is asked. 503 names what does not answer."""
        parts: dict[str, str] = {}
        for store in runtime.stores:
            try:
                async with store.session() as session:
                    await session.execute(text("SELECT 1"))
                parts[store.name] = "ok"
            except Exception as error:  # whatever it is, it means not ready, and is shown
                parts[store.name] = f"down: {type(error).__name__}"
        try:
            await runtime.redis.ping()
            parts["redis"] = "ok"
        except Exception as error:  # Redis away: slower, not unready
            parts["redis"] = f"degraded: {type(error).__name__}"
        down = any(state.startswith("down") for state in parts.values())
        return Response({"status": "down" if down else "ok", "parts": parts}, status_code=503 if down else 200)

    return [health, ready]
