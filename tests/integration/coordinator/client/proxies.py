"""Networks that misbehave: an HTTP proxy before the coordinator, and a TCP proxy that counts PostgreSQL's answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from urllib.parse import urlsplit

import aiohttp
from aiohttp import web


class Fate(Enum):
    """What becomes of one request."""

    PASS = "pass"
    TWICE = "twice"  # delivered twice, the second answer is given
    LOSE_REQUEST = "lose request"  # never delivered, the connection is cut
    LOSE_ANSWER = "lose answer"  # delivered, then the connection is cut


@dataclass
class HttpProxy:
    """Stands before the coordinator. `fate` decides about each request by its path and body."""

    target: str
    fate: Callable[[str, bytes], Fate] = lambda path, body: Fate.PASS
    url: str = ""
    seen: list[tuple[str, bytes]] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Forwards, or not."""
        body = await request.read()
        fate = self.fate(request.path, body)
        self.seen.append((request.path, body))
        if fate is not Fate.LOSE_REQUEST:
            for _ in range(2 if fate is Fate.TWICE else 1):
                status, answer = await self._forward(request, body)
            if fate is not Fate.LOSE_ANSWER:
                return web.Response(status=status, body=answer, content_type="application/json", headers=self.headers)
        assert request.transport is not None
        request.transport.abort()
        return web.Response(status=500)

    async def _forward(self, request: web.Request, body: bytes) -> tuple[int, bytes]:
        hop = ("host", "content-length", "connection", "transfer-encoding")
        headers = {name: value for name, value in request.headers.items() if name.lower() not in hop}
        async with (
            aiohttp.ClientSession() as http,
            http.request(request.method, self.target + request.path_qs, data=body, headers=headers) as response,
        ):
            self.headers = {name: value for name, value in response.headers.items() if name.lower().startswith("x-tx")}
            return response.status, await response.read()


@asynccontextmanager
async def http_proxy(target: str) -> AsyncIterator[HttpProxy]:
    """A proxy to `target` on a free port."""
    proxy = HttpProxy(target)
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", proxy.handle)
    runner = web.AppRunner(application, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    assert site._server is not None
    proxy.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"
    try:
        yield proxy
    finally:
        await runner.cleanup()


@dataclass
class PostgresProxy:
    """Counts how often PostgreSQL said that it is ready again: each is a round trip that somebody waited for.

    With `swallow_answers` the next answer is lost and the connection is cut.
    """

    port: int = 0
    round_trips: int = 0
    swallow_answers: bool = False

    def dsn(self, of: str) -> str:
        """The address of a database, through this proxy."""
        parts = urlsplit(of)
        return parts._replace(netloc=f"{parts.username}@127.0.0.1:{self.port}").geturl()


@asynccontextmanager
async def postgres_proxy(dsn: str) -> AsyncIterator[PostgresProxy]:
    """A counting proxy before the server of `dsn`. Understands the protocol well enough to find ReadyForQuery."""
    parts = urlsplit(dsn)
    proxy = PostgresProxy()
    tasks: set[asyncio.Task[None]] = set()

    async def up(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            sink.write(data)
            await sink.drain()
        sink.close()

    async def down(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError):
            first = await source.readexactly(1)
            if first == b"N":  # the answer to a request for TLS: one byte without a length
                sink.write(first)
                first = await source.readexactly(1)
            while True:
                length = await source.readexactly(4)
                if proxy.swallow_answers:
                    sink.transport.abort()
                    return
                sink.write(first + length + await source.readexactly(int.from_bytes(length) - 4))
                proxy.round_trips += first == b"Z"
                first = await source.readexactly(1)
        sink.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection(parts.hostname, parts.port)
        for work in (up(reader, server_writer), down(server_reader, writer)):
            tasks.add(asyncio.create_task(work))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
