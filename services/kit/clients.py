"""Calls to other services: typed by their callers, carried by the coordinator's client, and truthful about failures.

Inside a global transaction a call is a branch call: it carries the xid, and what the other side did belongs to the
transaction. A business refusal (4xx problem) is passed on as it is, because the person who asked can act on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import aiohttp
import msgspec
import structlog
from coordinator.client.contrib.http import TransactionalClient

from services.kit.problems import Problem, unavailable
from services.kit.requests import traceparent_for

CALL_TIMEOUT_S = 5.0
PASSED_ON = frozenset({400, 403, 404, 409, 422})

T = TypeVar("T")
Method = Literal["GET", "POST", "PUT", "PATCH", "DELETE"]


@dataclass(frozen=True)
class ServiceClient:
    """One other service."""

    name: str
    url: str
    http: TransactionalClient

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
                timeout_s=CALL_TIMEOUT_S,
            )
        except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
            raise unavailable("service-unavailable", f"The {self.name} service does not answer.") from error
        body = response.json()
        if response.status < 400:
            return msgspec.convert(body, kind)
        if response.status in PASSED_ON and isinstance(body, dict) and "code" in body:
            extra = {k: v for k, v in body.items() if k not in _OWN_MEMBERS}
            raise Problem(
                response.status, str(body["code"]), str(body.get("detail", "")), errors=body.get("errors"), **extra
            )
        raise unavailable("service-failed", f"The {self.name} service failed (status {response.status}).")


_OWN_MEMBERS = frozenset({"type", "title", "status", "detail", "code", "instance", "errors", "trace_id", "xid"})
