"""Errors as RFC 9457 problems, chosen here once, by what the caller should do next.

Services raise `Problem` (or one of the short makers below); everything else that can reach the edge is translated in
`problem_for`. `code` is stable and meant for programs, `detail` names the value and the way out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import msgspec
import structlog
from asyncpg.exceptions import PostgresError
from litestar import Request, Response
from litestar.exceptions import HTTPException, ValidationException
from litestar.types import Scope, Send
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

from coordinator.protocol import errors as tx

MEDIA_TYPE = "application/problem+json"
LOCK_RETRY_S = 1
"""What a caller who met a lock is told to wait."""

NAMED_FIELD = re.compile(r"(?:unknown|required) field `([^`]*)`")
"""How a body's validation says which field is too much or missing."""
WHOLE_BODY = "data"
"""The key under which the validation reports what concerns the body itself."""

UNSTORABLE_TEXT = frozenset({"22021", "22P05"})
"""SQLSTATEs of a text with a NUL in it: in a column of text, and inside a jsonb document."""

TOO_DEEP = "while deserializing"
"""How the decoder of JSON says, as a RecursionError, that a body is nested deeper than it follows."""

AWAY_CLASSES = ("08", "53", "57")
"""Classes of SQLSTATEs by which a server says that it cannot serve at the moment, whatever it was asked."""

log = structlog.get_logger(__name__)


class Problem(Exception):
    """An answer that is not the one hoped for. Raise it anywhere below a controller."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        errors: list[dict[str, str]] | None = None,
        headers: Mapping[str, str] | None = None,
        **extra: Any,
    ) -> None:
        super().__init__(f"{code}: {detail}")
        self.status = status
        self.code = code
        self.detail = detail
        self.errors = errors
        self.headers = dict(headers or {})
        self.extra = extra

    def body(self, instance: str | None = None) -> dict[str, Any]:
        """The problem as RFC 9457 has it, with our members `code` and, where there are some, `errors`."""
        context = structlog.contextvars.get_contextvars()
        body: dict[str, Any] = {
            "type": f"urn:pawstay:problem:{self.code}",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
            "code": self.code,
        }
        if instance:
            body["instance"] = instance
        if self.errors:
            body["errors"] = self.errors
        for name in ("trace_id", "xid"):
            if name in context:
                body[name] = context[name]
        body.update(self.extra)
        return body


def bad_request(detail: str, *, code: str = "bad-request", errors: list[dict[str, str]] | None = None) -> Problem:
    """400: the request cannot be understood; change it."""
    return Problem(400, code, detail, errors=errors)


def unauthorized(detail: str) -> Problem:
    """401: say who you are."""
    return Problem(401, "unauthorized", detail, headers={"WWW-Authenticate": "Bearer"})


def forbidden(detail: str, *, code: str = "forbidden") -> Problem:
    """403: you are known, and may not."""
    return Problem(403, code, detail)


def not_found(what: str, key: object) -> Problem:
    """404: there is none, or it is somebody else's: the answer is the same, so that nothing leaks."""
    return Problem(404, "not-found", f"There is no {what} {key} that you may see.")


def conflict(code: str, detail: str, **extra: Any) -> Problem:
    """409: the state of things does not allow it."""
    return Problem(409, code, detail, **extra)


def unprocessable(code: str, detail: str, *, errors: list[dict[str, str]] | None = None) -> Problem:
    """422: understood, and against a rule."""
    return Problem(422, code, detail, errors=errors)


def unavailable(code: str, detail: str, *, retry_s: int = LOCK_RETRY_S) -> Problem:
    """503: not now; nothing was done; try again."""
    return Problem(503, code, detail, headers={"Retry-After": str(retry_s)})


