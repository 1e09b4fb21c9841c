"""The services that administrators act on, and the coordinator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal
from uuid import UUID

import msgspec

from services.admin.config import CHECKED, HEALTH_TIMEOUT_S
from services.kit.clients import Outgoing
from services.kit.problems import unavailable
from services.kit.runtime import Runtime

COORDINATOR = "coordinator"
Subject = Literal["user", "boarding"]
COLLECTIONS: dict[Subject, str] = {"user": "users", "boarding": "listings"}


@dataclass(frozen=True)
class Others:
    """Calls to the other services."""

    runtime: Runtime

    @property
    def _http(self) -> Outgoing:
        return self.runtime.http

    async def waiting(self, service: Subject, params: dict[str, str]) -> dict[str, Any]:
        """A page of what waits for a decision."""
        path = f"/internal/{COLLECTIONS[service]}"
        return await self.runtime.service(service).call("GET", path, dict[str, Any], params=params)

    async def decide(self, service: Subject, subject: UUID, verb: str, reason: str) -> dict[str, Any]:
        """A branch: has `verb` done to the subject."""
        path = f"/internal/{COLLECTIONS[service]}/{subject}/{verb}"
        return await self.runtime.service(service).call("POST", path, dict[str, Any], json={"reason": reason})

    async def consistency(self, service: str) -> dict[str, Any]:
        """What a service says of its part of the promises."""
        if service not in CHECKED:
            raise ValueError(f"{service} does not check itself")
        return await self.runtime.service(service).call("GET", "/internal/consistency", dict[str, Any])

    async def statistics(self) -> dict[str, Any]:
        """The order service's numbers."""
        return await self.runtime.service("order").call("GET", "/internal/statistics", dict[str, Any])

    async def ready(self, name: str, url: str) -> dict[str, Any]:
        """The readiness of one part; a part that does not answer is told as such."""
        try:
            response = await self._http.request("GET", f"{url}/ready", timeout_s=HEALTH_TIMEOUT_S)
        except ConnectionError as error:
            return {"status": "down", "detail": type(error).__name__}
        status = {"status": "ok" if response.status < 400 else "down"}
        try:
            body = response.json()
        except msgspec.DecodeError:
            return status
        return {**body, **status} if isinstance(body, dict) else status

    async def transactions(self, path: str, params: dict[str, str] | None = None) -> tuple[int, Any]:
        """What the coordinator answers at `path`: status and body. 503 when no replica answers."""
        urls: list[str] = list(self.runtime.settings.coordinator_urls)
        for url in urls:
            try:
                response = await self._http.request(
                    "GET", f"{url}{path}", audience=COORDINATOR, params=params, timeout_s=HEALTH_TIMEOUT_S
                )
                return response.status, response.json()
            except ConnectionError:
                continue
        raise unavailable("coordinator-unavailable", "No replica of the coordinator answers.")
