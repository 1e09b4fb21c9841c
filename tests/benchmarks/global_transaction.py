"""What a global transaction costs: two branches in two databases, against the same two plain local transactions.

Both sides use SQLAlchemy sessions over the same engines' settings, in turn, in one run, at 1 and at 16 at once; the
coordinator is a process of its own with its own durable store. `ratio_N` is the throughput of global transactions over
that of plain ones, the median of the rounds' ratios. `extra_round_trips` is counted, not timed: a proxy before the
database counts how often the client waits for the server in one branch, less the same in a plain local transaction.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import platform
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import asyncpg  # noqa: E402
import uvloop  # noqa: E402
from sqlalchemy import text  # noqa: E402
from sqlalchemy.engine import make_url  # noqa: E402
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine  # noqa: E402

from coordinator.client import Coordinator, Resource, SigningKey, TokenMaker, branch_connect_args  # noqa: E402
from coordinator.resource import install  # noqa: E402
from tests.support.servers import free_port, postgres_server  # noqa: E402

ROUNDS = 7
ROUND_S = 1.5
WARM_UP_S = 0.7
SETTLE_S = 0.3
"""Pause before each measurement: no plain writer shall meet rows that the one before has left to settle."""

ROWS = 20_000
GOALS = {"ratio_1": [">=", 0.50], "ratio_16": [">=", 0.60], "extra_round_trips": ["<=", 0]}
SCHEMA = """
CREATE TABLE account (id int PRIMARY KEY, balance bigint NOT NULL);
INSERT INTO account SELECT n, 1000000 FROM generate_series(1, {rows}) AS n;
"""
UPDATE = text("UPDATE account SET balance = balance + :amount WHERE id = :id")

Transfer = Callable[[int, int], Awaitable[None]]


def start_coordinator(dsn: str, folder: Path, keys: dict[str, SigningKey]) -> tuple[subprocess.Popen[bytes], str]:
    """The coordinator in a process of its own; returns when it is ready."""
    (folder / "keys.json").write_text(json.dumps({"keys": [key.public_jwk() for key in keys.values()]}))
    (folder / "coordinator.jwk").write_text(keys["coordinator"].private_jwk())
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "coordinator.tc"],
        cwd=ROOT,
        env={
            **os.environ,
            "PAWSTAY_DATABASE_URL": dsn,
            "PAWSTAY_KEY_FILE": str(folder / "coordinator.jwk"),
            "PAWSTAY_KEYS_FILE": str(folder / "keys.json"),
            "PAWSTAY_PORT": str(port),
            "PAWSTAY_LOG_LEVEL": "WARNING",
        },
    )
    for _ in range(200):
        if is_ready(port):
            return process, f"http://127.0.0.1:{port}"
        time.sleep(0.1)
    process.kill()
    raise RuntimeError("the coordinator did not become ready")


def is_ready(port: int) -> bool:
    """Whether the coordinator on this port says that it is ready."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
    try:
        connection.request("GET", "/ready")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def engine_of(dsn: str, size: int) -> AsyncEngine:
    """The same settings for both sides."""
    return create_async_engine(
        make_url(dsn).set(drivername="postgresql+asyncpg"),
        pool_size=size,
        max_overflow=0,
        connect_args=branch_connect_args(),
    )


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


async def throughput(transfer: Transfer, at_once: int, seconds: float, dice: random.Random) -> float:
    """Transfers a second by `at_once` workers, each over rows of its own, so that nobody waits for a lock."""
    done = 0
    share = ROWS // at_once
    await asyncio.sleep(SETTLE_S)
    ends = time.perf_counter() + seconds

    async def worker(number: int) -> None:
        nonlocal done
        first = number * share + 1
        while time.perf_counter() < ends:
            await transfer(dice.randrange(first, first + share), dice.randrange(first, first + share))
            done += 1

    started = time.perf_counter()
    await asyncio.gather(*(worker(number) for number in range(at_once)))
    return done / (time.perf_counter() - started)


async def ratio(sides: tuple[Transfer, Transfer], at_once: int, dice: random.Random) -> float:
    """The median over the rounds of global over plain, measured in turn."""
    for side in sides:
        await throughput(side, at_once, WARM_UP_S, dice)
    ratios = []
    for round_number in range(ROUNDS):
        order = sides if round_number % 2 == 0 else sides[::-1]
        rates = {side: await throughput(side, at_once, ROUND_S, dice) for side in order}
        ratios.append(rates[sides[1]] / rates[sides[0]])
        shown = f"{rates[sides[0]]:.0f} plain/s, {rates[sides[1]]:.0f} global/s, ratio {ratios[-1]:.3f}"
        print(f"{at_once} at once: {shown}", file=sys.stderr)
    return statistics.median(ratios)


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
    durable = {"fsync": "on", "full_page_writes": "on", "shared_buffers": "256MB"}
    with postgres_server(**durable) as server, tempfile.TemporaryDirectory() as folder:
        for name in ("bank_a", "bank_b", "coordinator"):
            server.create_database(name)
        dsns = [server.dsn("bank_a"), server.dsn("bank_b")]
        for dsn in dsns:
            await prepare(dsn)
        process, url = start_coordinator(server.dsn("coordinator"), Path(folder), keys)
        tokens = TokenMaker("bank", keys["bank"])
        try:
            trips = await extra_round_trips(dsns, server.port, url, tokens)
            engines = [engine_of(dsn, 16) for dsn in dsns]
            coordinator = Coordinator([url], tokens=tokens)
            resources = [coordinator.resource(f"bank-{n}", engine) for n, engine in enumerate(engines)]
            async with coordinator:
                sides = (plain(engines), global_(coordinator, resources))
                figures: dict[str, float] = {
                    f"ratio_{at_once}": round(await ratio(sides, at_once, dice), 3) for at_once in (1, 16)
                }
            for engine in engines:
                await engine.dispose()
        finally:
            process.terminate()
            process.wait(10)
    figures["extra_round_trips"] = trips
    return figures


def main() -> None:
    """Prints the benchmark's object."""
    figures = uvloop.run(measure())  # as uvicorn runs the services
    machine = f"{os.cpu_count()} x {platform.machine()}, Python {platform.python_version()}, {platform.system()}"
    print(
        json.dumps(
            {"name": "global-transaction", "figures": figures, "goals": GOALS, "runs": ROUNDS, "machine": machine}
        )
    )


if __name__ == "__main__":
    main()
