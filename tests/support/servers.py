"""Real servers for tests: one PostgreSQL and one Valkey a test run, made on free ports and gone at its end."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import tempfile
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import asyncpg

from deploy.embedded.binaries import find_postgres, find_redis
from deploy.embedded.postgres import THROWAWAY, PostgresServer
from deploy.embedded.problems import RuntimeProblem
from deploy.embedded.programs import Running, Server
from deploy.embedded.valkey import ValkeyServer

ADMIN_TIMEOUT_S = 60
PORT_ATTEMPTS_MAX = 5
PORTS = range(12_000, 32_000)

T = TypeVar("T")
S = TypeVar("S", bound=Server)


def free_port() -> int:
    """A port on 127.0.0.1 that nobody listens on at the moment.

    Below the range from which the system gives ports to clients: else a server that is started again on its port may
    find somebody's outgoing connection there.
    """
    while True:
        port = secrets.choice(PORTS)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class _Loop:
    """An event loop in a thread of its own: fixtures can do what is async without touching the test's loop."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="test-servers", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        future: Future[T] = asyncio.run_coroutine_threadsafe(work, self._loop)
        return future.result(ADMIN_TIMEOUT_S)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class TestPostgres:
    """A running PostgreSQL whose superuser needs no password."""

    __test__ = False

    def __init__(self, running: Running, server: PostgresServer) -> None:
        self.running = running
        self.server = server
        self._loop = _Loop()
        self._admin: asyncpg.Connection | None = None
        self._turn = asyncio.Lock()  # several threads may administer; one connection takes one statement at a time

    @property
    def port(self) -> int:
        """The port on 127.0.0.1."""
        return self.server.port

    def dsn(self, database: str = "postgres", user: str = "postgres") -> str:
        """The address of a database: ``postgresql://user@127.0.0.1:port/database``."""
        return self.server.dsn(database, user)

    def execute(self, sql: str) -> None:
        """Runs SQL as the superuser in the database ``postgres``, from any thread, inside or outside a loop."""
        self._loop.run(self._execute(sql))

    async def _execute(self, sql: str) -> None:
        async with self._turn:
            if self._admin is None or self._admin.is_closed():
                self._admin = await asyncpg.connect(self.dsn())
            await self._admin.execute(sql)

    def create_database(self, name: str | None = None) -> str:
        """Makes an empty database (with a name of its own if none is given) and returns its DSN."""
        chosen = name or f"test_{secrets.token_hex(6)}"
        self.execute(f'CREATE DATABASE "{chosen}" TEMPLATE template0 STRATEGY wal_log')
        return self.dsn(chosen)

    def drop_database(self, name: str) -> None:
        """Removes a database, whoever is still connected."""
        self.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    def stop(self) -> None:
        """Ends the server and the thread of its administration."""
        if self._admin is not None:
            self._admin.terminate() if self._admin.is_closed() else self._loop.run(self._admin.close())
        self._loop.close()
        self.running.stop()


@contextmanager
def _folder(name: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix=f"pawstay-{name}-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def _start_on_a_free_port(describe: Callable[[int], S]) -> tuple[S, Running]:
    """Starts what `describe` makes of a free port; another port when somebody else took it in between."""
    for attempt in range(1, PORT_ATTEMPTS_MAX + 1):
        server = describe(free_port())
        try:
            return server, Running.start(server)
        except RuntimeProblem:
            if attempt == PORT_ATTEMPTS_MAX:
                raise
    raise AssertionError("unreachable")


@contextmanager
def postgres_server(**settings: str) -> Iterator[TestPostgres]:
    """A PostgreSQL of its own, without fsync; `settings` are added to its configuration."""
    with _folder("postgres") as folder:
        os.chmod(folder, 0o711)  # noqa: S103 - where no user namespace is allowed, nobody must reach its folder inside

        def describe(port: int) -> PostgresServer:
            return PostgresServer(
                name="postgres",
                binaries=find_postgres(os.environ),
                folder=folder / "data",
                port=port,
                log=folder / "postgres.log",
                settings={**THROWAWAY, **settings},
            )

        server, running = _start_on_a_free_port(describe)
        postgres = TestPostgres(running, server)
        try:
            yield postgres
        finally:
            postgres.stop()


@contextmanager
def valkey_server() -> Iterator[ValkeyServer]:
    """A Valkey of its own that keeps nothing; `.url()` is its address."""
    with _folder("valkey") as folder:

        def describe(port: int) -> ValkeyServer:
            return ValkeyServer(
                name="valkey",
                binary=find_redis(os.environ),
                folder=folder,
                port=port,
                log=folder / "valkey.log",
                durable=False,
            )

        server, running = _start_on_a_free_port(describe)
        try:
            yield server
        finally:
            running.stop()
