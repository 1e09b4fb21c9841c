"""What the tests of the coordinator share: replicas over real HTTP in the test's loop, callers, resources to nudge."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID, uuid4

import aiohttp
import msgspec
import uvicorn
from aiohttp import web

from coordinator.protocol.ids import uuid7
from coordinator.protocol.messages import (
    Announce,
    Answer,
    Begin,
    BranchRef,
    Confirm,
    Decide,
    Noted,
    Nudge,
    Outcome,
    Refused,
    Register,
    Request,
    Wait,
    WaitAnswer,
)
from coordinator.protocol.statuses import BranchState, Decision
from coordinator.protocol.tokens import SigningKey, TokenMaker, TokenVerifier, read_key_set
from coordinator.tc.app import create_app
from coordinator.tc.config import CoordinatorSettings, Limits
from coordinator.tc.core.backoff import Backoff

NAMES = ("coordinator", "order", "capacity", "operator")
KEYS = {name: SigningKey.generate(name) for name in NAMES}
KEY_SET = msgspec.json.encode({"keys": [key.public_jwk() for key in KEYS.values()]}).decode()
ROOT = Path(__file__).parents[4]
ASK_EVERY_S = 0.02
GIVE_UP_S = 15.0

QUICK = Limits(
    sweep_interval_s=0.05,
    wait_renew_s=0.3,
    renudge=Backoff(first_s=0.2, cap_s=1.0, attempts_max=12),
    resource_cache_s=0.0,
    nudge_timeout_s=2.0,
    start_wait_s=5.0,
)

T = TypeVar("T")


def now_ms(later_s: float = 0.0) -> int:
    """The instant `later_s` from now."""
    return round((time.time() + later_s) * 1000)


def new_xid(age_s: float = 0.0) -> UUID:
    """A transaction begun `age_s` ago."""
    return uuid7(now_ms(-age_s))


def commit(xid: UUID, *branches: BranchRef, deadline_ms: int | None = None, name: str = "book") -> Decide:
    """A commit that names `branches`, 30 s before its deadline unless one is given."""
    return Decide(xid, name, deadline_ms or now_ms(30), True, list(branches))


def rollback(xid: UUID, *branches: BranchRef, deadline_ms: int | None = None, name: str = "book") -> Decide:
    """A rollback of `branches`, 30 s before its deadline unless one is given."""
    return Decide(xid, name, deadline_ms or now_ms(30), False, list(branches))


def begin(xid: UUID, later_s: float = 30.0, name: str = "book") -> Begin:
    """The hint that `xid` began, with a deadline `later_s` from now."""
    return Begin(xid, name, now_ms(later_s))


def register(xid: UUID, branch: BranchRef, later_s: float = 30.0) -> Register:
    """The hint that `branch` is on its way."""
    return Register(xid, now_ms(later_s), branch)


def branch_of(resource: str) -> BranchRef:
    """A new branch."""
    return BranchRef(resource, uuid4())


async def eventually(check: Callable[[], Any]) -> None:
    """Returns once `check` (which may be async) is true; fails after GIVE_UP_S."""
    until = time.monotonic() + GIVE_UP_S
    while True:
        found = check()
        if asyncio.iscoroutine(found):
            found = await found
        if found:
            return
        assert time.monotonic() < until, "what was waited for did not come"
        await asyncio.sleep(ASK_EVERY_S)


@dataclass
class Caller:
    """A service that speaks to one replica."""

    url: str
    http: aiohttp.ClientSession
    name: str = "order"

    @property
    def headers(self) -> dict[str, str]:
        """Its service token."""
        return {"Authorization": f"Bearer {TokenMaker(self.name, KEYS[self.name]).token_for('coordinator')}"}

    def named(self, name: str) -> Caller:
        """Another service at the same replica."""
        return replace(self, name=name)

    async def say(self, *requests: Request) -> list[Answer]:
        """One list of messages and its answers."""
        return await self._post("/v1/messages", list(requests), list[Answer])

    async def decide(self, request: Request) -> tuple[Decision, str | None]:
        """The decision and the reason that one message is answered with."""
        (answer,) = await self.say(request)
        assert isinstance(answer, Outcome), answer
        return Decision(answer.decision), answer.reason

    async def wait(self, message: Wait) -> WaitAnswer:
        """The answer to a long poll."""
        return await self._post("/v1/wait", message, WaitAnswer)

    async def announce(self, resource: str, nudge_url: str) -> int:
        """The status of an announcement."""
        body = msgspec.json.encode(Announce(resource, nudge_url))
        async with self.http.post(f"{self.url}/v1/resources", data=body, headers=self.headers) as response:
            return response.status

    async def get(self, path: str, **query: str) -> tuple[int, Any]:
        """Status and body of a read."""
        async with self.http.get(self.url + path, params=query, headers=self.headers) as response:
            return response.status, await response.json(content_type=None)

    async def settlement(self, xid: UUID) -> str:
        """How far a transaction is settled."""
        status, body = await self.get(f"/v1/transactions/{xid}")
        return str(body["settlement"]) if status == 200 else ""

    async def states(self, xid: UUID) -> dict[UUID, str]:
        """The states of a transaction's branches."""
        _, body = await self.get(f"/v1/transactions/{xid}")
        return {UUID(branch["branch"]): branch["state"] for branch in body["branches"]}

    async def _post(self, path: str, body: object, kind: type[T]) -> T:
        async with self.http.post(self.url + path, data=msgspec.json.encode(body), headers=self.headers) as response:
            text = await response.read()
            assert response.status == 200, (response.status, text)
            return msgspec.json.decode(text, type=kind)


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def settings_for(database: str, limits: Limits = QUICK, callers: frozenset[str] = frozenset()) -> CoordinatorSettings:
    """Settings of a replica on `database`."""
    return CoordinatorSettings(database, KEYS["coordinator"], read_key_set(KEY_SET), callers, limits=limits)


