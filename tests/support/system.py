"""A whole small system in one event loop: a real coordinator and real services over real servers, on free ports.

    async with running_system(postgres, valkey, tmp_path, services=["order", "capacity"], stand_ins={...}) as system:
        answer = await system.client("order", system.access_token(owner)).post("/api/orders", {...}, key="k1")

Databases are copied from templates that are migrated once a run, so a system costs little more than its processes.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import itertools
import json
import secrets
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import aiohttp
import asyncpg
import uvicorn

from coordinator.protocol.tokens import SigningKey, TokenMaker, read_key_set
from coordinator.tc.app import create_app as create_coordinator
from coordinator.tc.config import CoordinatorSettings
from services.kit.auth import ACCESS_KIND, ACCESS_TTL_S, AccountStatus, Role
from services.kit.clients import IDLE_S
from services.kit.clock import Clock, system_clock
from services.kit.migrate import Placement, guard, migrate
from services.kit.settings import Settings
from services.kit.signing import Signer
from services.kit.spec import ServiceSpec
from sharding import IdMaker, MapStore, ShardId, bucket_of_id, create_catalog
from tests.support.servers import TestPostgres, free_port

SHARDS = ("shard-0", "shard-1")
START_TIMEOUT_S = 30
VALKEY_DATABASES = 16
OPERATOR = "operator"

StandIn = Callable[[Settings], Any]
"""Makes an ASGI application in the place of a service."""

Outside = Callable[[str, dict[str, Any]], contextlib.AbstractAsyncContextManager[None]]
"""Runs a service, or the coordinator, outside of this process: its name, and its settings as JSON has them."""

_valkey_numbers = itertools.count(1)
_templates: dict[tuple[int, str], str] = {}
_templates_lock = threading.Lock()


@dataclass(frozen=True)
class Answer:
    """An HTTP answer, read to its end; header names are lower-case."""

    status: int
    body: Any
    headers: Mapping[str, str]


@dataclass(frozen=True)
class Api:
    """Calls of one service, as one person or service."""

    session: aiohttp.ClientSession
    url: str
    token: str | None

    async def get(self, path: str, **params: str) -> Answer:
        """GET `path`."""
        return await self.call("GET", path, params=params)

    async def post(self, path: str, json: Any = None, *, key: str | None = None) -> Answer:
        """POST `json` to `path`, with `key` as the Idempotency-Key."""
        return await self.call("POST", path, json=json, headers={"Idempotency-Key": key} if key else {})

    async def put(self, path: str, json: Any = None) -> Answer:
        """PUT `json` to `path`."""
        return await self.call("PUT", path, json=json)

    async def patch(self, path: str, json: Any = None) -> Answer:
        """PATCH `path` with `json`."""
        return await self.call("PATCH", path, json=json)

    async def delete(self, path: str) -> Answer:
        """DELETE `path`."""
        return await self.call("DELETE", path)

    async def call(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Any call; the body of the answer is JSON where it is, else text."""
        sent = dict(headers or {})
        if self.token:
            sent["Authorization"] = f"Bearer {self.token}"
        async with self.session.request(
            method, self.url + path, json=json, params=params or {}, headers=sent
        ) as response:
            text = await response.text()
            body = _json_or_text(text)
            return Answer(response.status, body, {name.lower(): value for name, value in response.headers.items()})


