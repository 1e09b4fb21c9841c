"""The coordinator's store: PostgreSQL through asyncpg, one function call per deed.

Every connection passes a gate before it is used (see `Store._admit`). What writes decisions never cancels a statement:
PostgreSQL would end a commit's wait for its standby early and show a decision that a failover could still lose.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeAlias, TypeVar
from uuid import UUID

import asyncpg
import structlog
from asyncpg import exceptions as pg

from coordinator.protocol.messages import Settle
from coordinator.protocol.statuses import Decision
from coordinator.tc.config import Limits
from coordinator.tc.core.cycles import Edge

T = TypeVar("T")

Connection: TypeAlias = Any
"""A connection of asyncpg, which carries no types."""

_driver: Any = asyncpg

VERSION = 2
"""Of the store's schema. A store with a greater one belongs to a newer coordinator and is left alone."""

SESSION = {
    "application_name": "coordinator",
    # Every statement looks rows up by key, in tables whose statistics are always old: plan once, and by index.
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "jit": "off",
    # Under a row's lock, and under that of the waits, what others have just committed must be seen.
    "default_transaction_isolation": "read committed",
}

INSTALL_LOCK = 4_108_302_561_017
STORE_ERRORS = (OSError, TimeoutError, pg.PostgresError, pg.InterfaceError, pg.InternalClientError)
"""What may come out of a store that is away, starting, failed over or full: worth another try."""

UNFIT_ERRORS = (pg.DataError,)
"""A value that PostgreSQL, or the driver on its behalf, cannot take: the same at every try."""

SPOILT_ERRORS = (pg.ReadOnlySQLTransactionError, pg.InternalClientError)
"""A connection that is of no use any more: to a primary that became a standby, or cut at an unlucky moment."""

CLASH_ERRORS = (pg.DeadlockDetectedError, pg.SerializationError)

log = structlog.get_logger(__name__)


class StoreUnavailable(Exception):
    """The store did not answer in time. What was asked of it may have been done; every deed here may be repeated."""


class StoreTooNew(Exception):
    """The store was installed by a newer coordinator; run that version, or another database."""


@dataclass(frozen=True, slots=True)
class Ruled:
    """A transaction as a batch left it: its decision and, by resource, its committed branches.

    `caller` is who said the commit, where it was said just now.
    """

    xid: UUID
    decision: Decision
    reason: str | None
    fresh: bool
    resources: dict[str, list[UUID]]
    caller: str | None = None

    def settles(self) -> list[tuple[str, Settle]]:
        """What each of its resources should hear."""
        return [(name, Settle(self.xid, int(self.decision), ids)) for name, ids in self.resources.items()]


@dataclass(frozen=True, slots=True)
class Diverged:
    """Branches whose resource did the opposite of the decision."""

    xid: UUID
    decision: Decision
    resource: str
    branches: list[UUID]


@dataclass(frozen=True, slots=True)
class NudgeUrl:
    """Where a resource can be nudged, and the service to which the nudge is addressed."""

    url: str
    owner: str


def _sql(name: str) -> str:
    return (Path(__file__).parent / name).read_text()


