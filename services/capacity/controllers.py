"""The routes of the capacity service."""

from __future__ import annotations

from datetime import date
from typing import Annotated
from uuid import UUID

from litestar import Controller, get, post, put
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody, QueryParameter

from services.capacity.schemas import (
    Availability,
    AvailabilityQuestion,
    Consistency,
    Empty,
    FenceNumber,
    FreeListings,
    HoldAnswer,
    HoldRequest,
    PoolTotals,
)
from services.capacity.use_cases import CapacityUseCases
from services.kit.auth import internal, public


class CapacityController(Controller):
    """What everybody may see."""

    path = "/api/capacity"
    tags = ("capacity",)

    @get("/services/{listing_id:uuid}/availability", guards=[public])
    async def availability(
        self,
        use_cases: NamedDependency[CapacityUseCases],
        listing_id: FromPath[UUID],
        first: Annotated[date, QueryParameter(name="from", description="The first night.")],
        end: Annotated[date, QueryParameter(name="to", description="The day after the last night.")],
        pool: Annotated[str | None, QueryParameter(description="Only this pool, such as dog-M.")] = None,
    ) -> Availability:
        """Each night of a listing: how many places it has, how many are held, booked and left."""
        return await use_cases.availability(listing_id, first, end, pool)


class InternalCapacityController(Controller):
    """What other services ask."""

    path = "/internal"
    include_in_schema = False

    @put("/pools/{listing_id:uuid}", guards=[internal(["boarding"])])
    async def set_pools(
        self, use_cases: NamedDependency[CapacityUseCases], listing_id: FromPath[UUID], data: JSONBody[PoolTotals]
    ) -> PoolTotals:
        """Sets how many units a listing has; a pool that is not named is no longer taken."""
        await use_cases.set_pools(listing_id, data.pools)
        return data

    @post("/availability", guards=[internal(["boarding"])], status_code=200)
    async def free_listings(
        self, use_cases: NamedDependency[CapacityUseCases], data: JSONBody[AvailabilityQuestion]
    ) -> FreeListings:
        """Which of these listings are free on all these nights."""
        return await use_cases.free_listings(data)

    @post("/fences/{listing_id:uuid}", guards=[internal(["order"])], status_code=200)
    async def next_fence(
        self, use_cases: NamedDependency[CapacityUseCases], listing_id: FromPath[UUID], data: JSONBody[Empty]
    ) -> FenceNumber:
        """A fencing number for whoever holds the listing's booking lock."""
        return FenceNumber(await use_cases.next_fence())

    @post("/holds", guards=[internal(["order"])], status_code=200)
    async def hold(self, use_cases: NamedDependency[CapacityUseCases], data: JSONBody[HoldRequest]) -> HoldAnswer:
        """Takes all nights of a stay for an order, or none (a branch)."""
        return await use_cases.hold(data)

    @post("/holds/{order_id:uuid}/book", guards=[internal(["order"])], status_code=200)
    async def book(
        self, use_cases: NamedDependency[CapacityUseCases], order_id: FromPath[UUID], data: JSONBody[Empty]
    ) -> HoldAnswer:
        """Turns held nights into booked ones (a branch)."""
        return await use_cases.book(order_id)

    @post("/holds/{order_id:uuid}/release", guards=[internal(["order"])], status_code=200)
    async def release(
        self, use_cases: NamedDependency[CapacityUseCases], order_id: FromPath[UUID], data: JSONBody[Empty]
    ) -> HoldAnswer:
        """Gives an order's nights back (a branch)."""
        return await use_cases.release(order_id)

    @get("/consistency", guards=[internal(["admin"])])
    async def consistency(self, use_cases: NamedDependency[CapacityUseCases]) -> Consistency:
        """The service's own audit: nothing above its total, every night the sum of its holds."""
        return await use_cases.consistency()