@dataclass
class System:
    """What runs, and keys to speak as anybody in it."""

    postgres: TestPostgres
    folder: Path
    redis_url: str
    urls: dict[str, str]
    dsns: dict[str, str]
    settings: dict[str, Settings]
    keys: dict[str, SigningKey]
    session: aiohttp.ClientSession
    map_store: MapStore
    clock: Clock = system_clock
    _ids: IdMaker = field(default_factory=IdMaker)

    def client(self, service: str, token: str | None = None) -> Api:
        """Calls of `service` with `token`."""
        return Api(self.session, self.urls[service], token)

    def access_token(self, user_id: UUID, role: Role = Role.OWNER, status: AccountStatus = AccountStatus.ACTIVE) -> str:
        """What the user service would give this person."""
        signer = Signer("user", self.keys["user"], self.clock)
        claims = {"sub": str(user_id), "role": int(role), "status": int(status)}
        return signer.sign(ACCESS_KIND, claims, ttl_s=ACCESS_TTL_S)

    def service_token(self, caller: str, audience: str) -> str:
        """What `caller` shows to `audience`."""
        return TokenMaker(caller, self.keys[caller]).token_for(audience)

    def as_person(self, service: str, user_id: UUID, role: Role = Role.OWNER) -> Api:
        """Calls of `service` by an approved person."""
        return self.client(service, self.access_token(user_id, role))

    def as_service(self, service: str, caller: str) -> Api:
        """Calls of `service` by another service."""
        return self.client(service, self.service_token(caller, service))

    def new_id(self, shard: str | None = None) -> UUID:
        """A new id, on `shard` if one is named."""
        while True:
            made = self._ids()
            if shard is None or self.shard_of(made) == shard:
                return made

    def shard_of(self, key: UUID) -> str:
        """The shard that holds the bucket of an id."""
        return str(self.map_store.map.shard_of(bucket_of_id(key)))

    async def fetch(self, database: str, sql: str, *args: Any) -> list[Any]:
        """Rows of one database as the administrator sees them: ``capacity``, ``order@shard-0``, ``coordinator``."""
        async with _connected(self.dsns[database]) as connection:
            return list(await connection.fetch(sql, *args))

    async def fetch_all(self, service: str, sql: str, *args: Any) -> list[Any]:
        """Rows of all databases of one service, one after the other."""
        names = [name for name in self.dsns if name == service or name.startswith(f"{service}@")]
        return [row for name in names for row in await self.fetch(name, sql, *args)]

    async def quiet(self) -> None:
        """Waits until no database holds an undo row or an open branch. Raises AssertionError with what is left."""
        left: list[str] = []

        async def settled() -> bool:
            left[:] = await self.unsettled()
            return not left

        try:
            await eventually(settled)
        except TimeoutError:
            raise AssertionError(f"not settled: {left}") from None

    async def unsettled(self) -> list[str]:
        """Locks and open branches that are left, by database."""
        found: list[str] = []
        for name in self.dsns:
            if name in ("coordinator", "shard_map"):
                continue
            locks = await self.fetch(name, "SELECT table_name, xid FROM at.locks()")
            found += [f"{name}: {row['table_name']} {row['xid']}" for row in locks]
            branches = await self.fetch(name, "SELECT xid FROM at.unsettled(100)")
            found += [f"{name}: open branch of {row['xid']}" for row in branches]
        return found

    @asynccontextmanager
    async def worker(self, *services: str) -> AsyncIterator[None]:
        """A worker process's inside for `services`, in threads; stopped at the end, while this loop goes on."""
        from services.kit.runtime import Runtime
        from services.kit.worker import run_workers

        parts = []
        for name in services:
            runtime = Runtime(_spec(name), self.settings[name], clock=self.clock, processing=True)
            parts.append((runtime, importlib.import_module(f"services.{name}.worker").declare))
        stop = threading.Event()
        thread = threading.Thread(target=run_workers, args=(self.redis_url, parts, stop), name="test-worker")
        thread.start()
        try:
            yield
        finally:
            stop.set()
            await asyncio.to_thread(thread.join)  # what it finishes may need the coordinator, which lives in this loop


async def eventually(check: Callable[[], Awaitable[bool]], *, timeout_s: float = 30.0, pause_s: float = 0.03) -> None:
    """Waits until `check` says True. Raises TimeoutError when it does not in time."""
    ends = asyncio.get_running_loop().time() + timeout_s
    while not await check():
        if asyncio.get_running_loop().time() > ends:
            raise TimeoutError(f"not so after {timeout_s} s: {check}")
        await asyncio.sleep(pause_s)


