"""BEGIN that travels with the first statement: what can go wrong in the pipeline, and that nothing runs outside."""

from __future__ import annotations

import asyncio
import ssl
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import uvloop

from coordinator.client import BranchConnection
from coordinator.client.opening import Opening, Prepared, _Answers
from coordinator.protocol.ids import uuid7
from coordinator.resource import Entering, entering
from tests.integration.coordinator.client.proxies import postgres_proxy
from tests.integration.coordinator.client.world import Bank
from tests.support.certificates import self_signed
from tests.support.servers import TestPostgres

UPDATE = "UPDATE account SET balance = balance - $1 WHERE id = 1"
IN_BRANCH = "SELECT coalesce(current_setting('at.branch', true), '') <> ''"


def enter(seconds: float = 60) -> Entering:
    """Enters a branch of a transaction of its own."""
    xid = uuid7(int(datetime.now(UTC).timestamp() * 1000))
    return entering(xid, uuid.uuid4(), datetime.now(UTC) + timedelta(seconds=seconds))


@pytest.fixture
async def connection(bank: Bank) -> AsyncIterator[Any]:
    """A connection of its own, with the statements of these tests prepared."""
    connection = await asyncpg.connect(bank.west_dsn, connection_class=BranchConnection)
    async with connection.transaction():
        await connection.execute(UPDATE, 0)
        await connection.fetchval(IN_BRANCH)
    yield connection
    connection.terminate()


async def begin(connection: Any, statement: Entering | None = None) -> Any:
    """A transaction that will enter a branch with its first statement."""
    connection.fold_enter(statement or enter(), later=True)
    transaction = connection.transaction()
    await transaction.start()
    return transaction


async def spotless(connection: Any) -> bool:
    """Whether the connection is outside of any transaction and takes a plain one."""
    connection.unfold()
    assert not connection.is_in_transaction()
    async with connection.transaction():
        return not await connection.fetchval(IN_BRANCH)


@pytest.mark.parametrize("way", ["execute", "fetch", "simple", "prepare", "many", "cursor", "copy", "savepoint"])
async def test_whatever_is_the_first_statement_runs_inside_the_branch(connection: Any, way: str) -> None:
    """Each kind of statement that asyncpg knows, in the pipeline or after a turn of its own."""
    transaction = await begin(connection)
    assert connection.is_in_transaction()
    match way:
        case "execute":
            assert await connection.execute(UPDATE, 1) == "UPDATE 1"
        case "fetch":
            assert await connection.fetchval("SELECT $1::int + 1", 41) == 42
        case "simple":
            assert await connection.execute("UPDATE account SET balance = 1 WHERE id = 1") == "UPDATE 1"
        case "prepare":
            assert await (await connection.prepare("SELECT 42")).fetchval() == 42
        case "many":
            await connection.executemany(UPDATE, [(1,), (2,)])
        case "cursor":
            assert [row[0] async for row in connection.cursor("SELECT generate_series(1, 3)")] == [1, 2, 3]
        case "copy":
            await connection.copy_records_to_table("account", records=[(77, 5)], columns=["id", "balance"])
        case "savepoint":
            async with connection.transaction():
                await connection.execute(UPDATE, 1)
    assert await connection.fetchval(IN_BRANCH)
    await transaction.commit()
    assert connection.unfold()
    assert await spotless(connection)


async def test_a_branch_that_may_not_be_entered_fails_its_first_statement_which_takes_no_effect(
    bank: Bank, connection: Any
) -> None:
    """Not even outside of the transaction: the server passes over everything up to the next Sync."""
    again = enter()
    for statement, sqlstate in ((enter(-1), "AT002"), (again, None), (again, "AT003")):
        transaction = await begin(connection, statement)
        if sqlstate is None:
            await connection.execute(UPDATE, 0)
            await transaction.commit()
            connection.unfold()
            continue
        with pytest.raises(asyncpg.PostgresError) as refused:
            await connection.execute(UPDATE, 10)
        assert refused.value.sqlstate == sqlstate
        assert connection.is_in_transaction()
        await transaction.rollback()
        assert await spotless(connection)
    assert await bank.balance(bank.west_dsn) == 100


async def test_a_begin_that_fails_lets_nothing_run_outside_of_a_transaction(bank: Bank, connection: Any) -> None:
    """The worst that a pipeline could do is to commit the first statement by itself."""
    connection._protocol = Opening(
        connection._protocol, connection._transport, Prepared(), connection._opened, "BEGIN NONSENSE", enter()
    )
    connection._at_opening = connection._protocol
    with pytest.raises(asyncpg.PostgresSyntaxError):
        await connection.execute(UPDATE, 10)
    assert await spotless(connection)
    assert await bank.balance(bank.west_dsn) == 100


