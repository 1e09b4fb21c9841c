"""What the coordinator alone can do: decisions for each core it uses, and whether it grows slower with its history.

`per_core` counts transactions with two branches, decided and confirmed, for each second of processor time of the
coordinator's process. `history_ratio` is the latency of a commit, alone at its time, at a coordinator whose store holds
ten million finished transactions over that at one whose store is empty: the two are asked in turn, over one server, and
it is the median of the rounds' ratios of medians. Filling the store takes some minutes; `--history N` fills in fewer.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import asyncpg
import psutil
import uvloop

from coordinator.client import SigningKey, TokenMaker
from coordinator.client.transport import Transport
from coordinator.protocol.ids import uuid7
from coordinator.protocol.messages import BranchRef, Confirm, Decide
from coordinator.protocol.statuses import BranchState
from tests.support.benchmarks import DURABLE, report, start_coordinator
from tests.support.servers import postgres_server

ROUNDS = 7
ROUND_S = 2.0
CALLERS = 64
LATENCIES = 200
GOALS: dict[str, list[object]] = {"per_core": [">=", 4000], "history_ratio": ["<=", 1.2]}
CHUNK = 500_000
FILL = """
WITH made AS (
    INSERT INTO tc.global_transaction
        (xid, name, caller, deadline, heard_at, decided_at, settled_at, decision, settlement, reason)
    SELECT (lpad(to_hex(1700000000000 + n), 12, '0') || '7' || substr(md5(n::text), 1, 3)
            || '8' || substr(md5(n::text), 4, 15))::uuid,
        'transfer', 'bank', to_timestamp(1700000000), to_timestamp(1700000000), to_timestamp(1700000000),
        to_timestamp(1700000000), 1, 2, 'asked'
    FROM generate_series($1::bigint, $2::bigint) AS n
    RETURNING xid
)
INSERT INTO tc.branch (xid, resource, branch_id, known_at, confirmed_at, state, committed)
SELECT m.xid, 'bank-' || b, gen_random_uuid(), to_timestamp(1700000000), to_timestamp(1700000000), 1, true
FROM made m CROSS JOIN generate_series(0, 1) AS b
"""


def wish() -> Decide:
    """A commit of two branches."""
    now_ms = int(time.time() * 1000)
    branches = [BranchRef(f"bank-{n}", uuid7(now_ms)) for n in (0, 1)]
    return Decide(uuid7(now_ms), "transfer", now_ms + 10_000, True, branches)


def confirm(way: Transport, decided: Decide) -> None:
    """Both resources have followed."""
    for branch in decided.branches:
        way.confirm(Confirm(decided.xid, branch.resource, [(branch.branch, int(BranchState.FORGOTTEN))]))


async def per_core(way: Transport, process: psutil.Process) -> float:
    """Transactions for each second of the coordinator's processor time, with CALLERS of them at once."""
    done = 0
    spent = process.cpu_times()
    ends = time.perf_counter() + ROUND_S

    async def caller() -> None:
        nonlocal done
        while time.perf_counter() < ends:
            decided = wish()
            await way.commit(decided, time.time() + 30)
            confirm(way, decided)
            done += 1

    await asyncio.gather(*(caller() for _ in range(CALLERS)))
    await asyncio.sleep(0.5)  # the last confirmations
    now = process.cpu_times()
    return done / (now.user + now.system - spent.user - spent.system)


async def latency(way: Transport) -> float:
    """The median time of a commit that is alone, in seconds."""
    taken = []
    for _ in range(LATENCIES):
        decided = wish()
        began = time.perf_counter()
        await way.commit(decided, time.time() + 30)
        taken.append(time.perf_counter() - began)
        confirm(way, decided)
    return statistics.median(taken)


async def fill(dsn: str, history: int) -> None:
    """Finished transactions in the store, as if they had been there for long."""
    connection = await asyncpg.connect(dsn)
    for first in range(0, history, CHUNK):
        await connection.execute(FILL, first, min(first + CHUNK, history) - 1)
        print(f"{min(first + CHUNK, history):,} of {history:,} finished transactions", file=sys.stderr)
    await connection.execute("VACUUM (ANALYZE, FREEZE) tc.global_transaction")
    await connection.execute("VACUUM (ANALYZE, FREEZE) tc.branch")
    await connection.execute("CHECKPOINT")
    await connection.close()


async def measure(history: int) -> dict[str, float]:
    """Two coordinators over one server, asked in turn."""
    keys = {name: SigningKey.generate(name) for name in ("coordinator", "bank")}
    tokens = TokenMaker("bank", keys["bank"])
    with postgres_server(**DURABLE, max_wal_size="4GB") as server, tempfile.TemporaryDirectory() as folder:
        started = {}
        for name in ("empty", "full"):
            server.create_database(name)
            place = Path(folder) / name
            place.mkdir()
            started[name] = start_coordinator(server.dsn(name), place, keys)
        try:
            await fill(server.dsn("full"), history)
            async with (
                Transport([started["empty"][1]], tokens, dice=random.Random(1)) as empty,
                Transport([started["full"][1]], tokens, dice=random.Random(2)) as full,
            ):
                ratios = []
                for number in range(ROUNDS + 1):
                    order = (empty, full) if number % 2 else (full, empty)
                    found = {way: await latency(way) for way in order}
                    if number:  # the first one warms up
                        ratios.append(found[full] / found[empty])
                    print(f"empty {found[empty] * 1e3:.2f} ms, full {found[full] * 1e3:.2f} ms", file=sys.stderr)
                process = psutil.Process(started["empty"][0].pid)
                rates = [await per_core(empty, process) for _ in range(ROUNDS)]
        finally:
            for running, _ in started.values():
                running.terminate()
                running.wait(10)
    return {"per_core": round(statistics.median(rates)), "history_ratio": round(statistics.median(ratios), 3)}


def main() -> None:
    """Prints the benchmark's object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--history", type=int, default=10_000_000, help="finished transactions in the full store")
    report("coordinator", uvloop.run(measure(parser.parse_args().history)), GOALS, ROUNDS)


if __name__ == "__main__":
    main()