class Store:
    """The store of one replica. `open` first; everything else raises StoreUnavailable before and while it is away."""

    def __init__(self, database_url: str, replica: UUID, limits: Limits) -> None:
        self.replica = replica
        self.batches_written = 0
        self._url = database_url
        self._limits = limits
        self._renudge = timedelta(seconds=limits.renudge.first_s)
        self._pool: Any = None
        self._batch_connection: Any = None
        self._batch_turn = asyncio.Lock()

    async def open(self) -> None:
        """Installs what is missing and opens the pool. Raises one of STORE_ERRORS or StoreTooNew."""
        if self._pool is not None:
            return
        await self._install()
        self._pool = await _driver.create_pool(
            self._url,
            min_size=1,
            max_size=self._limits.store_pool_connections_max,
            init=self._admit,
            reset=_keep_as_is,
            timeout=self._limits.store_timeout_s,
            server_settings=SESSION,
        )

    async def close(self) -> None:
        """Closes all connections, at once where they do not end by themselves."""
        await self._let_go()
        pool, self._pool = self._pool, None
        if pool is not None:
            try:
                await asyncio.wait_for(pool.close(), self._limits.stop_wait_s)
            except TimeoutError:
                pool.terminate()

    async def listen(self, heard: Callable[[UUID], None]) -> Connection:
        """A connection of its own that calls `heard` with xids that were decided elsewhere. The caller closes it."""
        connection = await _driver.connect(self._url, timeout=self._limits.store_timeout_s)
        try:
            await self._admit(connection)
            await connection.add_listener("tc_decided", lambda _c, _pid, _channel, payload: heard(UUID(payload)))
        except BaseException:
            connection.terminate()
            raise
        return connection

    async def ping(self) -> None:
        """Returns when the store answers. Raises StoreUnavailable."""
        await self.read("SELECT 1")

    async def read(self, query: str, *arguments: object) -> list[asyncpg.Record]:
        """Rows of a reading statement, within the reading time limit. Raises StoreUnavailable."""
        try:
            async with self._connection(self._limits.read_timeout_s) as connection:
                rows: list[asyncpg.Record] = await connection.fetch(
                    query, *arguments, timeout=self._limits.read_timeout_s
                )
                return rows
        except STORE_ERRORS as error:
            raise StoreUnavailable(f"the store does not answer: {type(error).__name__}") from error

    async def write(self, deed: Callable[[Any], Awaitable[T]]) -> T:
        """Runs `deed` on a connection, with the gate and the limits of every write. Raises StoreUnavailable.

        Also one of UNFIT_ERRORS or CLASH_ERRORS, with nothing done.
        """
        return await self._write(deed)

    async def apply(self, columns: Sequence[Sequence[object]]) -> tuple[list[Ruled], list[Diverged]]:
        """One batch, as `tc.apply` has it, in one database transaction.

        Raises StoreUnavailable, or one of UNFIT_ERRORS or CLASH_ERRORS with nothing done.
        """
        rows = await self._write_batch(
            lambda c: c.fetch(
                "SELECT * FROM tc.apply($1,$2,$3,$4,$5,$6,$7,$8,$9,$10,$11,$12,$13,$14,$15,$16,$17,$18,$19,$20,$21,$22,"
                "$23,$24,$25,$26,$27)",
                self.replica,
                self._renudge,
                *columns,
            )
        )
        self.batches_written += 1
        return ruled_of(rows), _diverged(rows)

    async def commit_unheard(self, columns: Sequence[Sequence[object]]) -> set[UUID]:
        """Commits those of the transactions that the store has never heard of, as `tc.commit_unheard` has it.

        Raises StoreUnavailable, or one of UNFIT_ERRORS or CLASH_ERRORS.
        """
        statement = "SELECT tc.commit_unheard($1,$2,$3,$4,$5,$6,$7,$8,$9)"
        made = await self._write_batch(lambda c: c.fetchval(statement, self.replica, self._renudge, *columns))
        self.batches_written += 1
        return set(made)

    async def confirm_forgotten(self, columns: Sequence[Sequence[object]]) -> set[UUID]:
        """Notes branches as forgotten, as `tc.confirm_forgotten` has it; returns the transactions left to `apply`.

        Raises StoreUnavailable, or one of UNFIT_ERRORS or CLASH_ERRORS.
        """
        left = await self._write_batch(lambda c: c.fetchval("SELECT tc.confirm_forgotten($1,$2,$3)", *columns))
        self.batches_written += 1
        return set(left)

    async def expire(self, limit: int) -> list[Ruled]:
        """Rolls back up to `limit` transactions that nobody decided in time."""
        statement = "SELECT * FROM tc.expire($1, $2, $3)"
        return ruled_of(await self._write(lambda c: c.fetch(statement, self.replica, self._renudge, limit)))

    async def wait_for(
        self, wait_id: UUID, holder: UUID, waiter: UUID | None, waiter_deadline_ms: int | None, resource: str
    ) -> list[Edge]:
        """Notes a wait and returns all that can be reached from its waiter, in which any cycle lies."""
        lease = timedelta(seconds=self._limits.wait_lease_s)
        arguments = (wait_id, self.replica, holder, waiter, waiter_deadline_ms, resource, lease)
        rows = await self._write(lambda c: c.fetch("SELECT * FROM tc.wait_for($1,$2,$3,$4,$5,$6,$7)", *arguments))
        return [Edge(row["waiter"], row["holder"], row["waiter_deadline_ms"]) for row in rows]

    async def forget_wait(self, wait_id: UUID) -> None:
        """The wait is over."""
        await self._write(lambda c: c.execute("DELETE FROM tc.wait WHERE wait_id = $1", wait_id))

    async def renew_waits(self) -> None:
        """Keeps this replica's waits for another lease and removes those of replicas that vanished."""
        lease = timedelta(seconds=self._limits.wait_lease_s)
        renew = "UPDATE tc.wait SET expires_at = clock_timestamp() + $2 WHERE replica = $1"
        await self._write(lambda c: c.execute(renew, self.replica, lease))
        await self._write(lambda c: c.execute("DELETE FROM tc.wait WHERE expires_at < clock_timestamp()"))

    async def decided_of(self, xids: list[UUID]) -> list[UUID]:
        """Those of `xids` that are decided."""
        statement = "SELECT xid FROM tc.global_transaction WHERE xid = ANY($1) AND decision <> 0"
        return [row["xid"] for row in await self.read(statement, xids)]

    async def take_due_nudges(self, limit: int, dice: Callable[[], float]) -> list[Ruled]:
        """Takes up to `limit` transactions whose resources should hear once more, and sets when that comes up again."""

        async def take(connection: Connection) -> list[asyncpg.Record]:
            async with connection.transaction():
                rows: list[asyncpg.Record] = await connection.fetch("SELECT * FROM tc.nudges_due($1)", limit)
                attempts = {row["xid"]: row["nudges"] for row in rows}
                if attempts:
                    delays = [self._limits.renudge.delay_s(attempt + 1, dice()) for attempt in attempts.values()]
                    await connection.execute("SELECT tc.nudge_again($1, $2)", list(attempts), delays)
            return rows

        return ruled_of(await self._write(take))

    async def announce(self, name: str, nudge_url: str, owner: str) -> str | None:
        """Notes a resource's address for a while. Returns the other owner that the name still belongs to, if any."""
        lapse = timedelta(seconds=self._limits.resource_lapse_s)
        other: str | None = await self._write(
            lambda c: c.fetchval("SELECT tc.announce($1,$2,$3,$4)", name, nudge_url, owner, lapse)
        )
        return other

    async def nudge_urls(self, name: str) -> list[NudgeUrl]:
        """Where a resource can be nudged, the last announced first."""
        rows = await self.read(
            "SELECT nudge_url, owner FROM tc.resource"
            " WHERE name = $1 AND announced_at > clock_timestamp() - $2::interval ORDER BY announced_at DESC LIMIT $3",
            name,
            timedelta(seconds=self._limits.resource_lapse_s),
            self._limits.nudge_urls_max,
        )
        return [NudgeUrl(row["nudge_url"], row["owner"]) for row in rows]

    async def purge(self) -> int:
        """Removes one batch of old history and says how many transactions it held."""
        keep, limit = timedelta(seconds=self._limits.history_keep_s), self._limits.purge_transactions_max
        removed: int = await self._write(lambda c: c.fetchval("SELECT tc.purge($1, $2)", keep, limit))
        return removed

    def _opened(self) -> Any:
        if self._pool is None:
            raise StoreUnavailable("the store is not open yet")
        return self._pool

    @asynccontextmanager
    async def _connection(self, timeout_s: float) -> AsyncIterator[Connection]:
        async with self._opened().acquire(timeout=timeout_s) as connection:
            try:
                yield connection
            except SPOILT_ERRORS:
                connection.terminate()
                raise

    async def _write(self, deed: Callable[[Any], Awaitable[T]]) -> T:
        """Runs `deed` on a connection; one that takes too long is cut, never cancelled (see the module's head)."""
        try:
            async with self._connection(self._limits.store_timeout_s) as connection:
                return await self._cut_late(connection, deed(connection))
        except (*UNFIT_ERRORS, *CLASH_ERRORS):
            raise
        except STORE_ERRORS as error:
            raise StoreUnavailable(f"the store does not answer: {type(error).__name__}: {error}") from error

    async def _write_batch(self, deed: Callable[[Any], Awaitable[T]]) -> T:
        """As `_write`, on a connection that the batches keep for themselves, for they come one after the other."""
        async with self._batch_turn:
            try:
                kept = self._batch_connection
                if kept is None or not _is_open(kept):
                    await self._let_go()
                    kept = await self._opened().acquire(timeout=self._limits.store_timeout_s)
                    self._batch_connection = kept
                return await self._cut_late(kept, deed(kept))
            except (*UNFIT_ERRORS, *CLASH_ERRORS):
                raise
            except STORE_ERRORS as error:
                if isinstance(error, SPOILT_ERRORS) and self._batch_connection is not None:
                    self._batch_connection.terminate()
                await self._let_go()
                raise StoreUnavailable(f"the store does not answer: {type(error).__name__}: {error}") from error

    async def _let_go(self) -> None:
        """Gives the batches' connection back; the pool drops it if it is closed."""
        kept, self._batch_connection = self._batch_connection, None
        if kept is not None and self._pool is not None:
            await self._pool.release(kept)

    async def _cut_late(self, connection: Any, deed: Awaitable[T]) -> T:
        """The result of `deed`. When the time is up, or the caller is cancelled, its connection is cut under it."""
        running = asyncio.ensure_future(deed)
        timer = asyncio.get_running_loop().call_later(self._limits.store_timeout_s, connection.terminate)
        try:
            return await asyncio.shield(running)
        finally:
            timer.cancel()
            if not running.done():
                connection.terminate()
                running.add_done_callback(_retrieve)

    async def _admit(self, connection: Any) -> None:
        """The gate. A status read from a server may be acted on only after a synchronous write was committed there:
        then every decision that it shows has reached wherever synchronous writes have to reach, and a server that was
        failed over, but does not know it yet, lets nobody through."""
        passing = asyncio.ensure_future(connection.execute("SELECT tc.pass_barrier($1)", self.replica))
        try:
            done, _ = await asyncio.wait({passing}, timeout=self._limits.store_timeout_s)
            if not done:
                raise TimeoutError("the store did not commit the barrier row in time")
            passing.result()
        finally:
            if not passing.done():
                connection.terminate()
                passing.add_done_callback(_retrieve)

    async def _install(self) -> None:
        tables, functions = _sql("store.sql"), _sql("rulings.sql") + _sql("operating.sql")
        digest = hashlib.sha256((tables + functions).encode()).hexdigest()
        connection = await _driver.connect(self._url, timeout=self._limits.store_timeout_s)
        try:
            async with connection.transaction():
                await connection.execute("SELECT pg_advisory_xact_lock($1)", INSTALL_LOCK)
                exists = await connection.fetchval("SELECT to_regclass('tc.install') IS NOT NULL")
                known = await connection.fetchrow("SELECT version, digest FROM tc.install") if exists else None
                if known and known["version"] > VERSION:
                    raise StoreTooNew(f"the store has version {known['version']}; this coordinator knows {VERSION}")
                if known and known["digest"] == digest:
                    return
                await connection.execute(tables)
                await connection.execute(functions)
                await connection.execute(
                    "INSERT INTO tc.install (version, digest) VALUES ($1, $2)"
                    " ON CONFLICT (only_row) DO UPDATE SET version = $1, digest = $2, installed_at = now()",
                    VERSION,
                    digest,
                )
                log.info("store.installed", version=VERSION)
        finally:
            await connection.close(timeout=self._limits.stop_wait_s)


