"""`POST /v1/messages` without the framework: nearly all calls are this one, and a decision waits for nothing else here.

Callers, limits and problems are those of the other paths.
"""

from __future__ import annotations

import msgspec
from litestar.enums import ScopeType
from litestar.types import ASGIApp, HTTPResponseBodyEvent, HTTPResponseStartEvent, HTTPScope, Receive, Scope, Send

from coordinator.protocol import messages as wire
from coordinator.tc.auth import Callers, send_problem
from coordinator.tc.problems import UNREADABLE_ERRORS, Problem, known_or_bug, unreadable
from coordinator.tc.replica import Replica

PATH = "/v1/messages"

_requests = msgspec.json.Decoder(list[wire.Request])
_encoder = msgspec.json.Encoder()


class MessagesDoor:
    """The ASGI application that answers `PATH` itself and hands everything else to `others`."""

    def __init__(self, replica: Replica, callers: Callers, others: ASGIApp) -> None:
        self._replica = replica
        self._callers = callers
        self._others = others

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One ASGI call."""
        if scope["type"] != ScopeType.HTTP or scope["path"].rstrip("/") != PATH:
            await self._others(scope, receive, send)
            return
        try:
            answer = await self._answer(scope, receive)
        except Exception as error:
            await send_problem(known_or_bug(error, PATH), send)
            return
        if answer is not None:
            await _send(answer, send)

    async def _answer(self, scope: HTTPScope, receive: Receive) -> bytes | None:
        """The answer's body; None when the caller has hung up. Raises what problem_for knows, or a bug."""
        caller = self._callers.caller_of(scope["headers"])
        if scope["method"] != "POST":
            raise Problem(405, "method-not-allowed", f"{PATH} takes POST only.", {"Allow": "POST"})
        body = await self._body(receive)
        if body is None:
            return None
        try:
            said = _requests.decode(body)
        except UNREADABLE_ERRORS as error:
            raise unreadable(error) from error
        if len(said) > wire.MESSAGES_MAX:
            detail = f"{len(said)} messages came; send at most {wire.MESSAGES_MAX} in one list."
            raise Problem(413, "too-many-messages", detail)
        return _encoder.encode(await self._replica.messages(said, caller))

    async def _body(self, receive: Receive) -> bytes | None:
        """What was sent, or None when the caller has hung up. Raises Problem as soon as it is too long."""
        most = self._replica.limits.body_bytes_max
        parts: list[bytes] = []
        length = 0
        while True:
            event = await receive()
            if event["type"] != "http.request":
                return None
            part = event["body"]
            length += len(part)
            if length > most:
                detail = f"The body is longer than {most} bytes; send less at once."
                raise Problem(413, "request-entity-too-large", detail)
            parts.append(part)
            if not event.get("more_body", False):
                return parts[0] if len(parts) == 1 else b"".join(parts)


async def _send(body: bytes, send: Send) -> None:
    start: HTTPResponseStartEvent = {
        "type": "http.response.start",
        "status": 200,
        "headers": [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())],
    }
    end: HTTPResponseBodyEvent = {"type": "http.response.body", "body": body, "more_body": False}
    await send(start)
    await send(end)