@asynccontextmanager
async def running_system(
    postgres: TestPostgres,
    valkey: str,
    folder: Path,
    *,
    services: Sequence[str],
    stand_ins: Mapping[str, StandIn] | None = None,
    overrides: Mapping[str, Any] | None = None,
    app_options: Mapping[str, Mapping[str, Any]] | None = None,
    clock: Clock = system_clock,
    outside: Outside | None = None,
) -> AsyncIterator[System]:
    """Starts the coordinator, `services` and `stand_ins`; stops all of them at the end and drops their databases.

    `overrides` are settings of every service; `app_options` are keyword arguments of a service's create_app. With
    `outside` coordinator and services do not run in this loop, but where that runs them.
    """
    stand_ins = dict(stand_ins or {})
    names = ["coordinator", *services]
    async with AsyncExitStack() as stack:
        inside = [*(names if outside is None else ()), *stand_ins]
        sockets = {name: stack.enter_context(contextlib.closing(_listening())) for name in inside}
        ports = {name: sock.getsockname()[1] for name, sock in sockets.items()}
        ports |= {name: free_port() for name in names if name not in ports}
        urls = {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
        keys = {name: SigningKey.generate(f"{name}/1") for name in {*names, *stand_ins, *_all_callers()}}
        _write_keys(folder, keys)
        dsns = await asyncio.to_thread(_databases, stack, postgres, services)
        redis_url = f"{valkey.rsplit('/', 1)[0]}/{1 + next(_valkey_numbers) % (VALKEY_DATABASES - 1)}"
        await _flush(redis_url)
        await _place(dsns, services)
        map_store = await stack.enter_async_context(MapStore(dsns["shard_map"]))
        settings = {
            name: _settings(name, folder, urls, dsns, redis_url, dict(overrides or {}))
            for name in [*services, *stand_ins]
        }
        for name, stand_in in stand_ins.items():
            await stack.enter_async_context(_serving(stand_in(settings[name]), sockets[name]))
        if outside is None:
            await _serve_inside(stack, folder, sockets, dsns, keys, {n: settings[n] for n in services}, app_options)
        else:
            said = {name: settings[name].model_dump(mode="json") for name in services}
            said = {"coordinator": _coordinator_said(folder, ports, dsns), **said}
            for name, values in said.items():
                await stack.enter_async_context(outside(name, values))
        connector = aiohttp.TCPConnector(keepalive_timeout=IDLE_S)
        session = await stack.enter_async_context(
            aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=60))
        )
        yield System(postgres, folder, redis_url, urls, dsns, settings, keys, session, map_store, clock)


async def _serve_inside(
    stack: AsyncExitStack,
    folder: Path,
    sockets: Mapping[str, socket.socket],
    dsns: Mapping[str, str],
    keys: Mapping[str, SigningKey],
    settings: Mapping[str, Settings],
    app_options: Mapping[str, Mapping[str, Any]] | None,
) -> None:
    coordinator = CoordinatorSettings(
        database_url=dsns["coordinator"],
        signing_key=keys["coordinator"],
        keys=read_key_set((folder / "keys.json").read_text()),
    )
    await stack.enter_async_context(_serving(create_coordinator(coordinator), sockets["coordinator"]))
    for name, one in settings.items():
        options = dict((app_options or {}).get(name, {}))
        app = importlib.import_module(f"services.{name}.app").create_app(one, **options)
        await stack.enter_async_context(_serving(app, sockets[name]))


def _coordinator_said(folder: Path, ports: Mapping[str, int], dsns: Mapping[str, str]) -> dict[str, Any]:
    return {
        "port": ports["coordinator"],
        "database_url": dsns["coordinator"],
        "key_file": str(folder / "coordinator.jwk"),
        "keys_file": str(folder / "keys.json"),
    }


def _spec(name: str) -> ServiceSpec:
    spec = importlib.import_module(f"services.{name}.config").SPEC
    assert isinstance(spec, ServiceSpec)
    return spec


def _all_callers() -> list[str]:
    catalog = importlib.import_module("services.catalog")
    return [OPERATOR, *(spec.name for spec in catalog.SERVICES)]


def _listening() -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", 0))
    return sock


def _write_keys(folder: Path, keys: Mapping[str, SigningKey]) -> None:
    for name, key in keys.items():
        (folder / f"{name}.jwk").write_text(key.private_jwk())
    (folder / "keys.json").write_text(json.dumps({"keys": [key.public_jwk() for key in keys.values()]}))