@pytest.mark.parametrize("arguments", [("ten",), (), (1, 2)])
async def test_arguments_that_do_not_fit_leave_a_transaction_that_can_be_ended(
    connection: Any, arguments: tuple[Any, ...]
) -> None:
    """They are noticed in the driver when BEGIN is on its way already."""
    update = await connection.prepare(UPDATE)
    for ends in ("rollback", "commit"):
        transaction = await begin(connection)
        with pytest.raises((asyncpg.DataError, asyncpg.InterfaceError)):
            await connection.execute(UPDATE, *arguments) if arguments else await update.fetch()
        assert connection.is_in_transaction()
        await getattr(transaction, ends)()
        assert await spotless(connection)


@pytest.mark.parametrize(
    "meanwhile",
    [["", "DEALLOCATE at_1"], ["", "DEALLOCATE at_2"], ["PREPARE at_1 AS SELECT 1"], ["PREPARE at_2 AS SELECT 2"]],
)
async def test_names_that_the_server_has_lost_or_has_from_another_cost_a_turn_and_nothing_else(
    connection: Any, meanwhile: list[str]
) -> None:
    """A pooler between us and the server gives us other people's sessions."""
    for before in (*meanwhile, "", ""):
        await connection.execute(before or "SELECT")
        transaction = await begin(connection)
        assert await connection.fetchval(IN_BRANCH)
        await transaction.commit()
        assert connection.unfold()
    assert not connection._at_prepared.usable
    assert await spotless(connection)


async def test_our_statements_are_prepared_once(connection: Any) -> None:
    """However many branches there are; only one that was refused has them prepared anew."""
    for seconds in (-1, 60, 60, -1, 60):
        transaction = await begin(connection, enter(seconds))
        try:
            await connection.execute(UPDATE, 0)
            await transaction.commit()
        except asyncpg.PostgresError:
            await transaction.rollback()
        connection.unfold()
    names = await connection.fetch("SELECT statement FROM pg_prepared_statements WHERE starts_with(name, 'at_')")
    assert Counter(row["statement"] for row in names) == {"BEGIN": 2, "SELECT at.enter($1, $2, $3)": 2}


@pytest.mark.parametrize("ends", ["commit", "rollback"])
async def test_a_transaction_without_a_statement_sends_nothing(bank: Bank, ends: str) -> None:
    """And is no branch. After a COMMIT the same work may begin again, and enters then."""
    async with postgres_proxy(bank.west_dsn) as proxy:
        connection = await asyncpg.connect(proxy.dsn(bank.west_dsn), connection_class=BranchConnection)
        before = proxy.round_trips
        transaction = await begin(connection)
        await getattr(transaction, ends)()
        assert proxy.round_trips == before
        if ends == "commit":
            async with connection.transaction():
                assert await connection.fetchval(IN_BRANCH)
            assert connection.unfold()
        else:
            assert not connection.unfold()
        assert await spotless(connection)
        connection.terminate()


async def test_a_pool_takes_a_connection_back_that_waits_for_its_first_statement(bank: Bank) -> None:
    """The next user inherits nothing."""
    pool = await asyncpg.create_pool(bank.west_dsn, min_size=1, max_size=1, connection_class=BranchConnection)
    held: Any = await pool.acquire()
    await begin(held)
    await pool.release(held)
    async with pool.acquire() as other:
        assert await spotless(other)
    pool.terminate()


@pytest.mark.parametrize("turns", [0, 1, 3])
async def test_a_first_statement_that_is_cancelled_leaves_a_connection_that_can_be_used(
    connection: Any, turns: int
) -> None:
    """asyncpg cancels on the server and reads the rest; so do we."""
    await connection.fetchval("SELECT pg_sleep($1)", 0)
    transaction = await begin(connection)
    running = asyncio.create_task(connection.fetchval("SELECT pg_sleep($1)", 30))
    for _ in range(turns):
        await asyncio.sleep(0.01)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await transaction.rollback()
    assert await spotless(connection)


async def test_a_first_statement_that_takes_too_long_fails_in_time(connection: Any) -> None:
    """A timeout of the driver is one in the pipeline too."""
    await connection.fetchval("SELECT pg_sleep($1)", 0)
    transaction = await begin(connection)
    with pytest.raises(TimeoutError):
        await connection.fetchval("SELECT pg_sleep($1)", 30, timeout=0.1)
    await transaction.rollback()
    assert await spotless(connection)