async def _keep_as_is(_connection: object) -> None:
    """Nothing here outlives its transaction, so a returned connection needs no cleaning, and no round trip for it."""


def _is_open(connection: Any) -> bool:
    try:
        return not connection.is_closed()
    except pg.InterfaceError:  # the pool takes one that was lost or cut back at once
        return False


def _retrieve(running: asyncio.Future[Any]) -> None:
    if not running.cancelled():
        running.exception()


def ruled_of(rows: Sequence[asyncpg.Record]) -> list[Ruled]:
    """The rows of a function that returns a line for each resource, by transaction."""
    found: dict[UUID, Ruled] = {}
    for row in rows:
        if row.get("diverged"):
            continue
        ruled = found.get(row["xid"])
        if ruled is None:
            decision = Decision(row["decision"])
            ruled = Ruled(row["xid"], decision, row.get("reason"), bool(row.get("fresh")), {})
            found[row["xid"]] = ruled
        if row["resource"] is not None:
            ruled.resources[row["resource"]] = row["branches"]
    return list(found.values())


def _diverged(rows: Sequence[asyncpg.Record]) -> list[Diverged]:
    return [
        Diverged(row["xid"], Decision(row["decision"]), row["resource"], row["branches"])
        for row in rows
        if row["diverged"]
    ]
