"""Litestar: requests that take part in a global transaction, and the route where the coordinator nudges us."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any
from uuid import UUID

import msgspec
from litestar import Request, post
from litestar.enums import ScopeType
from litestar.handlers import HTTPRouteHandler
from litestar.middleware import ASGIMiddleware
from litestar.response import Response
from litestar.types import ASGIApp, Message, Receive, Send
from litestar.types import Scope as ASGIScope

from coordinator.client.context import HEADER_ROLLBACK_ONLY, Participant, format_branches
from coordinator.client.coordinator import Coordinator
from coordinator.protocol.errors import CallerRefused, DeadlinePassed
from coordinator.protocol.ids import HEADER_BRANCH, HEADER_BRANCHES, HEADER_DEADLINE, HEADER_XID, BranchId, Xid
from coordinator.protocol.messages import DEADLINE_MAX_MS, Nudge
from coordinator.protocol.tokens import TokenVerifier

NUDGE_PATH = "/coordinator/nudge"
"""Where `nudge_route` listens when nothing else is said."""

NUDGER = "coordinator"
"""The only caller whose nudges are taken."""

REASON_LENGTH_MAX = 200
"""Characters of a reason that travel in a header."""


class TransactionMiddleware(ASGIMiddleware):
    """Runs a request that carries `X-Tx-Xid` as a participant of that transaction; leaves all others alone.

    Only a caller with a valid service token may bring a transaction: without a verifier nobody may. The answer,
    also an error, names the branches that were made in `X-Tx-Branches`. Problems (RFC 9457): 400 for headers that
    cannot be read, 401 for a caller that is not known, 409 when the deadline has passed.
    """

    scopes = (ScopeType.HTTP,)

    def __init__(self, coordinator: Coordinator, verifier: TokenVerifier | None = None) -> None:
        self._coordinator = coordinator
        self._verifier = verifier

    async def handle(self, scope: ASGIScope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        """Handles one request."""
        headers = {name: value for name, value in scope["headers"] if name.startswith((b"x-tx-", b"authorization"))}
        if HEADER_XID.lower().encode() not in headers:
            await next_app(scope, receive, send)
            return
        try:
            caller_of(
                headers.get(b"authorization", b"").decode("latin-1"), self._verifier or self._coordinator.verifier
            )
            arguments = _read(headers)
        except CallerRefused as error:
            await _refuse(send, 401, "Caller not known", f"{error}. Send a service token for this service.")
            return
        except (ValueError, KeyError) as error:
            await _refuse(send, 400, "Transaction headers cannot be read", f"{type(error).__name__}: {error}")
            return
        with contextlib.ExitStack() as stack:
            try:
                participant = stack.enter_context(self._coordinator.participant(*arguments))
            except DeadlinePassed as error:
                await _refuse(send, 409, "Deadline passed", str(error))
                return
            await next_app(scope, receive, _naming(participant, send))


def _read(headers: Mapping[bytes, bytes]) -> tuple[Xid, BranchId, int]:
    """The transaction that a request carries. Raises KeyError, ValueError."""
    xid, call, deadline = (
        headers[name.lower().encode()].decode("ascii") for name in (HEADER_XID, HEADER_BRANCH, HEADER_DEADLINE)
    )
    deadline_ms = int(deadline)
    if not 0 <= deadline_ms <= DEADLINE_MAX_MS:
        raise ValueError(f"{deadline[:40]} is no instant in milliseconds since 1970")
    return Xid(UUID(xid)), BranchId(UUID(call)), deadline_ms


def _naming(participant: Participant, send: Send) -> Send:
    """A `send` that adds the transaction's headers to the start of the answer."""

    async def naming(message: Message) -> None:
        if message["type"] == "http.response.start":
            participant.answer()
            added = [(HEADER_BRANCHES.lower().encode(), format_branches(participant.branches).encode())]
            if participant.rollback_only is not None:
                reason = participant.rollback_only.encode("ascii", "replace").decode().replace("\n", " ")
                added.append((HEADER_ROLLBACK_ONLY.lower().encode(), reason[:REASON_LENGTH_MAX].encode()))
            message["headers"] = [*message["headers"], *added]
        await send(message)

    return naming


def caller_of(authorization: str, verifier: TokenVerifier | None) -> str:
    """The service that speaks, from an Authorization header. Raises CallerRefused."""
    if verifier is None:
        raise CallerRefused("this service takes no transactions from others: it was given no keys to check callers")
    kind, _, token = authorization.partition(" ")
    if kind.lower() != "bearer" or not token:
        raise CallerRefused("a service token is missing")
    return verifier.caller_of(token.strip())


def nudge_route(coordinator: Coordinator, path: str = NUDGE_PATH) -> HTTPRouteHandler:
    """The handler that the coordinator nudges. Announce its public URL as the Coordinator's `nudge_url`."""

    @post(path, include_in_schema=False, status_code=200, name=f"nudge {path}")
    async def nudge(request: Request[Any, Any, Any]) -> Response[bytes]:
        try:
            caller = caller_of(request.headers.get("authorization", ""), coordinator.verifier)
        except CallerRefused as error:
            return _problem(401, "Caller not known", str(error))
        if caller != NUDGER:
            return _problem(403, "Not the coordinator", f"only {NUDGER!r} may nudge, not {caller!r}")
        try:
            confirms = await coordinator.nudged(msgspec.json.decode(await request.body(), type=Nudge))
        except (msgspec.MsgspecError, RecursionError) as error:
            return _problem(400, "Nudge cannot be read", str(error))
        except ValueError as error:
            return _problem(404, "Resource not here", str(error))
        return Response(msgspec.json.encode(confirms), media_type="application/json")

    return nudge


def _body(status: int, title: str, detail: str) -> bytes:
    return msgspec.json.encode({"type": "about:blank", "title": title, "status": status, "detail": detail})


def _problem(status: int, title: str, detail: str) -> Response[bytes]:
    return Response(_body(status, title, detail), status_code=status, media_type="application/problem+json")


async def _refuse(send: Send, status: int, title: str, detail: str) -> None:
    body = _body(status, title, detail)
    headers = [(b"content-type", b"application/problem+json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})
