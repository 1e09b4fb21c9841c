"""BEGIN, and what enters the branch, travel with the branch's first statement: one turn to the server less.

asyncpg waits for the answer to BEGIN before it sends the first statement. The server does not ask for that: in the
extended query protocol (PostgreSQL's "Frontend/Backend Protocol", 3.0, "Pipelining") statements may follow each other
without an answer between them, and after one that fails everything up to the next Sync is passed over. So when asyncpg
sends its statement, ours go out right before it, without a Sync of their own: either all of them take effect, or the
first statement fails with the error of the one before it, and nothing was run outside of the transaction.

Ours are prepared once a connection, under names of their own. Where the server has lost them, or knows them from
somebody else (a pooler between us and it), the transaction begins again by a simple query, and so from then on.

asyncpg knows nothing of this. While a transaction waits for its first statement, an `Opening` stands in the place of
the connection's protocol object; once it is on its way, `_Answers` stands before that object and takes out the answers
to what asyncpg has not sent. Everything but the execution of a prepared statement opens with a turn of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from asyncpg.exceptions import (
    DuplicatePreparedStatementError,
    InterfaceError,
    InvalidSQLStatementNameError,
    PostgresError,
)

from coordinator.resource import Entering

PASSIVE = frozenset(
    {
        "_get_timeout",
        "_is_cancelling",
        "_wait_for_cancellation",
        "abort",
        "backend_pid",
        "backend_secret",
        "close",
        "get_record_class",
        "get_server_pid",
        "get_settings",
        "is_closed",
        "is_connected",
        "queries_count",
    }
)
"""What asyncpg's connection asks of its protocol without sending a statement. All else opens the transaction first."""

COMMAND_COMPLETE, ERROR_RESPONSE, READY_FOR_QUERY = b"CEZ"
EXECUTE = b"E\0\0\0\x09\0\0\0\0\0"
SYNC = b"S\0\0\0\x04"
OWN_ANSWERS = b"12CDTn"
"""Kinds of the messages that answer Parse, Bind and Execute; others in between (notices, parameters) are asyncpg's."""


class Prepared:
    """The names of the statements that we have prepared on one connection."""

    def __init__(self) -> None:
        self.usable = True
        self._names: dict[str, bytes] = {}
        self._made = 0

    def messages(self, statement: str, arguments: Sequence[str]) -> tuple[bytes, dict[str, bytes]]:
        """Bind and Execute, after Parse where there is no such statement yet; those that will be there then."""
        name = self._names.get(statement)
        if name is not None:
            return _bound(name, arguments), {}
        self._made += 1
        name = b"at_%d" % self._made
        parse = _message(b"P", name + b"\0" + statement.encode() + b"\0\0\0")
        return parse + _bound(name, arguments), {statement: name}

    def keep(self, names: dict[str, bytes]) -> None:
        """The server has them now."""
        self._names.update(names)


class Opening:
    """Stands for the `protocol` of a connection whose transaction has not begun on the server.

    `opened` is called, and has to put `protocol` back, before anything is sent.
    """

    def __init__(
        self,
        protocol: Any,
        transport: Any,
        prepared: Prepared,
        opened: Callable[[], None],
        begin: str,
        enter: Entering,
    ) -> None:
        self.protocol = protocol
        self.enter = enter
        self._transport = transport
        self._prepared = prepared
        self._opened = opened
        self._begin = begin

    def is_in_transaction(self) -> bool:
        """For asyncpg it has begun."""
        return True

    async def query(self, query: str, timeout: float | None) -> Any:
        """A simple query may hold several statements, so ours stand before it."""
        self._opened()
        return await self.protocol.query(f"{self._begin};{self.enter.sql};{query}", timeout)

    async def bind_execute(self, *arguments: Any, **options: Any) -> Any:
        """Sends ours right before the execution of a prepared statement."""
        self._opened()
        if not self._prepared.usable or self.protocol._is_cancelling():
            # Who waits for a cancellation before it sends might be given up there.
            await self.protocol.query(f"{self._begin};{self.enter.sql};", None)
            return await self.protocol.bind_execute(*arguments, **options)
        begin, begin_name = self._prepared.messages(self._begin, ())
        enter, enter_name = self._prepared.messages(self.enter.statement, self.enter.arguments)
        sent_before = self.protocol.queries_count
        answers = _Answers(self.protocol, self._transport)
        self._transport.set_protocol(answers)
        self._transport.write(begin + enter)
        try:
            result = await self.protocol.bind_execute(*arguments, **options)
        except (InvalidSQLStatementNameError, DuplicatePreparedStatementError):
            if not answers.failed:
                raise
            self._prepared.usable = False
            await self.protocol.query(f"ROLLBACK;{self._begin};{self.enter.sql};", None)
            return await self.protocol.bind_execute(*arguments, **options)
        except Exception:
            unsent = self.protocol.queries_count == sent_before
            if unsent and self.protocol.is_connected() and not self._transport.is_closing():
                # Its arguments did not fit, or its time was over before it began. Sync brings the answers to ours, and
                # what asyncpg hears of the next query tells it that there is a transaction.
                answers.until_ready = True
                self._transport.write(SYNC)
                with contextlib.suppress(InterfaceError, PostgresError):
                    await self.protocol.query("SELECT", None)
            raise
        self._prepared.keep(begin_name | enter_name)
        return result

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.protocol, name)
        if name in PASSIVE:
            return found

        async def after_opening(*arguments: Any, **options: Any) -> Any:
            self._opened()
            await self.protocol.query(f"{self._begin};{self.enter.sql};", None)
            return await found(*arguments, **options)

        return after_opening


class _Answers(asyncio.Protocol):
    """Reads for `protocol` until two statements are answered, or one has failed; it does not hear of their answers.

    With `until_ready`, until the server is ready again, whatever it says before.
    """

    def __init__(self, protocol: Any, transport: Any) -> None:
        self.failed = False
        self.until_ready = False
        self._protocol = protocol
        self._transport = transport
        self._left = 2
        self._kept = b""

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        data = self._kept + data if self._kept else data
        start = 0
        while self._left and len(data) >= start + 5:
            end = start + 1 + int.from_bytes(data[start + 1 : start + 5], "big")
            if len(data) < end:
                break
            kind = data[start]
            if self.until_ready:
                self._left = kind != READY_FOR_QUERY
            elif kind == ERROR_RESPONSE:
                self._left = 0
                self.failed = True
                break
            elif kind == COMMAND_COMPLETE:
                self._left -= 1
            elif kind not in OWN_ANSWERS:
                self._protocol.data_received(data[start:end])
            start = end
        if self._left:
            self._kept = data[start:]
            return
        self._transport.set_protocol(self._protocol)
        if start < len(data):
            self._protocol.data_received(data[start:])

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._protocol.connection_lost(exc)

    def pause_writing(self) -> None:
        """See asyncio.Protocol."""
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        """See asyncio.Protocol."""
        self._protocol.resume_writing()


def _message(kind: bytes, body: bytes) -> bytes:
    return b"%b%b%b" % (kind, (len(body) + 4).to_bytes(4, "big"), body)


def _bound(name: bytes, arguments: Sequence[str]) -> bytes:
    """Bind with its arguments as text, and Execute, both of the portal without a name; no Sync."""
    values = [argument.encode() for argument in arguments]
    body = b"".join(
        (
            b"\0%b\0\0\0" % name,
            len(values).to_bytes(2, "big"),
            *(len(value).to_bytes(4, "big") + value for value in values),
            b"\0\0",
        )
    )
    return _message(b"B", body) + EXECUTE
