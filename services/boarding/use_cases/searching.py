"""How guests find listings."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from uuid import UUID

from services.boarding import errors, repository, schemas
from services.boarding.clients import Others
from services.boarding.config import SEARCH_PAGES_MAX
from services.boarding.use_cases.rows import found_of
from services.kit.paging import Page
from services.kit.runtime import Runtime

Ranked = tuple[schemas.Found, float]
"""A listing and its position in the order that was asked for."""


@dataclass(frozen=True)
class Searching:
    """The use cases, over one runtime."""

    runtime: Runtime
    others: Others

    async def search(
        self,
        wish: repository.Search,
        dates: tuple[date, date] | None,
        units: int,
        cursor: str | None,
        limit: int,
    ) -> Page[schemas.Found]:
        """Approved listings that fit; with dates, only those with room on every night.

        A page may be short: a search with dates looks through SEARCH_PAGES_MAX pages of candidates at most, and its
        cursor says where to go on.
        """
        after = self.runtime.cursors.decode(cursor, tuple[float, UUID])
        if dates is None:
            return self._page(await self._candidates(wish, after, limit + 1), limit)
        kept: list[Ranked] = []
        for _ in range(SEARCH_PAGES_MAX):
            found = await self._candidates(wish, after, limit + 1)
            kept += await self._with_room(found[:limit], wish.pool, dates, units)
            if len(found) <= limit or len(kept) > limit:
                return self._page(kept, limit)
            after = _position(found[limit - 1])
        return Page([found for found, _ in kept], self.runtime.cursors.encode(after or ()))

    async def _candidates(self, wish: repository.Search, after: tuple[float, UUID] | None, limit: int) -> list[Ranked]:
        rows = await self.runtime.store.read(lambda s: repository.search(s, wish, after, limit))
        return [(found_of(row, distance), rank) for row, rank, distance in rows]

    async def _with_room(
        self, found: Sequence[Ranked], pool: str | None, dates: tuple[date, date], units: int
    ) -> list[Ranked]:
        """Those with `units` places on every night: of `pool`, or of any one kind that they take."""
        first, last = dates
        ids = [item.service_id for item, _ in found]
        by_pool: dict[str, list[UUID]] = {}
        for item, _ in found:
            for name in item.pools if pool is None else [pool]:
                by_pool.setdefault(name, []).append(item.service_id)
        closed = await self.runtime.store.read(lambda s: repository.blocked_among(s, ids, first, last))
        questions = (self.others.free(some, {name: units}, first, last) for name, some in by_pool.items())
        free: set[UUID] = set().union(*await asyncio.gather(*questions))
        return [(item, rank) for item, rank in found if item.service_id in free - closed]

    def _page(self, found: Sequence[Ranked], limit: int) -> Page[schemas.Found]:
        more = len(found) > limit
        cursor = self.runtime.cursors.encode(_position(found[limit - 1])) if more else None
        return Page([item for item, _ in found[:limit]], cursor)


def wish_near(wish: repository.Search, lat: float | None, lng: float | None) -> repository.Search:
    """A wish with a place. Raises a 400 problem for half a place, or when distance matters and there is none."""
    if (lat is None) != (lng is None):
        raise errors.unusable("/lat" if lat is None else "/lng", "A place is both 'lat' and 'lng'.")
    near = None if lat is None or lng is None else (lat, lng)
    if near is None and (wish.sort == "distance" or wish.radius_km is not None):
        raise errors.unusable("/lat", "Distance needs 'lat' and 'lng'.")
    return replace(wish, near=near)


def _position(ranked: Ranked) -> tuple[float, UUID]:
    item, rank = ranked
    return rank, item.service_id
