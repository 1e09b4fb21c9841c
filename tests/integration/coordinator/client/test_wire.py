"""HTTP to the coordinator, against servers on real sockets that do what servers do on bad days."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from coordinator.client.wire import Origin, Reply, Wire, WireError

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]"

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter, int], Awaitable[None]]


@asynccontextmanager
async def serving(serve: Serve) -> AsyncIterator[Origin]:
    """A server that calls `serve` with each connection and its number, from 1."""
    count = 0

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        count += 1
        try:
            await serve(reader, writer, count)
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield Origin.of(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/base/")
    finally:
        server.close()


async def read(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """One request: its head and its body."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = next((int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length")), 0)
    return head, await reader.readexactly(length)


@pytest.fixture
async def wire() -> AsyncIterator[Wire]:
    made = Wire(connections_max=4, connect_timeout_s=1.0)
    yield made
    made.close()


def post(wire: Wire, origin: Origin, body: bytes = b"{}", timeout_s: float = 3.0) -> Awaitable[Reply]:
    return wire.request(origin, "POST", "/v1/messages", b"X-Said: yes\r\n", body, timeout_s)


async def test_calls_one_after_the_other_share_a_connection_and_calls_at_once_do_not(wire: Wire) -> None:
    """The request has the origin's base path, its host, the headers and the length."""
    heads = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        while True:
            head, body = await read(reader)
            heads.append(head)
            await asyncio.sleep(0.02)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%d %b" % (len(body) + 2, number, body))

    async with serving(serve) as origin:
        assert (await post(wire, origin, b"a")).body == b"1 a"
        assert (await post(wire, origin, b"b")).body == b"1 b"
        both = await asyncio.gather(post(wire, origin, b"c"), post(wire, origin, b"d"))
    assert sorted(reply.body[:1] for reply in both) == [b"1", b"2"]
    assert sorted(reply.body[2:] for reply in both) == [b"c", b"d"]
    assert heads[0].startswith(b"POST /base/v1/messages HTTP/1.1\r\nHost: 127.0.0.1:")
    assert b"\r\nX-Said: yes\r\n" in heads[0]


async def test_a_connection_that_was_closed_while_idle_is_replaced_and_the_request_sent_again(wire: Wire) -> None:
    """Servers close what is idle; the reply says that the first one may have been heard."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        await read(reader)
        writer.write(OK)
        if number == 1:
            await read(reader)  # takes the second request with it, unanswered
            return
        await asyncio.sleep(1)

    async with serving(serve) as origin:
        assert await post(wire, origin) == Reply(200, b"[]")
        assert await post(wire, origin) == Reply(200, b"[]", repeated=True)


async def test_a_fresh_connection_that_is_closed_without_an_answer_is_an_error(wire: Wire) -> None:
    """It is not tried for ever."""
    connections = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        connections.append(number)
        await read(reader)

    async with serving(serve) as origin:
        with pytest.raises(WireError, match="closed before the answer"):
            await post(wire, origin)
    assert connections == [1]


async def test_an_answer_in_small_pieces_and_chunks_is_put_together(wire: Wire) -> None:
    """Also one that closes the connection at its end."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        await read(reader)
        head = b"HTTP/1.1 503 No\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        for byte in head + b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n":
            writer.write(bytes([byte]))
            await writer.drain()
        await asyncio.sleep(1)

    async with serving(serve) as origin:
        for _ in range(2):
            assert await post(wire, origin) == Reply(503, b"abcde")


@pytest.mark.parametrize("answer", [b"220 mail.example ESMTP\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nab"])
async def test_what_is_no_answer_or_half_of_one_is_an_error(wire: Wire, answer: bytes) -> None:
    """Nothing of it is taken for an answer, and it is not asked for twice."""
    connections = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        connections.append(number)
        await read(reader)
        writer.write(answer)

    async with serving(serve) as origin:
        with pytest.raises(WireError):
            await post(wire, origin)
    assert connections == [1]


async def test_a_kept_connection_that_ends_within_an_answer_is_not_asked_again(wire: Wire) -> None:
    """Something was heard, so it was no idle connection that the server had closed."""
    requests = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        for answer in (OK, OK[:-1]):
            requests.append(await read(reader))
            writer.write(answer)

    async with serving(serve) as origin:
        assert (await post(wire, origin)).status == 200
        with pytest.raises(WireError):
            await post(wire, origin)
    assert len(requests) == 2


@pytest.mark.parametrize("how", ["timed out", "cancelled"])
async def test_a_late_answer_is_not_taken_for_that_of_the_next_call(wire: Wire, how: str) -> None:
    """The connection of a call that ran out of time, or was cancelled, is not used again."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        while True:
            _, body = await read(reader)
            await asyncio.sleep(0.2 if body == b"slow" else 0)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

    async with serving(serve) as origin:
        leaving = asyncio.ensure_future(post(wire, origin, b"slow", timeout_s=0.05 if how == "timed out" else 3))
        await asyncio.sleep(0.1)
        leaving.cancel()
        with pytest.raises(TimeoutError if how == "timed out" else asyncio.CancelledError):
            await leaving
        assert (await post(wire, origin, b"quick")).body == b"quick"


async def test_closing_ends_the_calls_that_wait() -> None:
    """They hear of it at once."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        await read(reader)
        await asyncio.sleep(5)

    wire = Wire(connections_max=1, connect_timeout_s=1.0)
    async with serving(serve) as origin:
        waiting = asyncio.ensure_future(post(wire, origin))
        await asyncio.sleep(0.1)
        wire.close()
        with pytest.raises(WireError):
            await waiting


@pytest.mark.parametrize("url", ["", "coordinator:8090", "ftp://coordinator", "http://", "//coordinator"])
def test_what_is_no_address_is_refused_with_its_own_words(url: str) -> None:
    """Before anything is sent."""
    with pytest.raises(ValueError, match="absolute http or https URL"):
        Origin.of(url)


def test_an_address_is_read_whole() -> None:
    """Port by scheme, base path, and a host header without what stands before an @."""
    assert Origin.of("https://one:two@tc.example/at/") == Origin("tc.example", 443, True, "/at", "tc.example")
    assert Origin.of("http://[::1]:8090") == Origin("::1", 8090, False, "", "[::1]:8090")
