"""Errors as RFC 9457 problems, chosen here once, by what the caller should do next."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import msgspec
import structlog
from litestar import Request, Response
from litestar.exceptions import HTTPException

from coordinator.tc.batches import Overloaded
from coordinator.tc.store import StoreUnavailable

MEDIA_TYPE = "application/problem+json"
UNREADABLE_ERRORS = (msgspec.MsgspecError, RecursionError)
"""What reading a body may raise; the second one for brackets without end."""

RETRY_S = 1
"""What a caller is told to wait before the same call again."""

log = structlog.get_logger(__name__)


class Problem(Exception):
    """An answer that is not the one hoped for: `code` for programs, `detail` for people, with the way out."""

    def __init__(self, status: int, code: str, detail: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.headers = headers or {}

    def body(self) -> bytes:
        """The problem in JSON."""
        return msgspec.json.encode(
            {
                "type": f"urn:coordinator:problem:{self.code}",
                "title": HTTPStatus(self.status).phrase,
                "status": self.status,
                "detail": self.detail,
                "code": self.code,
            }
        )


def bad_request(detail: str) -> Problem:
    """400: change the request."""
    return Problem(400, "bad-request", detail)


def unreadable(error: Exception) -> Problem:
    """400: the body is no such message."""
    detail = f"The body cannot be read: {error}. The reference of the API shows every message."
    return bad_request(detail)


def unauthorized(detail: str) -> Problem:
    """401: say who you are."""
    return Problem(401, "unauthorized", detail, {"WWW-Authenticate": "Bearer"})


def unavailable(code: str, detail: str) -> Problem:
    """503: not now; repeating the same call is safe."""
    return Problem(503, code, detail, {"Retry-After": str(RETRY_S)})


def problem_for(error: Exception) -> Problem | None:
    """The problem that an exception means, or None when it is a bug."""
    match error:
        case Problem():
            return error
        case StoreUnavailable():
            detail = "The coordinator's store does not answer. Repeat the same messages: each takes effect once."
            return unavailable("store-unavailable", detail)
        case Overloaded():
            return unavailable("overloaded", f"{error}. Nothing was done. Send the same messages a little later.")
        case HTTPException():
            code = HTTPStatus(error.status_code).phrase.lower().replace(" ", "-")
            return Problem(error.status_code, code, error.detail, dict(error.headers or {}))
        case _:
            return None


def known_or_bug(error: Exception, path: str) -> Problem:
    """The problem that an exception means; a bug becomes 500 and a traceback in the log."""
    problem = problem_for(error)
    if problem is None:
        log.error("request.bug", path=path, exc_info=error)
        detail = "This is the coordinator's fault, and is in its log. Repeating is safe."
        problem = Problem(500, "internal-error", detail)
    return problem


def problem_handler(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """Litestar's handler for everything: known errors become problems, bugs 500."""
    problem = known_or_bug(error, request.url.path)
    return Response(problem.body(), status_code=problem.status, media_type=MEDIA_TYPE, headers=problem.headers)