def _from_transaction(error: tx.CoordinatorError) -> Problem:
    match error:
        case tx.LockConflict():
            holder = f" (held by global transaction {error.holder})" if error.holder else ""
            return Problem(
                409,
                "lock-busy",
                f"Another booking is being decided on the same rows{holder}. Nothing was done; try again.",
                headers={"Retry-After": str(LOCK_RETRY_S)},
            )
        case tx.TransactionRolledBack():
            return unavailable(
                "tx-rolled-back", f"The transaction was rolled back ({error.reason}). Nothing was done; try again."
            )
        case tx.OutcomeUnknown():
            return unavailable(
                "tx-outcome-unknown", "The outcome is not known yet. Repeat the request with the same Idempotency-Key."
            )
        case tx.BranchRepeated():
            return conflict("branch-repeated", "This step was taken already; nothing was done twice.")
        case tx.DeadlinePassed() | tx.BranchAborted():
            return conflict("tx-ended", "The global transaction had ended before this step came. Nothing was done.")
        case tx.NoGlobalTransaction():
            return bad_request(
                "This step is only taken inside a global transaction: call it with the X-Tx headers of one.",
                code="transaction-missing",
            )
        case tx.CallerRefused():
            return unauthorized("The service token is not valid here.")
        case _:
            return unavailable(
                "coordinator-unavailable", "The transaction coordinator does not answer. Nothing was done."
            )


def _from_validation(error: ValidationException) -> Problem:
    found = [e for e in (error.extra if isinstance(error.extra, list) else []) if isinstance(e, dict)]
    errors = []
    for e in found:
        message, key = str(e.get("message", "")), str(e.get("key", ""))
        named = NAMED_FIELD.search(message)
        path = [] if key in ("", WHOLE_BODY) else [key]
        pointer = "".join(
            f"/{part}" for part in ".".join([*path, named.group(1)] if named else path).split(".") if part
        )
        errors.append({"pointer": pointer, "detail": message})
    told = "; ".join(f"{e['pointer'] or 'the body'}: {e['detail']}" for e in errors) or error.detail
    return bad_request(f"The request does not fit: {told}", code="invalid-request", errors=errors)


def _is_away(error: BaseException | None) -> bool:
    """Whether PostgreSQL says that it is starting, stopping, out of connections, or was interrupted."""
    return str(getattr(error, "sqlstate", None) or "")[:2] in AWAY_CLASSES


def problem_for(error: BaseException) -> Problem | None:
    """The problem that an exception means, or None when it is a bug."""
    match error:
        case Problem():
            return error
        case tx.UnmanagedTable():
            return None
        case tx.CoordinatorError():
            return _from_transaction(error)
        case ValidationException():
            return _from_validation(error)
        case HTTPException():
            code = HTTPStatus(error.status_code).phrase.lower().replace(" ", "-")
            return Problem(error.status_code, code, error.detail, headers=error.headers)
        case RecursionError() if TOO_DEEP in str(error):
            return bad_request("The body is nested too deeply. Send what the API describes.", code="invalid-request")
        case DBAPIError() if getattr(error.orig, "sqlstate", None) in UNSTORABLE_TEXT:
            return bad_request("A text holds a character that cannot be stored (NUL). Leave it out.", code="bad-text")
        case OperationalError() | InterfaceError():
            return unavailable("database-unavailable", "A database does not answer. Nothing was done; try again.")
        case DBAPIError() if error.connection_invalidated or _is_away(error.orig):
            return unavailable("database-unavailable", "A database does not answer. Nothing was done; try again.")
        case PostgresError() if _is_away(error):
            return unavailable("database-unavailable", "A database does not answer. Nothing was done; try again.")
        case ConnectionError() | TimeoutError():
            return unavailable("dependency-unavailable", "A part of the system does not answer. Try again.")
        case _:
            return None


def problem_handler(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """Litestar's exception handler for everything: known ones become problems, bugs become 500 and a traceback."""
    problem = problem_for(error)
    if problem is None:
        log.exception("request.bug", path=request.url.path, exc_info=error)
        problem = Problem(500, "internal-error", "This is our fault. It was recorded under the trace id.")
    elif problem.status >= 500:
        log.warning("request.failed", path=request.url.path, code=problem.code, detail=problem.detail, cause=str(error))
    return Response(
        msgspec.json.encode(problem.body(request.url.path)),
        status_code=problem.status,
        media_type=MEDIA_TYPE,
        headers=problem.headers,
    )


async def answer(problem: Problem, scope: Scope, send: Send) -> None:
    """Sends a problem from a middleware, where no exception handler stands around."""
    body = msgspec.json.encode(problem.body(scope["path"]))
    headers = {"content-type": MEDIA_TYPE, "content-length": str(len(body)), **problem.headers}
    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": problem.status, "headers": raw})
    await send({"type": "http.response.body", "body": body, "more_body": False})
