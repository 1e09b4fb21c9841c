"""What looks like asyncpg to the product, over a simulated server: a pool, connections, and links that break.

A statement travels to the server, runs there, and its answer travels back. A link may break on either way: then the
client knows nothing, and the server ends the local transaction when it notices.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Protocol

import asyncpg
from asyncpg import exceptions as pg
from asyncpg.pool import PoolAcquireContext

from tests.simulation.loop import NODE

if TYPE_CHECKING:
    from tests.simulation.world import World

SERVER_NOTICES_S = 1.5
"""How long a server may take to notice that a client is gone."""


class Session(Protocol):
    """The server's side of one connection."""

    async def run(self, query: str, arguments: tuple[Any, ...]) -> Any:
        """The rows of a statement, or a value. Raises PostgresError."""
        ...

    def abort(self) -> None:
        """The client is gone."""
        ...


class Server(Protocol):
    """What connections can be made to."""

    name: str

    def open_session(self, client: str) -> Session:
        """A session. Raises OSError where the server is down."""
        ...


def postgres_error(code: str, message: str, detail: str | None = None, hint: str | None = None) -> pg.PostgresError:
    """An error as asyncpg makes it from what the server says."""
    fields = {"S": "ERROR", "V": "ERROR", "C": code, "M": message, "D": detail, "H": hint}
    error: pg.PostgresError = pg.PostgresError.new({key: value for key, value in fields.items() if value is not None})
    return error


class SimConnection:
    """One connection of one process."""

    def __init__(self, world: World, server: Server) -> None:
        node = NODE.get()
        assert node is not None
        self._world = world
        self.server = server
        self.node = node
        self.session = server.open_session(node.name)
        self._closed = False
        self._pending: asyncio.Future[Any] | None = None
        self._in_transaction = False
        self._ends: list[Callable[[Any], None]] = []
        world.connections.append(self)

    def is_closed(self) -> bool:
        """As asyncpg's."""
        return self._closed

    def is_in_transaction(self) -> bool:
        """As asyncpg's."""
        return self._in_transaction

    def transaction(self, **_: Any) -> SimTransaction:
        """As asyncpg's."""
        return SimTransaction(self)

    def terminate(self) -> None:
        """As asyncpg's: cut, and the server finds out."""
        self.cut("terminated")

    async def close(self, timeout: float | None = None) -> None:
        """As asyncpg's."""
        self.cut("closed")

    async def add_listener(self, channel: str, callback: Callable[..., None]) -> None:
        """As asyncpg's; `callback` runs in the process of this connection."""
        self._world.listeners.append((self, callback))

    def add_termination_listener(self, callback: Callable[[Any], None]) -> None:
        """As asyncpg's."""
        self._ends.append(callback)

    async def execute(self, query: str, *arguments: Any, timeout: float | None = None) -> str:
        """As asyncpg's."""
        await self.statement(query, arguments)
        return ""

    async def fetch(self, query: str, *arguments: Any, timeout: float | None = None) -> Any:
        """As asyncpg's."""
        return await self.statement(query, arguments)

    async def fetchrow(self, query: str, *arguments: Any) -> Any:
        """As asyncpg's."""
        rows = await self.statement(query, arguments)
        return rows[0] if rows else None

    async def fetchval(self, query: str, *arguments: Any) -> Any:
        """As asyncpg's. The simulated servers answer such a statement with the value."""
        return await self.statement(query, arguments)

    async def statement(self, query: str, arguments: tuple[Any, ...]) -> Any:
        """One turn to the server. Raises PostgresError; InterfaceError on a connection that is closed."""
        if self._closed:
            raise pg.InterfaceError("connection is closed")
        world = self._world
        answer = self._pending = world.loop.create_future()
        lost = world.network.parts(self.node.name, self.server.name) or world.chance(world.faults.cut)
        half = world.chance(0.5)
        if lost and half:
            world.loop.after(world.delay_s() * 4, self.cut, "statement lost")
        else:
            world.loop.after(world.delay_s(), self._arrive, query, arguments, answer, lost)
        try:
            return await answer
        except asyncio.CancelledError:
            self.cut("cancelled")  # a COMMIT that was cancelled may have been taken all the same
            raise

    def _arrive(self, query: str, arguments: tuple[Any, ...], answer: asyncio.Future[Any], lost: bool) -> None:
        self._world.loop.spawn(self._serve(query, arguments, answer, lost), None)

    async def _serve(self, query: str, arguments: tuple[Any, ...], answer: asyncio.Future[Any], lost: bool) -> None:
        error: BaseException | None = None
        result: Any = None
        try:
            result = await self.session.run(query, arguments)
        except (pg.PostgresError, OSError) as raised:
            error = raised
        if lost:
            self.cut("answer lost")
        else:
            self._world.loop.after(self._world.delay_s(), _deliver, answer, result, error)

    def cut(self, why: str) -> None:
        """The link is gone. Whoever waits for an answer hears so; the server ends the session when it notices."""
        if self._closed:
            return
        self._closed = True
        self._in_transaction = False
        self._world.connections.remove(self)
        self._world.trace("cut", self.node.name, self.server.name, why)
        if self._pending is not None and not self._pending.done():
            _deliver(self._pending, None, postgres_error("08003", f"connection was closed: {why}"))
        self._world.loop.after(self._world.dice.uniform(0.0, SERVER_NOTICES_S), self.session.abort)
        for end in self._ends:
            self._world.loop.call_soon(end, self, context=self.node.context)