@contextlib.asynccontextmanager
async def running(settings: CoordinatorSettings) -> AsyncIterator[Caller]:
    """A replica behind uvicorn on a free port, and a caller for it."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    app = create_app(settings)
    server = _Server(uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=2))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        while not server.started:
            assert not serving.done(), "the replica did not start"
            await asyncio.sleep(0.005)
        async with aiohttp.ClientSession() as http:
            yield Caller(f"http://127.0.0.1:{listener.getsockname()[1]}", http)
    finally:
        server.should_exit = True
        await serving
        listener.close()


def key_files(folder: Path) -> tuple[Path, Path]:
    """The coordinator's private key and the set of all public ones, as files."""
    key, keys = folder / "coordinator.json", folder / "keys.json"
    key.write_text(KEYS["coordinator"].private_jwk())
    keys.write_text(KEY_SET)
    return key, keys


@contextlib.asynccontextmanager
async def coordinator_process(database: str, port: int) -> AsyncIterator[asyncio.subprocess.Process]:
    """A coordinator in a process of its own, ready to serve; it is killed at the end if it still lives."""
    with tempfile.TemporaryDirectory(prefix="coordinator-") as folder:
        key, keys = key_files(Path(folder))
        environ = {
            "PAWSTAY_DATABASE_URL": database,
            "PAWSTAY_KEY_FILE": str(key),
            "PAWSTAY_KEYS_FILE": str(keys),
            "PAWSTAY_PORT": str(port),
            "PAWSTAY_LOG_LEVEL": "WARNING",
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "coordinator.tc", env=os.environ | environ, cwd=ROOT
        )
        try:
            async with aiohttp.ClientSession() as http:

                async def ready() -> bool:
                    assert process.returncode is None, "the coordinator ended at its start"
                    try:
                        async with http.get(f"http://127.0.0.1:{port}/ready") as response:
                            return response.status == 200
                    except aiohttp.ClientError:
                        return False

                await eventually(ready)
            yield process
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
            await process.wait()


@dataclass
class Resource:
    """A resource's nudge route. It notes what it hears and confirms what was asked for, unless it is told otherwise."""

    name: str
    owner: str = "order"
    url: str = ""
    heard: list[Nudge] = field(default_factory=list)
    present: dict[UUID, list[UUID]] = field(default_factory=dict)
    failing: bool = False
    slow_s: float = 0.0

    def xids(self) -> list[UUID]:
        """The transactions of all nudges so far."""
        return [settle.xid for nudge in self.heard for settle in nudge.settle]

    async def nudged(self, request: web.Request) -> web.Response:
        """Takes a nudge addressed to this resource's owner."""
        verifier = TokenVerifier(self.owner, read_key_set(KEY_SET))
        assert verifier.caller_of(request.headers["Authorization"].removeprefix("Bearer ")) == "coordinator"
        nudge = msgspec.json.decode(await request.read(), type=Nudge)
        await asyncio.sleep(self.slow_s)
        if self.failing:
            return web.Response(status=503)
        self.heard.append(nudge)
        confirms = [self._confirm(settle.xid, settle.decision, settle.branches) for settle in nudge.settle]
        return web.Response(body=msgspec.json.encode(confirms), content_type="application/json")

    def _confirm(self, xid: UUID, decision: int, branches: list[UUID]) -> Confirm:
        if decision == Decision.COMMITTED:
            return Confirm(xid, self.name, [(branch, BranchState.FORGOTTEN) for branch in branches])
        return Confirm(xid, self.name, [(branch, BranchState.UNDONE) for branch in self.present.get(xid, [])])


@contextlib.asynccontextmanager
async def resource_at(name: str, caller: Caller, *, announce: bool = True) -> AsyncIterator[Resource]:
    """A resource of `caller`, announced by it."""
    resource = Resource(name, caller.name)
    app = web.Application()
    app.router.add_post("/nudge", resource.nudged)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        resource.url = f"http://127.0.0.1:{runner.addresses[0][1]}/nudge"
        if announce:
            assert await caller.announce(name, resource.url) == 204
        yield resource
    finally:
        await runner.cleanup()


def refused(answer: Answer) -> str:
    """The message of a refusal."""
    assert isinstance(answer, Refused), answer
    return answer.message


NOTED = Noted()
