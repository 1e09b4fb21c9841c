"""What a stay costs, and which stays there are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from services.boarding import domain, errors, repository, schemas
from services.boarding.clients import Others
from services.boarding.config import BOOKING_HORIZON_DAYS_MAX, QUOTE_KIND, QUOTE_TTL_S, TOTAL_MAX_CENTS
from services.boarding.use_cases.rows import local_now, prices_of
from services.kit.problems import not_found
from services.kit.runtime import Runtime


@dataclass(frozen=True)
class Quoting:
    """The use cases, over one runtime."""

    runtime: Runtime
    others: Others

    async def quote(self, owner_id: UUID, listing_id: UUID, ask: schemas.AskQuote) -> schemas.Quote:
        """A signed price. It holds for QUOTE_TTL_S seconds; it does not hold a place.

        Raises 404 for a listing that is not approved and for somebody else's pet, 422 `pet-not-accepted`,
        `outside-booking-window` and `total-too-large`.
        """
        if len(set(ask.pet_ids)) < len(ask.pet_ids):
            raise errors.unusable("/pet_ids", "A pet stays once: an id is there twice.")
        found = await self._bookable(listing_id)
        pets = await self.others.pets(owner_id, ask.pet_ids)
        pools = domain.pools_of([(pet.species, pet.size) for pet in pets])
        for pool in pools:
            if pool not in found["pools"]:
                raise errors.pool_not_accepted(pool)
        closed = await self._closed(listing_id, ask.check_in, ask.check_out)
        try:
            self._check(found, ask.check_in, ask.check_out, closed)
        except domain.OutsideWindow as error:
            raise errors.outside_window(str(error)) from None
        lines = domain.price(prices_of(found), ask.check_in, ask.check_out, len(pets))
        total = domain.total_cents(lines)
        if total > TOTAL_MAX_CENTS:
            raise errors.too_dear(total, TOTAL_MAX_CENTS)
        return self._signed(owner_id, found, pets, pools, ask, lines)

    async def suggestions(
        self, listing_id: UUID, check_in: date, nights: int, pool: str, flexible_days: int
    ) -> schemas.Suggestions:
        """Free stays of one pet near a wish, nearest first. Raises 404 for a listing that is not approved."""
        found = await self._bookable(listing_id)
        today = local_now(self.runtime.clock, found["time_zone"]).date()
        if abs((check_in - today).days) > BOOKING_HORIZON_DAYS_MAX:
            raise errors.outside_window(f"{check_in} is more than {BOOKING_HORIZON_DAYS_MAX} days from today.")
        stays = domain.windows(nights, check_in, flexible_days=flexible_days)
        first, last = min(stays)[0], max(stays)[1]
        closed = await self._closed(listing_id, first, last)
        free = await self.others.free_nights(listing_id, pool, first, last)
        items = []
        for start, end in stays:
            try:
                self._check(found, start, end, closed)
            except domain.OutsideWindow:
                continue
            if free.issuperset(domain.nights_of(start, end)):
                total = domain.total_cents(domain.price(prices_of(found), start, end, 1))
                items.append(schemas.Suggestion(start, end, total, abs((start - check_in).days)))
        return schemas.Suggestions(items, min(items, key=lambda s: (s.total_cents, s.days_away), default=None))

    def _signed(
        self,
        owner_id: UUID,
        found: Any,
        pets: Sequence[schemas.PetFacts],
        pools: dict[str, int],
        ask: schemas.AskQuote,
        lines: Sequence[domain.Line],
    ) -> schemas.Quote:
        total = domain.total_cents(lines)
        shown = [schemas.QuoteLine(line.label, line.nights, line.amount_cents) for line in lines]
        claims = {
            "listing_id": str(found["id"]),
            "provider_id": str(found["provider_id"]),
            "owner_id": str(owner_id),
            "pet_ids": [str(pet.id) for pet in pets],
            "pools": pools,
            "check_in": ask.check_in.isoformat(),
            "check_out": ask.check_out.isoformat(),
            "lines": schemas.builtins(shown),
            "total_cents": total,
            **{name: found[name] for name in ("policy", "instant_book", "time_zone", "title")},
        }
        token = self.runtime.signer.sign(QUOTE_KIND, claims, ttl_s=QUOTE_TTL_S)
        expires_at = self.runtime.clock() + timedelta(seconds=QUOTE_TTL_S)
        return schemas.Quote(token, shown, total, domain.CURRENCY, expires_at)

    async def _bookable(self, listing_id: UUID) -> Any:
        found = await self.runtime.store.read(lambda s: repository.listing(s, listing_id))
        if found is None or found["audit_status"] != domain.AuditStatus.APPROVED:
            raise not_found("service", listing_id)
        return found

    async def _closed(self, listing_id: UUID, first: date, last: date) -> frozenset[date]:
        async def work(session: AsyncSession) -> frozenset[date]:
            return await repository.blocked(session, listing_id, first, last)

        return await self.runtime.store.read(work)

    def _check(self, found: Any, check_in: date, check_out: date, closed: frozenset[date]) -> None:
        rules = domain.ScheduleRules(**found["schedule"])
        now = local_now(self.runtime.clock, found["time_zone"])
        domain.check_schedule(rules, check_in, check_out, now, closed)
