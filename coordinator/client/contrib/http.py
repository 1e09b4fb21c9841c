"""Calls to other services that take the global transaction along (aiohttp)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from random import Random
from typing import Any, TypeVar, overload

import aiohttp
import msgspec

from coordinator.client.backoff import backoff_s
from coordinator.client.context import HEADER_ROLLBACK_ONLY, Scope, current
from coordinator.client.errors import CallFailed, CallNotSent, CallOutcomeUnknown
from coordinator.protocol.errors import DeadlinePassed
from coordinator.protocol.ids import HEADER_BRANCH, HEADER_BRANCHES, HEADER_DEADLINE, HEADER_XID, BranchId
from coordinator.protocol.tokens import TokenMaker

CALL_TIMEOUT_S = 5.0
"""How long one call may take when nothing else is said."""

CONNECT_TIMEOUT_S = 1.0
"""How long opening a connection may take before it is tried again."""

CONNECT_TRIES_MAX = 8
CONNECT_BASE_S = 0.05
CONNECT_CAP_S = 1.0
"""Tries to open a connection within one call, and the back-off between them. Nothing was sent, so it is safe."""

T = TypeVar("T")

# Errors that aiohttp raises before the first byte of the request left.
_NOTHING_SENT = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)
_CUT = (aiohttp.ClientError, TimeoutError, OSError)


@dataclass(frozen=True)
class Response:
    """An answer, read to its end."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @overload
    def json(self) -> Any: ...

    @overload
    def json(self, type: type[T]) -> T: ...

    def json(self, type: Any = Any) -> Any:
        """The body as JSON, checked against `type`. Raises msgspec.DecodeError."""
        return msgspec.json.decode(self.body, type=type)


class TransactionalClient:
    """An HTTP client whose calls are part of the global transaction that is running, and plain calls elsewhere.

    With `tokens` and `audience` every call carries a service token for its reader. `http` stays the caller's.
    """

    def __init__(
        self,
        http: aiohttp.ClientSession,
        *,
        base_url: str = "",
        tokens: TokenMaker | None = None,
        audience: str | None = None,
        clock: Callable[[], float] = time.time,
        dice: Random | None = None,
    ) -> None:
        self._http = http
        self._base_url = base_url.rstrip("/")
        self._tokens = tokens
        self._audience = audience
        self._clock = clock
        self._dice = Random() if dice is None else dice  # noqa: S311 - spreads retries; nothing secret depends on it

    async def request(
        self,
        method: str,
        url: str,
        *,
        json: Any = None,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        expected: Collection[int] = (200, 201, 204),
        timeout_s: float = CALL_TIMEOUT_S,
        repeats: int = 0,
    ) -> Response:
        """Sends one call, `json` encoded by msgspec; takes at most `timeout_s`, and never beyond the deadline.

        Inside a global transaction the call carries it, and the branches of the answer, errors included, become
        its branches. A call without an answer is repeated `repeats` times with the same id, which the other side
        recognises; after that the transaction can only roll back. So it can after an error answer that has branches.

        Raises CallFailed for a status that is not expected, CallNotSent when nobody took the call,
        CallOutcomeUnknown when it ended without an answer, DeadlinePassed when it would come too late.
        """
        scope = current()
        body = None if json is None else msgspec.json.encode(json)
        sent = {**({} if body is None else {"Content-Type": "application/json"}), **(headers or {})}
        if self._tokens is not None and self._audience is not None and "Authorization" not in sent:
            sent["Authorization"] = f"Bearer {self._tokens.token_for(self._audience)}"
        target = url if "://" in url else self._base_url + url
        with nullcontext() if scope is None else scope.calling() as call:
            if scope is not None and call is not None:
                sent.update(transaction_headers(scope, call))
            for turn in range(repeats + 1):
                try:
                    response = await self._once(method, target, body, params, sent, self._until(scope, timeout_s))
                    break
                except CallOutcomeUnknown as error:
                    if turn == repeats:
                        if scope is not None:
                            scope.mark_rollback_only(str(error))
                        raise
                except asyncio.CancelledError:
                    if scope is not None:
                        scope.mark_rollback_only(f"{method} {target} was cancelled before its answer came")
                    raise
        if scope is not None:
            _absorb(scope, method, target, response)
        if response.status not in expected:
            raise CallFailed(
                f"{method} {target} answered {response.status}: {response.body[:500].decode(errors='replace')}",
                response.status,
                response.headers,
                response.body,
            )
        return response

    def _until(self, scope: Scope | None, timeout_s: float) -> float:
        now_s = self._clock()
        if scope is None:
            return now_s + timeout_s
        if now_s * 1000 >= scope.deadline_ms:
            raise DeadlinePassed(f"the deadline of global transaction {scope.xid} has passed; the call was not sent")
        return min(now_s + timeout_s, scope.deadline_ms / 1000)

    async def _once(
        self,
        method: str,
        url: str,
        body: bytes | None,
        params: Mapping[str, str] | None,
        headers: Mapping[str, str],
        until_s: float,
    ) -> Response:
        for attempt in range(CONNECT_TRIES_MAX):
            left_s = max(until_s - self._clock(), 0.001)
            timeout = aiohttp.ClientTimeout(total=left_s, sock_connect=min(left_s, CONNECT_TIMEOUT_S))
            try:
                async with self._http.request(
                    method, url, data=body, params=params, headers=headers, timeout=timeout, allow_redirects=False
                ) as response:
                    return Response(response.status, response.headers, await response.read())
            except _NOTHING_SENT as error:
                pause_s = backoff_s(attempt, CONNECT_BASE_S, CONNECT_CAP_S, self._dice)
                if attempt + 1 == CONNECT_TRIES_MAX or self._clock() + pause_s >= until_s:
                    raise CallNotSent(f"{method} {url}: no connection ({error})") from error
                await asyncio.sleep(pause_s)
            except _CUT as error:
                problem = f"{type(error).__name__} {error}".rstrip()
                raise CallOutcomeUnknown(f"{method} {url} ended without an answer: {problem}") from error
        raise AssertionError("unreachable: the last try returns or raises")


def transaction_headers(scope: Scope, call: BranchId) -> dict[str, str]:
    """The headers that make a request part of a global transaction."""
    return {HEADER_XID: str(scope.xid), HEADER_BRANCH: str(call), HEADER_DEADLINE: str(scope.deadline_ms)}


def _absorb(scope: Scope, method: str, url: str, response: Response) -> None:
    """Takes over what the answer says about branches; whatever may have been half done can only be rolled back."""
    header = response.headers.get(HEADER_BRANCHES)
    try:
        scope.absorb(header or "")
    except ValueError as error:
        scope.mark_rollback_only(f"{method} {url} answered with branches that cannot be read: {error}")
    reason = response.headers.get(HEADER_ROLLBACK_ONLY)
    if reason:
        scope.mark_rollback_only(f"{method} {url} asks for a rollback: {reason}")
    elif response.status >= 400 and header:
        scope.mark_rollback_only(f"{method} {url} answered {response.status} after it had done some of its work")
    elif response.status >= 500 and header is None:
        # Somebody on the way answered, not the participant: it may be at work.
        scope.mark_rollback_only(f"{method} {url} answered {response.status} without saying what it did")
