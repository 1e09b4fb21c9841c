"""What a statement over many rows costs in a branch, and what its undo costs, against the plain statement.

`update_10k` is the time of an UPDATE of 10,000 rows as a branch (its local commit included) over that of the same
UPDATE of a twin table that is not managed, `undo_10k` the time of undoing that branch over the same plain UPDATE; in
turn, each the median of the rounds' ratios. Tables are vacuumed before each round: none pays for another's dead rows.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import asyncpg

from coordinator.protocol.ids import uuid7
from coordinator.resource import entering, install, undo
from tests.support.benchmarks import DURABLE, report
from tests.support.servers import postgres_server

ROUNDS = 9
ROWS = 10_000
GOALS: dict[str, list[object]] = {"update_10k": ["<=", 2.5], "undo_10k": ["<=", 2.5]}
SCHEMA = f"""
CREATE TABLE account (id int PRIMARY KEY, balance bigint NOT NULL, owner text NOT NULL);
INSERT INTO account SELECT n, 1000000, 'owner ' || n FROM generate_series(1, {ROWS}) AS n;
CREATE TABLE twin (LIKE account INCLUDING ALL);
INSERT INTO twin SELECT * FROM account;
"""


async def timed_update(connection: asyncpg.Connection, table: str, xid: UUID | None) -> float:
    """Seconds of a local transaction that updates every row; as a branch of `xid` where there is one."""
    began = time.perf_counter()
    async with connection.transaction():
        if xid is not None:
            await connection.execute(entering(xid, uuid4(), datetime.now(UTC) + timedelta(minutes=5)).sql)
        await connection.execute(f"UPDATE {table} SET balance = balance + 1")
    return time.perf_counter() - began


async def measure() -> dict[str, float]:
    """Plain, branch and undo in turn."""
    with postgres_server(**DURABLE) as server:
        server.create_database("bank")
        connection = await asyncpg.connect(server.dsn("bank"))
        await connection.execute(SCHEMA)
        await install(connection, managed=["account"], exempt=["twin"])
        ratios: dict[str, list[float]] = {name: [] for name in GOALS}
        for number in range(ROUNDS + 1):
            await connection.execute("VACUUM ANALYZE")
            await connection.execute("CHECKPOINT")
            plain = await timed_update(connection, "twin", None)
            xid = uuid7(int(time.time() * 1000))
            branch = await timed_update(connection, "account", xid)
            began = time.perf_counter()
            result = await undo(connection, xid)
            undone = time.perf_counter() - began
            if result.rows != ROWS:
                raise RuntimeError(f"{result.rows} rows were undone, not {ROWS}: {result}")
            if number:  # the first one warms up
                ratios["update_10k"].append(branch / plain)
                ratios["undo_10k"].append(undone / plain)
                shown = f"plain {plain * 1e3:.0f} ms, branch {branch * 1e3:.0f}, undo {undone * 1e3:.0f}"
                print(shown, file=sys.stderr)
        await connection.close()
    return {name: round(statistics.median(found), 2) for name, found in ratios.items()}


def main() -> None:
    """Prints the benchmark's object."""
    report("bulk", asyncio.run(measure()), GOALS, ROUNDS)


if __name__ == "__main__":
    main()
