"""What the capacity service does. Every write is a branch of a booking, but for a provider's change of the totals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from services.capacity import errors, repository
from services.capacity.config import RANGE_NIGHTS_MAX, ZONE_MARGIN
from services.capacity.domain import ONE_NIGHT, HoldState, Night, Stay, move, shortage
from services.capacity.schemas import (
    Availability,
    AvailabilityQuestion,
    Consistency,
    FreeListings,
    HoldAnswer,
    HoldRequest,
    NightView,
)
from services.kit.clock import Clock
from services.kit.database import Store


@dataclass(frozen=True)
class CapacityUseCases:
    """The capacity service over its one database."""

    store: Store
    clock: Clock

    async def set_pools(self, listing_id: UUID, totals: Mapping[str, int]) -> None:
        """Makes `totals` what the listing has from now on. Raises 409 `capacity-in-use` when more is taken already."""
        since = self.clock().date() - ZONE_MARGIN

        async def work(session: AsyncSession) -> None:
            # The pools first: a hold that makes nights shares their rows, so it comes wholly before or after.
            await repository.set_pools(session, listing_id, totals)
            in_use = await repository.resize_nights(session, listing_id, totals, since)
            if in_use:
                raise errors.capacity_in_use(in_use)

        await self.store.local(work)

    async def free_listings(self, question: AvailabilityQuestion) -> FreeListings:
        """Which listings could take a stay. A hint: only a hold makes it sure."""
        _check_range(question.check_in, question.check_out)

        async def work(session: AsyncSession) -> set[UUID]:
            return await repository.free_listings(
                session, question.listing_ids, question.pools, question.check_in, question.check_out
            )

        free = await self.store.read(work)
        return FreeListings([listing_id for listing_id in question.listing_ids if listing_id in free])

    async def availability(self, listing_id: UUID, first: date, end: date, pool: str | None) -> Availability:
        """The listing's nights of the half-open [first, end); empty for a listing without pools."""
        _check_range(first, end)

        async def work(session: AsyncSession) -> Sequence[Night]:
            return await repository.nights_of(session, listing_id, first, end - ONE_NIGHT, pool)

        rows = await self.store.read(work)
        return Availability(listing_id, [NightView(r.night, r.pool, r.total, r.held, r.booked, r.left) for r in rows])

    async def next_fence(self) -> int:
        """A fencing number, higher than every one before it."""
        return await self.store.read(repository.next_fence)

    async def hold(self, request: HoldRequest) -> HoldAnswer:
        """A branch: takes every night of the stay, or none.

        Raises 409 `capacity-exhausted` or `stale-fence` with nothing taken; waits for whoever is undecided on a
        night that has too little left. Repeated for the same order and stay it changes nothing.
        """
        _check_range(request.check_in, request.check_out)
        stay = Stay(request.listing_id, request.pools, request.check_in, request.check_out)

        async def work(session: AsyncSession) -> HoldAnswer:
            if not await repository.add_hold(session, request.order_id, stay, request.fence):
                known = await repository.take_hold(session, request.order_id)
                if known is None or (known.state is not HoldState.RELEASED and known.stay != stay):
                    raise errors.hold_exists(request.order_id)
                if known.state is not HoldState.RELEASED:
                    return _answer(stay, known.state)
                await repository.renew_hold(session, request.order_id, stay, request.fence)
            await _take(session, stay, request.fence)
            return _answer(stay, HoldState.HELD)

        return await self.store.branch(work, HoldAnswer)

    async def book(self, order_id: UUID) -> HoldAnswer:
        """A branch: what the order held is booked. Raises 404 without a hold, 409 `hold-released` after its end."""
        return await self.store.branch(lambda session: _change(session, order_id, HoldState.BOOKED), HoldAnswer)

    async def release(self, order_id: UUID) -> HoldAnswer:
        """A branch: gives back what the order held or booked; nothing when it was given back before."""
        return await self.store.branch(lambda session: _change(session, order_id, HoldState.RELEASED), HoldAnswer)

    async def consistency(self) -> Consistency:
        """The service's own audit, from one snapshot."""
        return Consistency(**await self.store.read(repository.audit))


async def _take(session: AsyncSession, stay: Stay, fence: int | None) -> None:
    missing = stay.places - await repository.take_nights(session, stay, fence)
    if not missing:
        return
    # Whoever is undecided on these nights may still give them back: met here, waited for, and tried again.
    rows = await repository.touch_nights(session, stay.listing_id, missing)
    why = shortage(stay, missing, rows)
    if why.full:
        raise errors.capacity_exhausted(why.full)
    raise errors.stale_fence(fence)


async def _change(session: AsyncSession, order_id: UUID, to: HoldState) -> HoldAnswer:
    hold = await repository.take_hold(session, order_id)
    if hold is None:
        if to is HoldState.RELEASED:
            return HoldAnswer(0, _name(to))
        raise errors.no_hold(order_id)
    by = move(hold.state, to)
    if by is None:
        raise errors.hold_released(order_id)
    if by.changes:
        rows = await repository.move_nights(session, hold.stay, by)
        if rows != len(hold.stay.places):
            raise RuntimeError(f"the order {order_id} has {len(hold.stay.places)} places, but {rows} rows were moved")
        await repository.set_state(session, order_id, to)
    return _answer(hold.stay, to)


def _answer(stay: Stay, state: HoldState) -> HoldAnswer:
    return HoldAnswer(0 if state is HoldState.RELEASED else len(stay.nights), _name(state))


def _name(state: HoldState) -> str:
    return state.name.lower()


def _check_range(first: date, end: date) -> None:
    if not 0 < (end - first).days <= RANGE_NIGHTS_MAX:
        raise errors.bad_range(RANGE_NIGHTS_MAX)
