"""The simulated network: HTTP calls between processes with delay, loss, repetition and partitions."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import aiohttp

from coordinator.client.wire import Origin, Reply, WireError
from tests.simulation.loop import NODE, Node

if TYPE_CHECKING:
    from tests.simulation.world import World


@dataclass
class Answer:
    """What a process answers to a call."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Call:
    """A call as its receiver sees it; `left` is done when the caller hung up."""

    method: str
    path: str
    body: bytes | None
    headers: dict[str, str]
    caller: str
    left: asyncio.Future[None]


Serve = Callable[[Call], Awaitable[Answer]]


class Cut(Exception):
    """The connection broke after the call may have been sent."""


class Refused(Exception):
    """Nobody listens there: nothing was sent."""


class Network:
    """All processes by name, and what the links between them do."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.listening: dict[str, tuple[Node, Serve]] = {}
        self.parted: set[tuple[str, str]] = set()

    def listen(self, node: Node, serve: Serve) -> None:
        """From now on `node` answers under its name."""
        self.listening[node.name] = (node, serve)

    def parts(self, one: str, other: str) -> bool:
        """Whether nothing gets through between two."""
        return (one, other) in self.parted or (other, one) in self.parted

    async def call(self, to: str, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> Answer:
        """One call, without a time limit of its own. Raises Cut and Refused."""
        world, sender = self._world, NODE.get()
        source = sender.name if sender is not None else "nobody"
        answer: asyncio.Future[Answer] = world.loop.create_future()
        left: asyncio.Future[None] = world.loop.create_future()
        answer.add_done_callback(lambda _: world.loop.after(world.delay_s(), _leave, left))
        call = Call(method, path, body, headers, source, left)
        world.loop.after(world.delay_s(), self._arrive, to, call, answer)
        if world.chance(world.faults.repeat):
            world.trace("repeated", source, to, path)
            world.loop.after(world.delay_s() * 3, self._arrive, to, call, answer)
        try:
            return await answer
        finally:
            answer.cancel()

    def _arrive(self, to: str, call: Call, answer: asyncio.Future[Answer]) -> None:
        world = self._world
        if self.parts(call.caller, to) or world.chance(world.faults.lose):
            world.trace("lost", call.caller, to, call.path)
            if world.chance(0.5):
                world.loop.after(world.delay_s(), _fail, answer, Cut(f"{to} was cut"))
            return
        node, serve = self.listening.get(to, (None, None))
        if node is None or serve is None or not node.alive:
            world.loop.after(world.delay_s(), _fail, answer, Refused(f"nobody listens at {to}"))
            return
        world.loop.spawn(self._serve(node, serve, call, answer), node)

    async def _serve(self, node: Node, serve: Serve, call: Call, answer: asyncio.Future[Answer]) -> None:
        world = self._world
        world.opened_calls.setdefault(node.name, []).append(answer)
        try:
            said = await serve(call)
        except Exception as error:
            world.trace("failed", node.name, call.path, type(error).__name__)
            said = Answer(500, str(error).encode())
        finally:
            world.opened_calls[node.name].remove(answer)
        if self.parts(node.name, call.caller) or world.chance(world.faults.lose):
            world.trace("answer lost", node.name, call.caller, call.path)
            if world.chance(0.5):
                world.loop.after(world.delay_s(), _fail, answer, Cut("the answer was cut"))
            return
        world.loop.after(world.delay_s(), _answer, answer, said)


def _leave(left: asyncio.Future[None]) -> None:
    if not left.done():
        left.set_result(None)


def _answer(answer: asyncio.Future[Answer], said: Answer) -> None:
    if not answer.done():
        answer.set_result(said)


def _fail(answer: asyncio.Future[Answer], error: Exception) -> None:
    if not answer.done():
        answer.set_exception(error)
        answer.exception()


class SimWire:
    """Stands for coordinator.client.wire.Wire."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._closed = False

    async def request(
        self, origin: Origin, method: str, path: str, headers: bytes, body: bytes | None, timeout_s: float
    ) -> Reply:
        """As Wire's."""
        async with asyncio.timeout(timeout_s):
            try:
                said = await self._world.network.call(origin.host, method, path, body, {})
            except (Cut, Refused) as error:
                raise WireError(str(error)) from error
        return Reply(said.status, said.body)

    def close(self) -> None:
        """Nothing is held open."""


class SimHttp:
    """Stands for an aiohttp session below the real TransactionalClient."""

    def __init__(self, world: World) -> None:
        self._world = world

    def request(self, method: str, url: str, **options: Any) -> _Exchange:
        """As aiohttp's."""
        return _Exchange(self._world, method, url, options)


class _Exchange:
    def __init__(self, world: World, method: str, url: str, options: dict[str, Any]) -> None:
        self._world = world
        self._method = method
        self._origin = Origin.of(url)
        self._options = options
        self.status = 0
        self.headers: dict[str, str] = {}
        self._body = b""

    async def __aenter__(self) -> _Exchange:
        options = self._options
        async with asyncio.timeout(options["timeout"].total):
            try:
                said = await self._world.network.call(
                    self._origin.host, self._method, self._origin.base, options["data"], dict(options["headers"] or {})
                )
            except Refused as error:
                raise aiohttp.ConnectionTimeoutError(str(error)) from error
            except Cut as error:
                raise aiohttp.ServerDisconnectedError(str(error)) from error
        self.status, self.headers, self._body = said.status, said.headers, said.body
        return self

    async def __aexit__(self, *_: object) -> None:
        """Nothing is held open."""

    async def read(self) -> bytes:
        """The body."""
        return self._body
