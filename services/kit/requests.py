"""The outermost middleware: trace ids, and one log line a request."""

from __future__ import annotations

import re
import secrets
import time

import structlog
from litestar.middleware import ASGIMiddleware
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from coordinator.protocol.ids import HEADER_XID

TRACE_ID = re.compile(r"^[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}$")
XID_HEADER = HEADER_XID.lower().encode()
QUIET_PATHS = ("/health", "/ready")

log = structlog.get_logger("request")


def trace_id_of(traceparent: str | None) -> str:
    """The trace id of a W3C traceparent header, or a new one."""
    match = TRACE_ID.match(traceparent or "")
    return match.group(1) if match else secrets.token_hex(16)


def traceparent_for(trace_id: str) -> str:
    """A W3C traceparent that carries `trace_id` onward."""
    return f"00-{trace_id}-{secrets.token_hex(8)}-01"


class RequestMiddleware(ASGIMiddleware):
    """Binds service, trace id and request id to every log line, and logs the request when it ends."""

    def __init__(self, service: str) -> None:
        self._service = service

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        """Passes the request on; the answer carries the trace id in `X-Trace-Id`."""
        headers = {key: value.decode("latin-1") for key, value in scope["headers"]}
        trace_id = trace_id_of(headers.get(b"traceparent"))
        started = time.perf_counter()
        status = 500

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = int(message["status"])  # an HTTPStatus would be shown by its name
                message["headers"] = [*message.get("headers", []), (b"x-trace-id", trace_id.encode())]
            await send(message)

        bound = {"service": self._service, "trace_id": trace_id}
        if b"x-request-id" in headers:
            bound["request_id"] = headers[b"x-request-id"][:64]
        if XID_HEADER in headers:  # a branch call; the gateway lets no such header in from outside
            bound["xid"] = headers[XID_HEADER][:36]
        with structlog.contextvars.bound_contextvars(**bound):
            try:
                await next_app(scope, receive, send_and_note)
            finally:
                path = scope.get("path", "")
                if path not in QUIET_PATHS:
                    ms = round((time.perf_counter() - started) * 1000, 1)
                    log.info("request", method=scope.get("method"), path=path, status=status, ms=ms)
