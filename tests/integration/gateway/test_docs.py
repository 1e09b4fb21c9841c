"""The documentation page, served by the gateway with nothing from anywhere else."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest
from litestar import Litestar, get, post
from litestar.openapi.config import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin

from gateway.docs import DocumentMissing, fetch_documents, write
from gateway.openapi import merge
from tests.support.servers import free_port

OUTSIDE = re.compile(rb"""(?:https?:)?//[a-z0-9.-]+\.[a-z]{2,}""", re.IGNORECASE)


def _document(service: str, prefix: str) -> dict[str, Any]:
    @get(prefix, sync_to_thread=False)
    def find() -> list[str]:
        """Finds."""
        return []

    @post("/internal/do", sync_to_thread=False)
    def inside() -> None:
        """Inside."""

    config = OpenAPIConfig(title=service, version="1", description=f"The {service} service.")
    return dict(Litestar([find, inside], openapi_config=config).openapi_schema.to_schema())


async def test_the_page_is_served_with_and_without_a_slash_and_names_no_other_host(
    gateway: Any,
) -> None:
    """/docs and /docs/ give the same page; what it loads is served here; page and documents name no outside host."""
    door = await gateway({})
    write(door.folder / "docs", merge({"order": _document("order", "/api/orders")}))
    pages = []
    for path in ("/docs", "/docs/"):
        async with door.http.get(door.url + path, allow_redirects=False) as answer:
            assert (answer.status, answer.content_type) == (200, "text/html")
            pages.append(await answer.read())
    assert pages[0] == pages[1]
    links = re.findall(rb'(?:src|href)="([^"]+)"', pages[0])
    assert links
    for link in {*links, b"/docs/openapi.json", b"/docs/openapi-3.0.json"}:
        assert link.startswith(b"/docs/")
        async with door.http.get(door.url + link.decode()) as answer:
            assert answer.status == 200, link
            if not link.endswith((b"swagger-ui-bundle.js", b"swagger-ui.css", b".png")):
                assert not OUTSIDE.search(await answer.read()), link
    assert not OUTSIDE.search(pages[0])


async def test_the_page_may_talk_to_nobody_else(gateway: Any) -> None:
    """The policy sent with every file of the page allows this origin only, so no name in the bundle is ever asked."""
    door = await gateway({})
    write(door.folder / "docs", merge({}))
    for path in ("/docs", "/docs/", "/docs/swagger-ui-bundle.js", "/docs/openapi.json"):
        async with door.http.get(door.url + path) as answer:
            policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "connect-src 'self'" in policy
        assert "script-src 'self';" in policy
        assert "http" not in policy and "*" not in policy


async def test_a_missing_file_of_the_page_is_a_problem(gateway: Any) -> None:
    """404 below /docs is a problem as everywhere; nothing outside the folder can be had."""
    door = await gateway({})
    write(door.folder / "docs", merge({}))
    for path in ("/docs/none.js", "/docs/..%2frun%2fnginx.conf", "/docs../run/nginx.conf"):
        async with door.http.get(door.url + path) as answer:
            assert (answer.status, answer.content_type) == (404, "application/problem+json"), path


async def test_documents_are_fetched_from_running_services(until: Any) -> None:
    """Litestar's own document is taken as it is; a service that gives none is named."""
    import uvicorn

    app = Litestar([], openapi_config=OpenAPIConfig(title="t", version="1", render_plugins=[JsonRenderPlugin()]))
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning", lifespan="off"))
    serving = asyncio.create_task(server.serve())
    await until(lambda: server.started)
    try:
        found = await fetch_documents({"order": f"http://127.0.0.1:{port}/"})
        assert found["order"]["openapi"].startswith("3.1")
        with pytest.raises(DocumentMissing, match="payment"):
            await fetch_documents({"order": f"http://127.0.0.1:{port}", "payment": f"http://127.0.0.1:{free_port()}"})
    finally:
        server.should_exit = True
        await serving