def _settings(
    name: str,
    folder: Path,
    urls: Mapping[str, str],
    dsns: Mapping[str, str],
    redis_url: str,
    overrides: dict[str, Any],
) -> Settings:
    mail = folder / "mail"
    mail.mkdir(exist_ok=True)
    password = folder / "admin-password"
    password.write_text("correct-horse-battery")
    values: dict[str, Any] = {
        "service": name,
        "port": int(urls[name].rsplit(":", 1)[1]),
        "database_url": _as(dsns[name], name) if name in dsns else None,
        "shard_urls": {shard: _as(dsns[f"{name}@{shard}"], name) for shard in SHARDS if f"{name}@{shard}" in dsns},
        "shard_map_url": dsns["shard_map"],
        "redis_url": redis_url,
        "lock_redis_urls": [redis_url],
        "coordinator_urls": [urls["coordinator"]],
        "service_urls": {other: url for other, url in urls.items() if other != "coordinator"},
        "key_file": folder / f"{name}.jwk",
        "keys_file": folder / "keys.json",
        "mail_dir": mail,
        "admin_password_file": password,
        **overrides,
    }
    return Settings.model_validate(values)


def _as(dsn: str, role: str) -> str:
    return dsn.replace("postgres@", f"{role}@", 1)


def _databases(stack: AsyncExitStack, postgres: TestPostgres, services: Sequence[str]) -> dict[str, str]:
    """Databases of the coordinator, the shard map and every service; each is dropped when the system ends."""
    mark = secrets.token_hex(4)
    dsns: dict[str, str] = {}
    for name in ("coordinator", "shard_map"):
        dsns[name] = postgres.create_database(f"{name}_{mark}")
    for name in services:
        spec = _spec(name)
        template = _template(postgres, spec)
        places = [f"{name}@{shard}" for shard in SHARDS] if spec.storage == "sharded" else [name]
        for place in places:
            database = f"{place.replace('@', '_').replace('-', '_')}_{mark}"
            postgres.execute(f'CREATE DATABASE "{database}" TEMPLATE "{template}" OWNER "{name}" STRATEGY wal_log')
            dsns[place] = postgres.dsn(database)
    for dsn in dsns.values():
        stack.callback(postgres.drop_database, dsn.rsplit("/", 1)[1])
    return dsns


def _template(postgres: TestPostgres, spec: ServiceSpec) -> str:
    """A migrated database of the service, made once for each server."""
    with _templates_lock:
        known = _templates.get((postgres.port, spec.name))
        if known is not None:
            return known
        name = f"template_{spec.name}"
        with contextlib.suppress(Exception):  # the role may exist already: roles belong to the server
            postgres.execute(f'CREATE ROLE "{spec.name}" LOGIN')
        postgres.execute(f'CREATE DATABASE "{name}" TEMPLATE template0 OWNER "{spec.name}"')
        asyncio.run(migrate(spec, postgres.dsn(name), spec.name))
        _templates[postgres.port, spec.name] = name
        return name


async def _place(dsns: Mapping[str, str], services: Sequence[str]) -> None:
    """Makes the shard map, and guards every sharded database against buckets that it does not own."""
    sharded = [name for name in services if _spec(name).storage == "sharded"]
    async with _connected(dsns["shard_map"]) as connection:
        shard_map = await create_catalog(connection, [ShardId(shard) for shard in SHARDS], roles=sharded)
    for name in sharded:
        for shard in SHARDS:
            placement = Placement(ShardId(shard), shard_map.buckets_of(ShardId(shard)))
            await guard(_spec(name), dsns[f"{name}@{shard}"], name, placement)


@asynccontextmanager
async def _connected(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(dsn)
    try:
        yield connection
    finally:
        await connection.close()


async def _flush(redis_url: str) -> None:
    from redis.asyncio import Redis

    client = Redis.from_url(redis_url)
    await client.flushdb()
    await client.aclose()


class _Server(uvicorn.Server):
    """A server that leaves the process's signals alone: several live in one loop."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def _serving(app: Any, sock: socket.socket) -> AsyncIterator[None]:
    server = _Server(uvicorn.Config(app, log_config=None, access_log=False, lifespan="on", timeout_graceful_shutdown=3))
    task = asyncio.create_task(_serve(server, sock))
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            while not server.started:
                if task.done():
                    await task
                await asyncio.sleep(0.01)
        yield
    finally:
        server.should_exit = True
        await asyncio.gather(task, return_exceptions=True)


async def _serve(server: uvicorn.Server, sock: socket.socket) -> None:
    try:
        await server.serve(sockets=[sock])
    except SystemExit as error:  # in a task it would end the whole test run
        raise RuntimeError("the application did not start: its log says why") from error


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text) if text else None
    except ValueError:
        return text
