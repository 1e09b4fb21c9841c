"""The store: the gate, the groups, its loss and its return."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from uuid import UUID, uuid4

import aiohttp
import asyncpg
import msgspec
import pytest

from coordinator.protocol.messages import Outcome
from coordinator.protocol.statuses import Decision
from coordinator.tc.store import Store, StoreTooNew, StoreUnavailable
from tests.integration.coordinator.tc.harness import (
    QUICK,
    Caller,
    begin,
    branch_of,
    commit,
    coordinator_process,
    eventually,
    new_xid,
    now_ms,
    rollback,
    running,
    settings_for,
)
from tests.support.servers import TestPostgres, free_port, postgres_server


@pytest.fixture
def own_postgres() -> Iterator[TestPostgres]:
    """A server that the test may stop."""
    with postgres_server() as server:
        yield server


async def test_what_comes_together_is_one_database_transaction(tc: Caller, database: str) -> None:
    """A hundred calls at the same moment are written in few transactions."""
    _, before = await tc.get("/v1/statistics")
    await asyncio.gather(*(tc.say(begin(xid), commit(xid)) for xid in (new_xid() for _ in range(100))))
    _, after = await tc.get("/v1/statistics")
    assert after["replica"]["messages"] - before["replica"]["messages"] == 200
    assert after["replica"]["batches"] - before["replica"]["batches"] < 50


async def test_one_list_is_one_database_transaction(database: str) -> None:
    """PostgreSQL itself counts one commit for a list of decisions."""
    store = Store(database, uuid4(), QUICK)
    await store.open()
    async with running(settings_for(database, replace(QUICK, sweep_interval_s=3600.0, wait_poll_s=3600.0))) as tc:
        connection = await asyncpg.connect(database)
        try:
            query = "SELECT count(DISTINCT xmin::text) FROM tc.global_transaction"
            await tc.say(*(commit(new_xid(), branch_of("capacity")) for _ in range(500)))
            assert await connection.fetchval(query) == 1
        finally:
            await connection.close()
            await store.close()


async def test_every_connection_commits_a_barrier_row_before_it_is_used(database: str) -> None:
    """The count of passes is the count of connections, of the pool and of the listener alike."""
    store = Store(database, uuid4(), QUICK)
    await store.open()
    try:
        passes = "SELECT passes FROM tc.barrier WHERE replica = $1"
        assert (await store.read(passes, store.replica))[0]["passes"] == 1
        connection = await store.listen(lambda _: None)
        await connection.close()
        assert (await store.read(passes, store.replica))[0]["passes"] == 2
    finally:
        await store.close()


async def test_the_store_is_read_committed_whatever_its_default_is(database: str) -> None:
    """Who has waited for a row has to see what was committed meanwhile."""
    connection = await asyncpg.connect(database)
    name = database.rsplit("/", 1)[1]
    await connection.execute(f"ALTER DATABASE \"{name}\" SET default_transaction_isolation = 'serializable'")
    await connection.close()
    store = Store(database, uuid4(), QUICK)
    await store.open()
    try:
        assert (await store.read("SHOW transaction_isolation"))[0][0] == "read committed"
    finally:
        await store.close()


@asynccontextmanager
async def _locked_barrier(database: str) -> AsyncIterator[None]:
    connection = await asyncpg.connect(database)
    try:
        async with connection.transaction():
            await connection.execute("LOCK tc.barrier IN EXCLUSIVE MODE")
            yield
    finally:
        await connection.close()


async def test_nothing_is_read_or_decided_through_a_connection_that_did_not_pass_the_barrier(database: str) -> None:
    """Where the synchronous write does not commit, the store is not believed: no status, no decision."""
    limits = replace(QUICK, store_timeout_s=0.5, read_timeout_s=0.5)
    first, second = Store(database, uuid4(), limits), Store(database, uuid4(), limits)
    await first.open()
    await first.close()
    async with _locked_barrier(database):
        with pytest.raises(TimeoutError):
            await second.open()
        with pytest.raises(StoreUnavailable):
            await second.decided_of([new_xid()])
    await second.open()
    assert await second.decided_of([new_xid()]) == []
    await second.close()


async def test_a_write_that_takes_too_long_is_cut_and_never_cancelled(database: str) -> None:
    """PostgreSQL hears of no cancellation; the same write, repeated, is answered from what is there."""
    store = Store(database, uuid4(), replace(QUICK, store_timeout_s=0.3))
    await store.open()
    blocker = await asyncpg.connect(database)
    xid, wait_id = new_xid(), uuid4()
    try:
        async with blocker.transaction():
            await blocker.execute("LOCK tc.wait IN ACCESS EXCLUSIVE MODE")
            with pytest.raises(StoreUnavailable):
                await store.wait_for(wait_id, xid, None, None, "capacity")

        async def written() -> bool:
            return bool(await blocker.fetchval("SELECT count(*) FROM tc.wait WHERE wait_id = $1", wait_id))

        await eventually(written)
    finally:
        await blocker.close()
        await store.close()


async def test_a_cancelled_write_is_cut_and_never_cancelled_in_the_store(database: str) -> None:
    """A batch whose replica stops goes on in PostgreSQL, and the next one takes another connection."""
    store = Store(database, uuid4(), QUICK)
    await store.open()
    blocker = await asyncpg.connect(database)
    try:
        xid, branch = new_xid(), uuid4()
        columns: list[list[object]] = [[xid], ["book"], ["order"], [now_ms(30)], [xid], ["capacity"], [branch]]
        async with blocker.transaction():
            await blocker.execute("LOCK tc.branch IN EXCLUSIVE MODE")
            writing = asyncio.create_task(store.commit_unheard(columns))
            waits = "SELECT count(*) FROM pg_locks WHERE relation = 'tc.branch'::regclass AND NOT granted"
            await eventually(lambda: _is(blocker, waits, 1))
            writing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await writing
            assert await blocker.fetchval(waits) == 1
        decided = "SELECT count(*) FROM tc.global_transaction WHERE decision = 1"
        await eventually(lambda: _is(blocker, decided, 1))
        assert await store.commit_unheard(columns) == set()
    finally:
        await blocker.close()
        await store.close()


async def _is(connection: asyncpg.Connection, query: str, value: object) -> bool:
    return bool(await connection.fetchval(query) == value)


async def test_two_replicas_install_at_once(database: str) -> None:
    """Both start on an empty database, and a later start changes nothing."""
    stores = [Store(database, uuid4(), QUICK) for _ in range(4)]
    await asyncio.gather(*(store.open() for store in stores))
    installed = await stores[0].read("SELECT version, installed_at FROM tc.install")
    again = Store(database, uuid4(), QUICK)
    await again.open()
    assert await again.read("SELECT version, installed_at FROM tc.install") == installed
    await asyncio.gather(*(store.close() for store in [*stores, again]))


async def test_a_newer_store_is_left_alone(database: str) -> None:
    """An old coordinator does not touch what a newer one installed."""
    store = Store(database, uuid4(), QUICK)
    await store.open()
    await store.read("UPDATE tc.install SET version = 99 RETURNING version")
    await store.close()
    with pytest.raises(StoreTooNew, match="99"):
        await Store(database, uuid4(), QUICK).open()


async def test_a_cut_connection_costs_no_caller_an_error(tc: Caller, database: str) -> None:
    """Decisions go on while every connection to the store is terminated again and again."""
    connection = await asyncpg.connect(database)
    kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'coordinator'"
    decided: dict[UUID, Decision] = {}

    async def decide() -> None:
        for _ in range(20):
            xid = new_xid()
            decided[xid], _ = await tc.decide(commit(xid, branch_of("capacity")))

    try:
        deciding = asyncio.gather(*(decide() for _ in range(5)))
        while not deciding.done():
            await connection.execute(kill)
            await asyncio.sleep(0.25)
        await deciding
        rows = await connection.fetch("SELECT xid, decision FROM tc.global_transaction")
        assert {row["xid"]: row["decision"] for row in rows} == decided
        assert set(decided.values()) == {Decision.COMMITTED}
    finally:
        await connection.close()


async def test_a_store_that_goes_away_and_comes_back_is_used_again(own_postgres: TestPostgres) -> None:
    """Without the store a call is 503 and the process not ready; with it, all goes on, with what was decided."""
    limits = replace(QUICK, store_retry_s=0.3, store_timeout_s=1.0)
    dsn = own_postgres.create_database()
    xid, later = new_xid(), new_xid()
    async with running(settings_for(dsn, limits)) as tc:
        assert await tc.decide(commit(xid)) == (Decision.COMMITTED, "asked")
        own_postgres.running.stop()
        async with tc.http.post(f"{tc.url}/v1/messages", data=_wire(rollback(later)), headers=tc.headers) as response:
            assert response.status == 503
            assert response.headers["Retry-After"] == "1"
        assert (await tc.get("/ready"))[0] == 503
        assert (await tc.get("/health"))[0] == 200
        own_postgres.running = type(own_postgres.running).start(own_postgres.server)

        async def ready() -> bool:
            return (await tc.get("/ready"))[0] == 200

        await eventually(ready)
        assert await tc.decide(rollback(xid)) == (Decision.COMMITTED, "asked")
        assert await tc.decide(rollback(later)) == (Decision.ROLLED_BACK, "asked")


async def test_a_replica_starts_before_its_store_and_finds_it_later(postgres: TestPostgres) -> None:
    """It lives, is not ready, and says so, until the database is there."""
    name = f"late_{uuid4().hex[:8]}"
    async with running(settings_for(postgres.dsn(name), replace(QUICK, start_wait_s=0.2))) as tc:
        assert (await tc.get("/ready"))[0] == 503
        postgres.create_database(name)

        async def ready() -> bool:
            return (await tc.get("/ready"))[0] == 200

        await eventually(ready)
        assert await tc.decide(commit(new_xid())) == (Decision.COMMITTED, "asked")
    postgres.drop_database(name)


async def test_a_full_queue_is_said_and_nothing_of_the_call_is_done(database: str) -> None:
    """Beyond the limit callers hear 503 with a way out, instead of waiting without end."""
    async with running(settings_for(database, replace(QUICK, queue_messages_max=10))) as tc:
        xids = [new_xid() for _ in range(11)]
        body = _wire(*(begin(xid) for xid in xids))
        async with tc.http.post(f"{tc.url}/v1/messages", data=body, headers=tc.headers) as response:
            assert response.status == 503
            assert (await response.json(content_type=None))["code"] == "overloaded"
        assert (await tc.get("/v1/transactions"))[1]["items"] == []


async def test_a_process_killed_at_any_moment_keeps_every_decision_it_answered(database: str) -> None:
    """kill -9 of the real process under load: what was answered is what the next process answers."""
    heard: dict[UUID, Decision] = {}
    port = free_port()

    async def decide(tc: Caller) -> None:
        while True:
            xid = new_xid()
            wish = commit(xid, branch_of("capacity")) if xid.int % 2 else rollback(xid)
            try:
                (answer,) = await tc.say(wish)
            except (aiohttp.ClientError, OSError):
                return
            assert isinstance(answer, Outcome)
            heard[xid] = Decision(answer.decision)

    async with aiohttp.ClientSession() as http:
        tc = Caller(f"http://127.0.0.1:{port}", http)
        async with coordinator_process(database, port) as process:
            deciding = asyncio.gather(*(decide(tc) for _ in range(8)))
            await eventually(lambda: len(heard) > 200)
            process.kill()
            await deciding
        async with coordinator_process(database, port):
            again = {xid: (await tc.decide(rollback(xid) if xid.int % 2 else commit(xid)))[0] for xid in heard}
    assert again == heard


def _wire(*messages: object) -> bytes:
    return msgspec.json.encode(list(messages))
