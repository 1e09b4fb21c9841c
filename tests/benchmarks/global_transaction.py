"""What a global transaction costs: two branches in two databases, against the same two plain local transactions.

All sides do the same two updates, in turn, in one run, at 1 and at 16 at once; the coordinator is a process of its own
with its own durable store. `ratio_N` is the throughput of global transactions over that of plain ones through
SQLAlchemy sessions, `raw_ratio_16` the same through bare asyncpg, `p99_ratio_16` their 99th percentiles of latency, and
`over_prepared` the throughput of global transactions over that of two-phase commit as PostgreSQL has it, written by
hand: PREPARE TRANSACTION in both, a durable record of the decision, COMMIT PREPARED in both. Each figure is the median
of the rounds' ratios. `extra_round_trips` is counted, not timed: a proxy before the database counts how often the
client waits for the server in one branch, less the same in a plain local transaction.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import asyncpg  # noqa: E402
import uvloop  # noqa: E402
from sqlalchemy import text  # noqa: E402
from sqlalchemy.engine import make_url  # noqa: E402
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine  # noqa: E402

from coordinator.client import (  # noqa: E402
    BranchConnection,
    Coordinator,
    Resource,
    SigningKey,
    TokenMaker,
    branch_connect_args,
)
from coordinator.resource import install  # noqa: E402
from tests.support.benchmarks import DURABLE, report, start_coordinator  # noqa: E402
from tests.support.servers import postgres_server  # noqa: E402

ROUNDS = 7
ROUND_S = 1.5
WARM_UP_S = 0.7
SETTLE_S = 0.3
"""Pause before each measurement: no plain writer shall meet rows that the one before has left to settle."""

ROWS = 20_000
GOALS = {
    "ratio_1": [">=", 0.62],
    "ratio_16": [">=", 0.80],
    "raw_ratio_16": [">=", 0.50],
    "p99_ratio_16": ["<=", 1.5],
    "over_prepared": [">=", 1.0],
    "extra_round_trips": ["<=", 0],
}
SCHEMA = """
CREATE TABLE account (id int PRIMARY KEY, balance bigint NOT NULL);
INSERT INTO account SELECT n, 1000000 FROM generate_series(1, {rows}) AS n;
"""
UPDATE = text("UPDATE account SET balance = balance + :amount WHERE id = :id")
RAW_UPDATE = "UPDATE account SET balance = balance + $2 WHERE id = $1"

Transfer = Callable[[int, int], Awaitable[None]]


def engine_of(dsn: str, size: int) -> AsyncEngine:
    """The same settings for both sides."""
    return create_async_engine(
        make_url(dsn).set(drivername="postgresql+asyncpg"),
        pool_size=size,
        max_overflow=0,
        connect_args=branch_connect_args(),
    )


def pool_of(dsn: str, size: int) -> asyncpg.Pool:
    """As many bare connections as an engine has."""
    return asyncpg.create_pool(dsn, min_size=size, max_size=size, connection_class=BranchConnection)


async def prepare(dsn: str) -> None:
    """A database with accounts, managed."""
    connection = await asyncpg.connect(dsn)
    await connection.execute(SCHEMA.format(rows=ROWS))
    await install(connection, managed=["account"])
    await connection.close()


def plain(engines: list[AsyncEngine]) -> Transfer:
    """Two local transactions, one after the other."""

    async def transfer(source: int, target: int) -> None:
        for engine, row, amount in ((engines[0], source, -1), (engines[1], target, 1)):
            async with AsyncSession(engine) as session, session.begin():
                await session.execute(UPDATE, {"id": row, "amount": amount})

    return transfer


def global_(coordinator: Coordinator, resources: list[Resource[AsyncSession]]) -> Transfer:
    """The same two as branches of one global transaction."""

    async def transfer(source: int, target: int) -> None:
        async with coordinator.global_transaction("transfer"):
            for resource, row, amount in ((resources[0], source, -1), (resources[1], target, 1)):

                async def work(session: AsyncSession, row: int = row, amount: int = amount) -> None:
                    await session.execute(UPDATE, {"id": row, "amount": amount})

                await coordinator.run_branch(resource, work)

    return transfer


def raw_plain(pools: list[asyncpg.Pool]) -> Transfer:
    """Two local transactions through bare asyncpg."""

    async def transfer(source: int, target: int) -> None:
        for pool, row, amount in ((pools[0], source, -1), (pools[1], target, 1)):
            async with pool.acquire() as connection, connection.transaction():
                await connection.execute(RAW_UPDATE, row, amount)

    return transfer


def raw_global(coordinator: Coordinator, resources: list[Resource[asyncpg.Connection]]) -> Transfer:
    """The same two as branches."""

    async def transfer(source: int, target: int) -> None:
        async with coordinator.global_transaction("transfer"):
            for resource, row, amount in ((resources[0], source, -1), (resources[1], target, 1)):

                async def work(connection: asyncpg.Connection, row: int = row, amount: int = amount) -> None:
                    await connection.execute(RAW_UPDATE, row, amount)

                await coordinator.run_branch(resource, work)

    return transfer


def prepared(engines: list[AsyncEngine], log: asyncpg.Pool) -> Transfer:
    """The same two with PREPARE TRANSACTION and a durable record of the decision, as one would write it by hand."""

    async def transfer(source: int, target: int) -> None:
        name = uuid.uuid4().hex
        async with AsyncSession(engines[0]) as east, AsyncSession(engines[1]) as west:
            drivers = []
            for session, row, amount in ((east, source, -1), (west, target, 1)):
                await session.execute(UPDATE, {"id": row, "amount": amount})
                pooled = await (await session.connection()).get_raw_connection()
                driver: Any = pooled.driver_connection
                # One name for each: the two databases may be one server's.
                await driver.execute(f"PREPARE TRANSACTION '{name}-{len(drivers)}'")
                # The transaction is no longer the session's: no ROLLBACK of its own shall be counted against it.
                pooled.dbapi_connection._transaction = None  # type: ignore[union-attr]
                driver._top_xact = None
                drivers.append(driver)
            await log.execute("INSERT INTO decision (name) VALUES ($1)", name)
            for number, driver in enumerate(drivers):
                await driver.execute(f"COMMIT PREPARED '{name}-{number}'")

    return transfer


@dataclass
class Measured:
    """One side in one round: transfers a second, and the 99th percentile of their latency in seconds."""

    rate: float
    p99_s: float


async def throughput(transfer: Transfer, at_once: int, seconds: float, dice: random.Random) -> Measured:
    """Transfers by `at_once` workers, each over rows of its own, so that nobody waits for a lock."""
    latencies: list[float] = []
    share = ROWS // at_once
    await asyncio.sleep(SETTLE_S)
    started = time.perf_counter()
    ends = started + seconds

    async def worker(number: int) -> None:
        first = number * share + 1
        before = time.perf_counter()
        while before < ends:
            await transfer(dice.randrange(first, first + share), dice.randrange(first, first + share))
            after = time.perf_counter()
            latencies.append(after - before)
            before = after

    await asyncio.gather(*(worker(number) for number in range(at_once)))
    elapsed = time.perf_counter() - started
    return Measured(len(latencies) / elapsed, sorted(latencies)[int(len(latencies) * 0.99)])


async def rounds(sides: dict[str, Transfer], at_once: int, dice: random.Random) -> list[dict[str, Measured]]:
    """What every side did in every round; they go in turn, and each round begins with another."""
    for side in sides.values():
        await throughput(side, at_once, WARM_UP_S, dice)
    measured = []
    names = list(sides)
    for number in range(ROUNDS):
        order = names[number % len(names) :] + names[: number % len(names)]
        found = {name: await throughput(sides[name], at_once, ROUND_S, dice) for name in order}
        shown = ", ".join(f"{name} {found[name].rate:.0f}/s" for name in names)
        print(f"{at_once} at once: {shown}", file=sys.stderr)
        measured.append(found)
    return measured


def ratio(measured: list[dict[str, Measured]], side: str, over: str) -> float:
    """The median over the rounds of one side's throughput over another's."""
    return round(statistics.median(found[side].rate / found[over].rate for found in measured), 3)


class RoundTrips:
    """A proxy that counts how often the server ends a reply (ReadyForQuery, PostgreSQL protocol 3.0)."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.count = 0
        self.address = 0

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[RoundTrips]:
        """Listens on a free port of 127.0.0.1, `address`."""
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0, family=socket.AF_INET)
        self.address = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", self._port)
        copying = asyncio.create_task(self._copy(reader, upstream_writer))
        try:
            # asyncpg asks for TLS first; the server answers that with a single byte.
            writer.write(await upstream_reader.readexactly(1))
            while True:
                head = await upstream_reader.readexactly(5)
                body = await upstream_reader.readexactly(int.from_bytes(head[1:], "big") - 4)
                self.count += head[:1] == b"Z"
                writer.write(head + body)
        except (asyncio.IncompleteReadError, OSError):
            copying.cancel()
            writer.close()

    @staticmethod
    async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()


