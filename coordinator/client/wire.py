"""Keep-alive HTTP/1.1 to the coordinator: one write and one read a call, parsed by httptools.

A commit is one such call and nothing else, so what the call costs is what a global transaction costs. Everything that
is sent here may be repeated: a connection that was closed while it lay idle is replaced, and the request sent again.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import cast
from urllib.parse import urlsplit

import httptools

ANSWER_BYTES_MAX = 64 * 1024 * 1024
"""A longer answer is no answer."""

IDLE_MAX = 16
"""Connections to one replica that are kept when nobody uses them."""


class WireError(OSError):
    """The other side closed the connection before it had answered, or its answer is not HTTP."""


@dataclass(frozen=True)
class Origin:
    """Where a replica answers: `base` is the path before ours, without a slash at its end."""

    host: str
    port: int
    tls: bool
    base: str
    authority: str

    @classmethod
    def of(cls, url: str) -> Origin:
        """Reads an absolute http or https URL. Raises ValueError when it is none."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is no address of a coordinator; it has to be an absolute http or https URL")
        tls = parts.scheme == "https"
        port = parts.port or (443 if tls else 80)
        return cls(parts.hostname, port, tls, parts.path.rstrip("/"), parts.netloc.rpartition("@")[2])

    def __str__(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.authority}{self.base}"


@dataclass(frozen=True)
class Reply:
    """An answer, read to its end. `repeated`: it is that to a request which had been sent before, unanswered."""

    status: int
    body: bytes
    repeated: bool = False


class Wire:
    """Connections of one process to the replicas; all methods belong to one event loop."""

    def __init__(self, connections_max: int, connect_timeout_s: float) -> None:
        self._slots = asyncio.Semaphore(connections_max)
        self._connect_timeout_s = connect_timeout_s
        self._idle: dict[Origin, list[_Connection]] = {}
        self._busy: set[_Connection] = set()

    async def request(
        self, origin: Origin, method: str, path: str, headers: bytes, body: bytes | None, timeout_s: float
    ) -> Reply:
        """One call. `headers` are whole lines. Raises OSError (WireError among them) and TimeoutError.

        Sent again, once, when a connection that had been used before turns out to be closed.
        """
        head = f"{method} {origin.base}{path} HTTP/1.1\r\nHost: {origin.authority}\r\n".encode() + headers
        request = head + b"\r\n" if body is None else b"%bContent-Length: %d\r\n\r\n%b" % (head, len(body), body)
        async with asyncio.timeout(timeout_s), self._slots:
            kept = self._take(origin)
            if kept is not None:
                try:
                    return await self._ask(origin, kept, request)
                except WireError:
                    if kept.heard:
                        raise
            reply = await self._ask(origin, await self._connect(origin), request)
            return reply if kept is None else replace(reply, repeated=True)

    def close(self) -> None:
        """Cuts all connections; calls that wait end with a WireError."""
        for connection in [*self._busy, *(one for idle in self._idle.values() for one in idle)]:
            connection.cut()
        self._idle.clear()

    def _take(self, origin: Origin) -> _Connection | None:
        idle = self._idle.get(origin)
        while idle:
            connection = idle.pop()
            if not connection.closed:
                return connection
        return None

    async def _connect(self, origin: Origin) -> _Connection:
        async with asyncio.timeout(self._connect_timeout_s):
            _, connection = await asyncio.get_running_loop().create_connection(
                _Connection, origin.host, origin.port, ssl=True if origin.tls else None
            )
        return connection

    async def _ask(self, origin: Origin, connection: _Connection, request: bytes) -> Reply:
        self._busy.add(connection)
        try:
            reply = await connection.ask(request)
        except BaseException:
            connection.cut()  # what still comes on it would be the answer to something else
            raise
        finally:
            self._busy.discard(connection)
        idle = self._idle.setdefault(origin, [])
        if connection.closed or len(idle) >= IDLE_MAX:
            connection.cut()
        else:
            idle.append(connection)
        return reply


class _Connection(asyncio.Protocol):
    """One connection with one call at a time. The methods that start with `on_` are called by the parser."""

    def __init__(self) -> None:
        self.closed = False
        self.heard = False
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._answer: asyncio.Future[Reply] | None = None
        self._parts: list[bytes] = []
        self._length = 0

    def ask(self, request: bytes) -> asyncio.Future[Reply]:
        """Sends; the future has the reply, or a WireError."""
        self._answer = asyncio.get_running_loop().create_future()
        self._parts, self._length, self.heard = [], 0, False
        if self._transport is None or self.closed:
            self._answer.set_exception(WireError("the connection is closed"))
        else:
            self._transport.write(request)
        return self._answer

    def cut(self) -> None:
        """Closes it at once."""
        self.closed = True
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        self.heard = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(f"the answer is not HTTP: {error}")
        if self._length > ANSWER_BYTES_MAX:
            self._fail(f"the answer is longer than {ANSWER_BYTES_MAX} bytes")

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._fail("the connection was closed before the answer had come" if exc is None else str(exc))

    def on_body(self, body: bytes) -> None:
        """A part of the answer's body."""
        self._parts.append(body)
        self._length += len(body)

    def on_message_complete(self) -> None:
        """The answer has come."""
        self.closed = self.closed or not self._parser.should_keep_alive()
        answer, self._answer = self._answer, None
        if answer is None:
            self.cut()  # nobody has asked
        elif not answer.done():
            answer.set_result(Reply(self._parser.get_status_code(), b"".join(self._parts)))

    def _fail(self, why: str) -> None:
        answer, self._answer = self._answer, None
        if answer is not None and not answer.done():
            answer.set_exception(WireError(why))
        self.cut()
