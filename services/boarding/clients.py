"""The services that the boarding service asks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any
from uuid import UUID

from services.boarding.schemas import Availability, Free, PetFacts
from services.kit.runtime import Runtime


@dataclass(frozen=True)
class Others:
    """Calls to the other services."""

    runtime: Runtime

    async def pets(self, owner_id: UUID, pet_ids: Iterable[UUID]) -> list[PetFacts]:
        """Somebody's pets. The pet service's 404 when one is unknown or somebody else's."""
        params = {"owner_id": str(owner_id), "ids": ",".join(map(str, pet_ids))}
        return await self.runtime.service("pet").call("GET", "/internal/pets", list[PetFacts], params=params)

    async def set_pools(self, listing_id: UUID, pools: Mapping[str, int]) -> None:
        """Says how many places a listing has. The capacity service's 409 when more are taken."""
        await self.runtime.service("capacity").call(
            "PUT", f"/internal/pools/{listing_id}", dict[str, Any], json={"pools": dict(pools)}
        )

    async def free(
        self, listing_ids: Iterable[UUID], pools: Mapping[str, int], check_in: date, check_out: date
    ) -> set[UUID]:
        """Which of the listings have room on every night."""
        body = {
            "listing_ids": [str(listing_id) for listing_id in listing_ids],
            "pools": dict(pools),
            "check_in": check_in.isoformat(),
            "check_out": check_out.isoformat(),
        }
        answer = await self.runtime.service("capacity").call("POST", "/internal/availability", Free, json=body)
        return set(answer.free)

    async def free_nights(self, listing_id: UUID, pool: str, first: date, last: date) -> set[date]:
        """The nights of [first, last) on which the listing has a place left of that kind."""
        params = {"from": first.isoformat(), "to": last.isoformat(), "pool": pool}
        path = f"/api/capacity/services/{listing_id}/availability"
        answer = await self.runtime.service("capacity").call("GET", path, Availability, params=params)
        return {night.night for night in answer.nights if night.left > 0}