class FoldingConnection(SimConnection):
    """As BranchConnection: what enters a branch travels with BEGIN or with the first statement, `keep` with COMMIT."""

    _enter: Any = None
    _later = False
    _opening: Any = None
    _keep: str | None = None
    _entered = False
    _rolled_back = False

    def fold_enter(self, enter: Any, *, later: bool) -> None:
        """As BranchConnection's."""
        self._enter, self._later, self._keep = enter, later, None
        self._entered = self._rolled_back = False

    def fold_keep(self, statement: str) -> None:
        """As BranchConnection's."""
        self._keep = statement

    def unfold(self) -> bool:
        """As BranchConnection's."""
        entered = self._entered and not self._rolled_back
        self._enter = self._keep = self._opening = None
        self._entered = False
        return entered

    async def statement(self, query: str, arguments: tuple[Any, ...]) -> Any:
        if query == "BEGIN;" and self._enter is not None:
            enter, self._enter = self._enter, None
            if self._later:
                self._opening = enter
                return None
            try:
                await super().statement(f"BEGIN;{enter.sql}", ())
            except pg.PostgresError:
                if not self.is_closed():
                    await super().statement("ROLLBACK;", ())
                raise
            self._entered = True
            return None
        if self._opening is not None:
            opening, self._opening = self._opening, None
            if query in ("COMMIT;", "ROLLBACK;"):
                return None
            self._entered = True
            return await super().statement(f"BEGIN;{opening.sql};{query}", arguments)
        if query == "COMMIT;" and self._keep is not None:
            keep, self._keep = self._keep, None
            return await super().statement(f"{keep};{query}", ())
        if query == "ROLLBACK;":
            self._rolled_back = True
        return await super().statement(query, arguments)


def _deliver(answer: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if answer.done():
        return
    if error is None:
        answer.set_result(result)
    else:
        answer.set_exception(error)
        answer.exception()


class SimTransaction:
    """As asyncpg's, by hand or as a block."""

    def __init__(self, connection: SimConnection) -> None:
        self._connection = connection

    async def start(self) -> None:
        """BEGIN."""
        await self._connection.execute("BEGIN;")
        self._connection._in_transaction = True

    async def commit(self) -> None:
        """COMMIT. As in asyncpg, the transaction is over for the client whatever comes of it."""
        try:
            await self._connection.execute("COMMIT;")
        finally:
            self._connection._in_transaction = False

    async def rollback(self) -> None:
        """ROLLBACK."""
        try:
            await self._connection.execute("ROLLBACK;")
        finally:
            self._connection._in_transaction = False

    async def __aenter__(self) -> SimTransaction:
        await self.start()
        return self

    async def __aexit__(self, kind: object, *_: object) -> None:
        await (self.commit() if kind is None else self.rollback())


class SimPool(asyncpg.Pool):
    """A pool; the product sees an asyncpg.Pool."""

    def __init__(  # asyncpg's own would open sockets
        self,
        world: World,
        server_of: Callable[[], Server],
        max_size: int,
        init: Callable[[Any], Awaitable[None]] | None = None,
        kind: type[SimConnection] = SimConnection,
    ) -> None:
        self._kind = kind
        self._world = world
        self._server_of = server_of
        self._slots = asyncio.Semaphore(max_size)
        self._init_new = init
        self._idle: list[SimConnection] = []

    def acquire(self, *, timeout: float | None = None) -> PoolAcquireContext:
        """As asyncpg's."""
        return PoolAcquireContext(self, timeout)

    async def _acquire(self, timeout: float | None) -> SimConnection:
        async with asyncio.timeout(timeout):
            await self._slots.acquire()
            try:
                while self._idle:
                    kept = self._idle.pop()
                    if not kept.is_closed():
                        return kept
                await asyncio.sleep(self._world.delay_s())
                made = self._kind(self._world, self._server_of())
                try:
                    if self._init_new is not None:
                        await self._init_new(made)
                except BaseException:
                    made.terminate()
                    raise
                return made
            except BaseException:
                self._slots.release()
                raise

    async def release(self, connection: Any, *, timeout: float | None = None) -> None:
        """As asyncpg's: what is left of a transaction is rolled back."""
        self._slots.release()
        if connection.is_closed():
            return
        if connection.is_in_transaction():
            connection.terminate()
            return
        self._idle.append(connection)

    async def close(self) -> None:
        """As asyncpg's."""
        self.terminate()

    def terminate(self) -> None:
        """As asyncpg's."""
        for connection in self._idle:
            connection.terminate()
