"""Calls to other services: typed by their callers, carried by the coordinator's client, and truthful about failures.

Inside a global transaction a call is a branch call: it carries the xid, and what the other side did belongs to the
transaction. A business refusal (4xx problem) is passed on as it is, because the person who asked can act on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, TypeVar

import aiohttp
import msgspec
import structlog

from coordinator.client import CallNotSent, CallOutcomeUnknown, TokenMaker
from coordinator.client.contrib.http import Response, TransactionalClient
from services.kit.problems import Problem, unavailable
from services.kit.requests import traceparent_for

CALL_TIMEOUT_S = 5.0
CONNECTIONS_MAX = 100
"""Open connections of one process to all other services together."""

IDLE_S = 3.0
"""How long an idle connection is kept. Must stay below the services' own keep-alive time (uvicorn: 5 s): a POST that is
sent on a connection which its server is just closing fails, and is not repeated."""

PASSED_ON = frozenset({400, 403, 404, 409, 422})
ANY_STATUS = range(100, 600)
"""Every status is an answer here; what it means is decided by the caller."""

T = TypeVar("T")
Method = Literal["GET", "POST", "PUT", "PATCH", "DELETE"]


class Outgoing:
    """All calls of this process to others: one pool of connections, our service tokens. Enter it before the first."""

    def __init__(self, tokens: TokenMaker) -> None:
        self._tokens = tokens
        self._session: aiohttp.ClientSession | None = None
        self._clients: dict[str | None, TransactionalClient] = {}

    async def __aenter__(self) -> Outgoing:
        """Opens the pool."""
        connector = aiohttp.TCPConnector(limit=CONNECTIONS_MAX, keepalive_timeout=IDLE_S)
        self._session = aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        """Closes every connection."""
        if self._session is not None:
            await self._session.close()
        self._session = None
        self._clients.clear()

    async def request(
        self,
        method: str,
        url: str,
        *,
        audience: str | None = None,
        json: Any = None,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = CALL_TIMEOUT_S,
    ) -> Response:
        """The answer, whatever its status; with `audience` the call carries our token for that service.

        Inside a global transaction the call is part of it. Raises ConnectionError when nobody answered: then nothing
        was done, or the transaction can only roll back.
        """
        try:
            return await self._client(audience).request(
                method, url, json=json, params=params, headers=headers, expected=ANY_STATUS, timeout_s=timeout_s
            )
        except (CallNotSent, CallOutcomeUnknown) as error:
            raise ConnectionError(str(error)) from error

    def _client(self, audience: str | None) -> TransactionalClient:
        if self._session is None:
            raise RuntimeError("calls were made before the service was started, or after it was stopped")
        client = self._clients.get(audience)
        if client is None:
            client = TransactionalClient(self._session, tokens=self._tokens, audience=audience)
            self._clients[audience] = client
        return client


@dataclass(frozen=True)
class ServiceClient:
    """One other service."""

    name: str
    url: str
    http: Outgoing

    async def call(
        self, method: Method, path: str, kind: type[T], *, json: Any = None, params: Mapping[str, str] | None = None
    ) -> T:
        """The other side's answer as `kind`. Raises its Problem when it refuses, 503 when it does not answer."""
        trace_id = structlog.contextvars.get_contextvars().get("trace_id")
        headers = {"traceparent": traceparent_for(trace_id)} if trace_id else {}
        try:
            response = await self.http.request(
                method,
                f"{self.url}{path}",
                audience=self.name,
                json=None if json is None else msgspec.to_builtins(json),
                params=params,
                headers=headers,
            )
        except ConnectionError as error:
            raise unavailable("service-unavailable", f"The {self.name} service does not answer.") from error
        try:
            body = response.json() if response.body else None
        except msgspec.DecodeError as error:
            raise unavailable("service-failed", f"The {self.name} service gave no JSON.") from error
        if response.status < 400:
            return msgspec.convert(body, kind)
        if response.status in PASSED_ON and isinstance(body, dict) and "code" in body:
            extra = {k: v for k, v in body.items() if k not in _OWN_MEMBERS}
            raise Problem(
                response.status, str(body["code"]), str(body.get("detail", "")), errors=body.get("errors"), **extra
            )
        raise unavailable("service-failed", f"The {self.name} service failed (status {response.status}).")


_OWN_MEMBERS = frozenset({"type", "title", "status", "detail", "code", "instance", "errors", "trace_id", "xid"})
