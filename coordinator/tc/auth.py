"""Who may speak: every call but the probes carries the service token of a known caller."""

from __future__ import annotations

from collections.abc import Iterable, Set

from litestar.enums import ScopeType
from litestar.middleware import ASGIMiddleware
from litestar.types import ASGIApp, HTTPResponseBodyEvent, HTTPResponseStartEvent, Receive, Scope, Send

from coordinator.protocol.errors import CallerRefused
from coordinator.protocol.tokens import TokenVerifier
from coordinator.tc.problems import MEDIA_TYPE, Problem, unauthorized

CALLER = "caller"
"""Where in a request's state the name of its caller stands."""

OPEN_PATHS = frozenset({"/health", "/ready", "/metrics"})


class Callers:
    """Who may speak: `names`, or everybody with a known key where it is empty."""

    def __init__(self, verifier: TokenVerifier, names: Set[str]) -> None:
        self._verifier = verifier
        self._names = names

    def caller_of(self, headers: Iterable[tuple[bytes, bytes]]) -> str:
        """The name of the caller that a request's headers prove. Raises Problem (401) when they do not."""
        header = next((value for name, value in headers if name == b"authorization"), b"").decode("latin-1")
        scheme, _, token = header.partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise unauthorized("Send your service token as Authorization: Bearer, made for the coordinator.")
        try:
            caller = self._verifier.caller_of(token.strip())
        except CallerRefused as error:
            detail = f"{str(error).capitalize()}. Make a new one for the coordinator, with a key it knows."
            raise unauthorized(detail) from error
        if self._names and caller not in self._names:
            raise unauthorized(f"{caller} is not among the coordinator's callers. Add it to them or use one that is.")
        return caller


class CallerMiddleware(ASGIMiddleware):
    """Lets known callers through and answers 401 to all others, before anything of their request is read."""

    scopes = (ScopeType.HTTP,)

    def __init__(self, callers: Callers) -> None:
        self._callers = callers

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        """Checks the bearer token; the caller's name goes into the request's state."""
        if scope["path"].rstrip("/") not in OPEN_PATHS:
            try:
                scope["state"][CALLER] = self._callers.caller_of(scope["headers"])
            except Problem as problem:
                await send_problem(problem, send)
                return
        await next_app(scope, receive, send)


async def send_problem(problem: Problem, send: Send) -> None:
    """Answers with a problem, below the framework."""
    body = problem.body()
    headers = {"content-type": MEDIA_TYPE, "content-length": str(len(body)), **problem.headers}
    start: HTTPResponseStartEvent = {
        "type": "http.response.start",
        "status": problem.status,
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
    }
    end: HTTPResponseBodyEvent = {"type": "http.response.body", "body": body, "more_body": False}
    await send(start)
    await send(end)
