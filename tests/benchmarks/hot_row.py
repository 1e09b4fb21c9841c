"""Many clients that fight for one row: global transactions against plain ones that lock it with SELECT FOR UPDATE.

`ratio_32` is the throughput of 32 clients whose global transactions all update the same row, over that of 32 clients
who lock, update and commit it locally; in turn, the median of the rounds' ratios. At the end the row shows them all.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import asyncpg
import uvloop

from coordinator.client import BranchConnection, Coordinator, SigningKey, TokenMaker
from coordinator.resource import install
from tests.support.benchmarks import DURABLE, report, start_coordinator
from tests.support.servers import postgres_server

ROUNDS = 7
ROUND_S = 2.0
CLIENTS = 32
GOALS: dict[str, list[object]] = {"ratio_32": [">=", 0.35]}
UPDATE = "UPDATE account SET balance = balance + 1 WHERE id = 1"


async def fight(update: Callable[[], Awaitable[None]]) -> tuple[float, int]:
    """Updates a second by all clients together, and how many there were."""
    done = 0
    began = time.perf_counter()

    async def client() -> None:
        nonlocal done
        while time.perf_counter() < began + ROUND_S:
            await update()
            done += 1

    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return done / (time.perf_counter() - began), done


async def measure() -> dict[str, float]:
    """Both fights in turn, each round in the other order."""
    keys = {name: SigningKey.generate(name) for name in ("coordinator", "bank")}
    with postgres_server(**DURABLE) as server, tempfile.TemporaryDirectory() as folder:
        for name in ("bank", "coordinator"):
            server.create_database(name)
        connection = await asyncpg.connect(server.dsn("bank"))
        await connection.execute("CREATE TABLE account (id int PRIMARY KEY, balance bigint NOT NULL)")
        await connection.execute("INSERT INTO account VALUES (1, 0)")
        await install(connection, managed=["account"])
        process, url = start_coordinator(server.dsn("coordinator"), Path(folder), keys)
        pool = await asyncpg.create_pool(
            server.dsn("bank"), min_size=CLIENTS, max_size=CLIENTS, connection_class=BranchConnection
        )
        coordinator = Coordinator([url], tokens=TokenMaker("bank", keys["bank"]))
        bank = coordinator.resource("bank", pool)

        async def plain() -> None:
            async with pool.acquire() as held, held.transaction():
                await held.fetchval("SELECT balance FROM account WHERE id = 1 FOR UPDATE")
                await held.execute(UPDATE)

        async def work(held: asyncpg.Connection) -> None:
            await held.execute(UPDATE)

        async def in_branch() -> None:
            async with coordinator.global_transaction("hot"):
                await coordinator.run_branch(bank, work)

        ratios, updates = [], 0
        try:
            async with coordinator:
                for number in range(ROUNDS + 1):
                    found = {}
                    for side in (plain, in_branch) if number % 2 else (in_branch, plain):
                        found[side], done = await fight(side)
                        updates += done
                        while await connection.fetchval("SELECT count(*) FROM at.locks()"):  # noqa: ASYNC110
                            await asyncio.sleep(0.02)
                    if number:  # the first one warms up
                        ratios.append(found[in_branch] / found[plain])
                    print(f"plain {found[plain]:.0f}/s, global {found[in_branch]:.0f}/s", file=sys.stderr)
            balance = await connection.fetchval("SELECT balance FROM account")
            if balance != updates:
                raise RuntimeError(f"{updates} updates were made, and the row shows {balance}")
        finally:
            process.terminate()
            process.wait(10)
            pool.terminate()
            await connection.close()
    return {"ratio_32": round(statistics.median(ratios), 3)}


def main() -> None:
    """Prints the benchmark's object."""
    report("hot-row", uvloop.run(measure()), GOALS, ROUNDS)


if __name__ == "__main__":
    main()