async def extra_round_trips(dsns: list[str], port: int, url: str, tokens: TokenMaker) -> int:
    """Round trips of one branch, less those of the same plain local transaction, on warmed connections."""
    async with RoundTrips(port).listening() as proxy:
        engines = [engine_of(str(make_url(dsn).set(port=proxy.address)), 1) for dsn in dsns]
        coordinator = Coordinator([url], tokens=tokens)
        resources = [coordinator.resource(f"bank-{n}", engine) for n, engine in enumerate(engines)]
        counts = {}
        sides = {"plain": plain(engines), "global": global_(coordinator, resources)}
        # Entered for the transport only: settle loops use connections of their own and would be counted too.
        async with coordinator:
            for loop in list(coordinator._loops):
                loop.cancel()
            for name, side in sides.items():
                for row in (1, 2, 3):
                    await side(row, row)
                    await asyncio.sleep(0.3)
                before = proxy.count
                await side(4 if name == "plain" else 5, 6 if name == "plain" else 7)
                counts[name] = proxy.count - before
        for engine in engines:
            await engine.dispose()
    print(f"round trips of two local transactions: {counts}", file=sys.stderr)
    return -(-(counts["global"] - counts["plain"]) // 2)


async def measure() -> dict[str, Any]:
    """Starts everything, measures, stops everything."""
    dice = random.Random(20261123)
    keys = {name: SigningKey.generate(name) for name in ("coordinator", "bank")}
    durable = {**DURABLE, "max_prepared_transactions": "64"}
    with postgres_server(**durable) as server, tempfile.TemporaryDirectory() as folder:
        for name in ("bank_a", "bank_b", "coordinator", "decisions"):
            server.create_database(name)
        dsns = [server.dsn("bank_a"), server.dsn("bank_b")]
        for dsn in dsns:
            await prepare(dsn)
        process, url = start_coordinator(server.dsn("coordinator"), Path(folder), keys)
        tokens = TokenMaker("bank", keys["bank"])
        try:
            trips = await extra_round_trips(dsns, server.port, url, tokens)
            async with contextlib.AsyncExitStack() as stack:
                engines = [engine_of(dsn, 16) for dsn in dsns]
                for engine in engines:
                    stack.push_async_callback(engine.dispose)
                pools = [await stack.enter_async_context(pool_of(dsn, 16)) for dsn in dsns]
                log = await stack.enter_async_context(pool_of(server.dsn("decisions"), 16))
                await log.execute("CREATE TABLE decision (name text PRIMARY KEY)")
                coordinator = Coordinator([url], tokens=tokens)
                resources = [coordinator.resource(f"bank-{n}", engine) for n, engine in enumerate(engines)]
                sides = {"plain": plain(engines), "global": global_(coordinator, resources)}
                async with coordinator:
                    one = await rounds(sides, 1, dice)
                    sixteen = await rounds({**sides, "prepared": prepared(engines, log)}, 16, dice)
                raw = Coordinator([url], tokens=tokens)
                raw_resources = [raw.resource(f"bank-{n}", pool) for n, pool in enumerate(pools)]
                raw_sides = {"raw_plain": raw_plain(pools), "raw_global": raw_global(raw, raw_resources)}
                async with raw:
                    bare = await rounds(raw_sides, 16, dice)
        finally:
            process.terminate()
            process.wait(10)
    return {
        "ratio_1": ratio(one, "global", "plain"),
        "ratio_16": ratio(sixteen, "global", "plain"),
        "raw_ratio_16": ratio(bare, "raw_global", "raw_plain"),
        "p99_ratio_16": round(statistics.median(r["global"].p99_s / r["plain"].p99_s for r in sixteen), 3),
        "over_prepared": ratio(sixteen, "global", "prepared"),
        "extra_round_trips": trips,
    }


def main() -> None:
    """Prints the benchmark's object."""
    report("global-transaction", uvloop.run(measure()), GOALS, ROUNDS)  # uvloop: as uvicorn runs the services


if __name__ == "__main__":
    main()
