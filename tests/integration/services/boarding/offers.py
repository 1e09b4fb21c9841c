"""Providers and what they offer, for tests of the boarding service."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any
from uuid import UUID, uuid4

from services.kit.auth import Role
from services.kit.clock import system_clock
from tests.support.system import Answer, Api, System

PATH = "/api/boarding/services"
DRAFT: dict[str, Any] = {
    "title": "阳光狗狗之家",
    "description": "有院子，每天遛两次。",
    "price_cents": 10_000,
    "city": "上海",
    "latitude": 31.2304,
    "longitude": 121.4737,
    "capacity": {"dog-M": 2},
}


def ahead(days: int) -> str:
    """The day that is so many days from today: far enough from midnight's edge when it is 2 or more."""
    return (system_clock().date() + timedelta(days=days)).isoformat()


def friday(weeks: int = 4) -> date:
    """A Friday some weeks ahead."""
    today = system_clock().date()
    return today + timedelta(days=(4 - today.weekday()) % 7 + 7 * weeks)


@dataclass(frozen=True)
class Provider:
    """Somebody who offers."""

    system: System
    id: UUID
    api: Api

    async def draft(self, **changes: Any) -> UUID:
        """A new draft; `changes` are members of its body."""
        answer = await self.api.post(PATH, {**DRAFT, **changes})
        assert answer.status == 201, answer.body
        return UUID(answer.body["service_id"])

    async def pending(self, **changes: Any) -> UUID:
        """A listing that waits for moderation."""
        listing_id = await self.draft(**changes)
        answer = await self.do("post", listing_id, "submit")
        assert (answer.status, answer.body["audit_status"]) == (200, 0), answer.body
        return listing_id

    async def offered(self, rating: tuple[int, int] = (0, 0), **changes: Any) -> UUID:
        """An approved listing with so many ratings of that mean (x100); moderated behind the service's back."""
        listing_id = await self.draft(**changes)
        sql = "UPDATE listings SET audit_status = 1, rating_count = $2, rating_x100 = $3 WHERE id = $1"
        await self.system.fetch("boarding", sql, listing_id, *rating)
        return listing_id

    async def do(self, method: str, listing_id: UUID, what: str, body: Any = None) -> Answer:
        """A call about a listing, as this provider."""
        path = f"{PATH}/{listing_id}/{what}" if what else f"{PATH}/{listing_id}"
        return await self.api.call(method.upper(), path, json=body)


def provider(system: System) -> Provider:
    """A new provider."""
    user_id = uuid4()
    return Provider(system, user_id, system.as_person("boarding", user_id, Role.PROVIDER))


async def pet(system: System, owner: UUID, **changes: Any) -> str:
    """A new dog of 15 kg."""
    body = {"name": "旺财", "species": "dog", "weight_g": 15_000, **changes}
    answer = await system.as_person("pet", owner).post("/api/pets", body)
    assert answer.status == 201, answer.body
    return str(answer.body["id"])
