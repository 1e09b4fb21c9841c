"""A real Nginx on the rendered configuration, and small servers behind it that show what reached them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import aiohttp
import pytest

from gateway.check import command, install, wheel_binary, worker_user
from gateway.nginx import render
from gateway.routes import ROUTES, RouteTable
from tests.support.servers import free_port

START_LIMIT_S = 10
STOP_LIMIT_S = 10
WAIT_LIMIT_S = 10
PORT_ATTEMPTS_MAX = 5

Behaviour = Literal["echo", "die", "silent"]


@dataclass
class Seen:
    """One request as it reached a server."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    connection: int


@dataclass
class Upstream:
    """A server that answers with what it saw, or breaks off after reading a request, or never answers."""

    behaviour: Behaviour = "echo"
    answer_headers: dict[str, str] = field(default_factory=dict)
    status: int = 200
    seen: list[Seen] = field(default_factory=list)
    connections: int = 0
    port: int = 0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        connection = self.connections
        try:
            while await self._one_request(reader, writer, connection):
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the other side went away: that is how a kept connection ends
        finally:
            writer.close()

    async def _one_request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connection: int) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.strip().split("\r\n")
        method, target, _ = first.split(" ", 2)
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        self.seen.append(Seen(method, target, headers, body, connection))
        if self.behaviour == "die":
            writer.transport.abort()
            return False
        if self.behaviour == "silent":
            await reader.read()
            return False
        answer = json.dumps({"method": method, "target": target, "headers": headers}).encode()
        extra = "".join(f"{name}: {value}\r\n" for name, value in self.answer_headers.items())
        writer.write(
            f"HTTP/1.1 {self.status} Answer\r\nContent-Type: application/json\r\n{extra}"
            f"Content-Length: {len(answer)}\r\n\r\n".encode()
            + answer
        )
        await writer.drain()
        return True


@dataclass(frozen=True)
class Door:
    """A running gateway."""

    url: str
    http: aiohttp.ClientSession
    folder: Path

    async def logged(self, count: int) -> list[dict[str, object]]:
        """The access log, once it has `count` lines: Nginx writes one a moment after the answer has left."""
        async with asyncio.timeout(WAIT_LIMIT_S):
            while len(lines := self.log_lines()) < count:  # noqa: ASYNC110 - a file tells nobody
                await asyncio.sleep(0.01)
        return lines

    def log_lines(self) -> list[dict[str, object]]:
        """The access log so far."""
        text = (self.folder / "log" / "access.log").read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]


@asynccontextmanager
async def running_gateway(
    folder: Path, servers: Mapping[str, Sequence[str]], table: RouteTable = ROUTES
) -> AsyncIterator[Door]:
    """Nginx with one worker (so that its kept connections can be counted), stopped at the end."""
    upstreams = {service: servers.get(service, ("127.0.0.1:1",)) for service in table.services}
    for attempt in range(1, PORT_ATTEMPTS_MAX + 1):
        port = free_port()
        text = render(
            table,
            upstreams,
            port=port,
            prefix_dir=folder / "run",
            log_dir=folder / "log",
            docs_dir=folder / "docs",
            user=worker_user(folder),
            workers=1,
        )
        config = install(text, prefix_dir=folder / "run", log_dir=folder / "log")
        process = await asyncio.create_subprocess_exec(*command(wheel_binary(), config, folder / "run"))
        if await _listening(process, port):
            break
        assert attempt < PORT_ATTEMPTS_MAX, "Nginx did not start"

    try:
        async with aiohttp.ClientSession() as http:
            yield Door(f"http://127.0.0.1:{port}", http, folder)
    finally:
        process.terminate()
        await asyncio.wait_for(process.wait(), STOP_LIMIT_S)


async def _listening(process: asyncio.subprocess.Process, port: int) -> bool:
    async with asyncio.timeout(START_LIMIT_S):
        while process.returncode is None:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except ConnectionError:
                await asyncio.sleep(0.01)
            else:
                writer.close()
                return True
    return False


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_LIMIT_S):
        while not condition():  # noqa: ASYNC110 - the condition is somebody else's state
            await asyncio.sleep(0.01)


Upstreams = Callable[..., Awaitable[Upstream]]
Gateway = Callable[..., Awaitable[Door]]


@pytest.fixture
def until() -> Callable[[Callable[[], bool]], Awaitable[None]]:
    """Waits until a condition holds; fails after WAIT_LIMIT_S."""
    return _until


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    """What is started in a test and stopped after it, the last first."""
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture
def upstream(stack: AsyncExitStack) -> Upstreams:
    """Starts an Upstream on a free port."""

    async def start(behaviour: Behaviour = "echo", *, status: int = 200, **answer_headers: str) -> Upstream:
        headers = {name.replace("_", "-"): value for name, value in answer_headers.items()}
        one = Upstream(behaviour, answer_headers=headers, status=status)
        server = await asyncio.start_server(one.handle, "127.0.0.1", 0)
        one.port = server.sockets[0].getsockname()[1]
        stack.callback(server.close)
        return one

    return start


@pytest.fixture
def gateway(stack: AsyncExitStack, tmp_path: Path) -> Gateway:
    """Starts the gateway before the given servers, in a folder whose name has a space."""

    async def start(servers: Mapping[str, Sequence[str]], table: RouteTable = ROUTES) -> Door:
        folder = tmp_path / "a folder"
        folder.mkdir()
        return await stack.enter_async_context(running_gateway(folder, servers, table))

    return start