async def test_a_first_statement_whose_time_is_over_before_it_is_sent_leaves_a_transaction_that_can_be_ended(
    connection: Any,
) -> None:
    """The driver raises the same as for one that took too long, and has sent nothing."""
    update = await connection.prepare(UPDATE)
    transaction = await begin(connection)
    with pytest.raises(TimeoutError):
        await update.fetch(1, timeout=0)
    assert connection.is_in_transaction()
    await transaction.rollback()
    assert await spotless(connection)


async def test_a_connection_that_is_lost_in_the_pipeline_says_so(bank: Bank, connection: Any) -> None:
    """The answers that are missing are nobody's secret."""
    await connection.fetchval("SELECT pg_sleep($1)", 0)
    await begin(connection)
    running = asyncio.create_task(connection.fetchval("SELECT pg_sleep($1)", 30))
    await asyncio.sleep(0.1)
    other = await asyncpg.connect(bank.west_dsn)
    await other.execute("SELECT pg_terminate_backend($1)", connection.get_server_pid())
    await other.close()
    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
        await running
    assert connection.is_closed()


async def test_a_notice_of_the_entering_reaches_its_listener(connection: Any) -> None:
    """Only the answers to our statements are taken out."""
    heard: list[str] = []
    connection.add_log_listener(lambda _, message: heard.append(message.message))
    transaction = await begin(connection, Entering("DO $$ BEGIN RAISE NOTICE 'in between'; END $$"))
    assert await connection.execute(UPDATE, 0) == "UPDATE 1"
    await transaction.commit()
    await asyncio.sleep(0)
    assert heard == ["in between"]
    connection.unfold()


class _Heard(asyncio.Protocol):
    def __init__(self) -> None:
        self.data = b""

    def data_received(self, data: bytes) -> None:
        self.data += data


class _Way:
    protocol: asyncio.Protocol | None = None

    def set_protocol(self, protocol: asyncio.Protocol) -> None:
        self.protocol = protocol


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 1000])
def test_answers_are_taken_out_however_they_are_cut_into_pieces(size: int) -> None:
    """Bytes come as the network brings them."""
    own = b"1\0\0\0\x042\0\0\0\x04C\0\0\0\x0aBEGIN\0"
    notice, rest = b"N\0\0\0\x06ab", b"2\0\0\0\x04C\0\0\0\x0dUPDATE 1\0Z\0\0\0\x05T"
    stream = own + own[:10] + notice + own[10:] + rest
    heard, way = _Heard(), _Way()
    answers = _Answers(heard, way)
    way.protocol = answers
    for start in range(0, len(stream), size):
        assert way.protocol is not None
        way.protocol.data_received(stream[start : start + size])
    assert heard.data == notice + rest
    assert way.protocol is heard


@asynccontextmanager
async def tls_before(port: int, certificate: Path, key: Path) -> AsyncIterator[int]:
    """A door that speaks TLS before a server that does not; the port it listens on."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    copies: list[asyncio.Task[None]] = []

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()

    async def came(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(8)  # asyncpg asks for TLS
        writer.write(b"S")
        await writer.start_tls(context)
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)
        copies.extend(asyncio.ensure_future(copy(*way)) for way in ((reader, inner_writer), (inner_reader, writer)))

    server = await asyncio.start_server(came, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for one in copies:
            one.cancel()


@pytest.mark.parametrize("loop_of", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_the_pipeline_works_on_every_loop_and_over_tls(
    postgres: TestPostgres, tmp_path: Path, loop_of: Any, tls: bool
) -> None:
    """Each has a transport of its own kind."""
    certificate, key = self_signed(tmp_path)
    trusted = ssl.create_default_context(cafile=str(certificate))

    async def work(**how: Any) -> None:
        connection: Any = await asyncpg.connect(postgres.dsn(), connection_class=BranchConnection, **how)
        await connection.execute("CREATE TEMP TABLE kept (n int)")
        insert = await connection.prepare("INSERT INTO kept SELECT $1::int WHERE $2")
        for n in range(3):
            connection.fold_enter(Entering("SELECT set_config('at.branch', $1, true)", (str(n),)), later=True)
            async with connection.transaction():
                await insert.fetch(n, True)
                assert await connection.fetchval("SELECT current_setting('at.branch')") == str(n)
            assert connection.unfold()
        assert await connection.fetchval("SELECT count(*) FROM kept") == 3
        await connection.close()

    async def work_over_tls() -> None:
        async with tls_before(postgres.port, certificate, key) as port:
            await work(port=port, ssl=trusted, host="127.0.0.1")

    with asyncio.Runner(loop_factory=loop_of) as runner:
        runner.run(work_over_tls() if tls else work())
