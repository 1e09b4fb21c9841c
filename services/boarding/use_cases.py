"""What the boarding service does."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec
from sqlalchemy.ext.asyncio import AsyncSession

from coordinator.protocol.ids import uuid7
from services.boarding import domain, errors, events, repository, schemas
from services.boarding.clients import Others
from services.boarding.config import CACHE_KEY, QUOTE_TTL_S, SEARCH_PAGES_MAX, SUGGESTION_DAYS_MAX
from services.kit import outbox
from services.kit.paging import Page, page_of
from services.kit.problems import Problem, not_found
from services.kit.runtime import Runtime

QUOTE_KIND = "quote"
DETAILS = ("description", "address", "house_rules", "schedule", "prices")


@dataclass
class Listings:
    """The use cases, over one runtime."""

    runtime: Runtime
    others: Others

    async def publish(self, provider_id: UUID, body: schemas.Publish) -> schemas.Published:
        """A new draft, with its places."""
        _check_time_zone(body.time_zone)
        now = self.runtime.clock()
        listing_id = uuid7(int(now.timestamp() * 1000))
        row = {
            "id": listing_id,
            "provider_id": provider_id,
            "pools": sorted(pool for pool, total in body.capacity.items() if total > 0),
            "audit_status": int(domain.AuditStatus.DRAFT),
            **{
                name: getattr(body, name)
                for name in (
                    "title",
                    "city",
                    "latitude",
                    "longitude",
                    "price_cents",
                    "instant_book",
                    "policy",
                    "time_zone",
                )
            },
        }
        details = {name: schemas.builtins(getattr(body, name)) for name in DETAILS}
        await self.runtime.store.local(lambda s: repository.add(s, row, details))
        if body.capacity:
            await self.others.set_pools(listing_id, body.capacity)
        await self._drop(listing_id)
        return schemas.Published("服务创建成功", listing_id, row["audit_status"])

    async def change(self, provider_id: UUID, listing_id: UUID, body: schemas.Change) -> schemas.Listing:
        """Changes what the body names."""
        given = {k: schemas.builtins(v) for k, v in msgspec.structs.asdict(body).items() if v is not msgspec.UNSET}
        details = {k: v for k, v in given.items() if k in DETAILS}
        row = {k: v for k, v in given.items() if k not in DETAILS}

        async def work(session: AsyncSession) -> None:
            await self._own(session, provider_id, listing_id)
            await repository.change(session, listing_id, row, details)
            await outbox.cache_drop(session, self.runtime.clock, _key(listing_id))

        await self.runtime.store.local(work)
        await self._drop(listing_id)
        return await self._fresh(listing_id)

    async def set_capacity(self, provider_id: UUID, listing_id: UUID, pools: dict[str, int]) -> schemas.Capacity:
        """Says how many places each kind of pet has."""
        await self.runtime.store.read(lambda s: self._own(s, provider_id, listing_id))
        await self.others.set_pools(listing_id, pools)

        async def work(session: AsyncSession) -> None:
            found = await self._own(session, provider_id, listing_id)
            kept = {pool for pool in found["pools"] if pools.get(pool, 1) > 0}
            wanted = sorted(kept | {pool for pool, total in pools.items() if total > 0})
            await repository.change(session, listing_id, {"pools": wanted}, {})
            await outbox.cache_drop(session, self.runtime.clock, _key(listing_id))

        await self.runtime.store.local(work)
        await self._drop(listing_id)
        return schemas.Capacity(pools)

    async def block(self, provider_id: UUID, listing_id: UUID, nights: list[date]) -> None:
        """Replaces the nights on which the provider takes nobody."""

        async def work(session: AsyncSession) -> None:
            found = await self._own(session, provider_id, listing_id)
            await repository.set_blocked(session, listing_id, self._local_now(found["time_zone"]).date(), nights)

        await self.runtime.store.local(work)

    async def submit(self, provider_id: UUID, listing_id: UUID) -> schemas.Published:
        """Hands a draft to moderation."""

        async def work(session: AsyncSession) -> int:
            found = await self._own(session, provider_id, listing_id)
            return await self._moderate(session, found, "submit")

        status = await self.runtime.store.local(work)
        await self._drop(listing_id)
        return schemas.Published("服务已提交审核", listing_id, status)

    async def moderate(self, listing_id: UUID, verb: str, reason: str) -> schemas.Internal:
        """An administrator's decision, as a branch of the admin service's transaction."""

        async def work(session: AsyncSession) -> schemas.Internal:
            found = await repository.listing(session, listing_id)
            if found is None:
                raise not_found("service", listing_id)
            status = await self._moderate(session, found, verb)
            args = events.moderated(verb, found["provider_id"], found["title"], reason)
            await outbox.send(
                session,
                self.runtime.clock,
                queue=events.NOTIFICATION_QUEUE,
                actor=events.NOTIFICATION_ACTOR,
                args=args,
            )
            return replace_status(_internal(found), status)

        return await self.runtime.store.branch(work)

    async def shown(self, listing_id: UUID, asking: UUID | None) -> schemas.Listing:
        """A listing, from the cache where it is there. Its provider sees it in any state, others when approved."""
        found = await self.runtime.cache.get_or_load(_key(listing_id), schemas.Listing, lambda: self._load(listing_id))
        if found is None or (found.audit_status != domain.AuditStatus.APPROVED and found.provider_id != asking):
            raise not_found("service", listing_id)
        return found

    async def internal(self, listing_id: UUID) -> schemas.Internal:
        """A listing as other services see it."""
        found = await self.runtime.store.read(lambda s: repository.listing(s, listing_id))
        if found is None:
            raise not_found("service", listing_id)
        return _internal(found)

    async def waiting(self, status: int, cursor: str | None, limit: int) -> Page[schemas.Found]:
        """Listings in one state of moderation."""
        after = self.runtime.cursors.decode(cursor, tuple[UUID])
        rows = await self.runtime.store.read(
            lambda s: repository.in_state(s, status, after[0] if after else None, limit + 1)
        )
        return page_of([_found(row) for row in rows], limit, self.runtime.cursors, lambda f: (f.service_id,))

    async def mine(self, provider_id: UUID, cursor: str | None, limit: int) -> Page[schemas.Found]:
        """A provider's own listings."""
        after = self.runtime.cursors.decode(cursor, tuple[UUID])
        rows = await self.runtime.store.read(
            lambda s: repository.of_provider(s, provider_id, after[0] if after else None, limit + 1)
        )
        return page_of([_found(row) for row in rows], limit, self.runtime.cursors, lambda f: (f.service_id,))

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
            return _page(await self._candidates(wish, after, limit + 1), limit, self.runtime)
        kept: list[tuple[schemas.Found, float]] = []
        for _ in range(SEARCH_PAGES_MAX):
            found = await self._candidates(wish, after, limit + 1)
            kept += await self._with_room(found[:limit], wish, dates, units)
            if len(found) <= limit:
                return _page(kept, limit, self.runtime)
            last = found[limit - 1]
            after = (last[1], last[0].service_id)
            if len(kept) > limit:
                return _page(kept, limit, self.runtime)
        return Page([found for found, _ in kept[:limit]], self.runtime.cursors.encode(after or ()))

    async def quote(self, owner_id: UUID, listing_id: UUID, ask: schemas.AskQuote) -> schemas.Quote:
        """A signed price. It holds for QUOTE_TTL_S seconds; it does not hold a place."""
        found = await self.runtime.store.read(lambda s: self._bookable(s, listing_id))
        pets = await self.others.pets(owner_id, ask.pet_ids)
        pools = domain.pools_of([(pet.species, pet.size) for pet in pets])
        for pool in pools:
            if pool not in found["pools"]:
                raise errors.pool_not_accepted(pool)
        await self._check_schedule(found, ask.check_in, ask.check_out)
        lines = domain.price(_prices(found), ask.check_in, ask.check_out, len(pets))
        total = sum(line.amount_cents for line in lines)
        shown = [schemas.QuoteLine(line.label, line.nights, line.amount_cents) for line in lines]
        claims = {
            "listing_id": str(listing_id),
            "provider_id": str(found["provider_id"]),
            "owner_id": str(owner_id),
            "pet_ids": [str(pet.id) for pet in pets],
            "pools": pools,
            "check_in": ask.check_in.isoformat(),
            "check_out": ask.check_out.isoformat(),
            "lines": schemas.builtins(shown),
            "total_cents": total,
            "policy": found["policy"],
            "instant_book": found["instant_book"],
            "time_zone": found["time_zone"],
            "title": found["title"],
        }
        token = self.runtime.signer.sign(QUOTE_KIND, claims, ttl_s=QUOTE_TTL_S)
        expires_at = self.runtime.clock() + timedelta(seconds=QUOTE_TTL_S)
        return schemas.Quote(token, shown, total, domain.CURRENCY, expires_at)

    async def suggestions(
        self, listing_id: UUID, check_in: date, nights: int, pool: str, flexible_days: int
    ) -> schemas.Suggestions:
        """Free stays near a wish."""
        found = await self.runtime.store.read(lambda s: self._bookable(s, listing_id))
        days = min(flexible_days, SUGGESTION_DAYS_MAX)
        items = []
        for first, last in domain.windows(nights, check_in, check_in + timedelta(days=nights), flexible_days=days):
            try:
                await self._check_schedule(found, first, last)
            except Problem:
                continue
            if await self.others.free([listing_id], {pool: 1}, first, last):
                total = sum(line.amount_cents for line in domain.price(_prices(found), first, last, 1))
                items.append(schemas.Suggestion(first, last, total, abs((first - check_in).days)))
        return schemas.Suggestions(items, min(items, key=lambda s: (s.total_cents, s.days_away), default=None))

    async def rate(self, listing_id: UUID, count: int, mean_x100: int) -> None:
        """Takes over a rating from the review service; a repeat changes nothing, an older count is ignored."""

        async def work(session: AsyncSession) -> None:
            found = await repository.listing(session, listing_id)
            if found is None or found["rating_count"] > count:
                return
            await repository.change(session, listing_id, {"rating_count": count, "rating_x100": mean_x100}, {})
            await outbox.cache_drop(session, self.runtime.clock, _key(listing_id))

        await self.runtime.store.local(work)

    async def _own(self, session: AsyncSession, provider_id: UUID, listing_id: UUID) -> Any:
        found = await repository.listing(session, listing_id)
        if found is None or found["provider_id"] != provider_id:
            raise not_found("service", listing_id)
        return found

    async def _bookable(self, session: AsyncSession, listing_id: UUID) -> Any:
        found = await repository.listing(session, listing_id)
        if found is None or found["audit_status"] != domain.AuditStatus.APPROVED:
            raise not_found("service", listing_id)
        return found

    async def _moderate(self, session: AsyncSession, found: Any, verb: str) -> int:
        try:
            status = domain.moderate(domain.AuditStatus(found["audit_status"]), verb)
        except domain.IllegalModeration as error:
            raise errors.illegal_moderation(str(error)) from None
        await repository.change(session, found["id"], {"audit_status": int(status)}, {})
        await outbox.cache_drop(session, self.runtime.clock, _key(found["id"]))
        return int(status)

    async def _check_schedule(self, found: Any, check_in: date, check_out: date) -> None:
        rules = domain.ScheduleRules(**found["schedule"])
        closed = await self.runtime.store.read(lambda s: repository.blocked(s, found["id"], check_in, check_out))
        try:
            domain.check_schedule(rules, check_in, check_out, self._local_now(found["time_zone"]), closed)
        except domain.OutsideWindow as error:
            raise errors.outside_window(str(error)) from None

    async def _candidates(
        self, wish: repository.Search, after: tuple[float, UUID] | None, limit: int
    ) -> list[tuple[schemas.Found, float]]:
        rows = await self.runtime.store.read(lambda s: repository.search(s, wish, after, limit))
        return [(_found(row, distance), rank) for row, rank, distance in rows]

    async def _with_room(
        self, found: list[tuple[schemas.Found, float]], wish: repository.Search, dates: tuple[date, date], units: int
    ) -> list[tuple[schemas.Found, float]]:
        if not found:
            return []
        first, last = dates
        ids = [item.service_id for item, _ in found]
        closed = await self.runtime.store.read(lambda s: repository.blocked_among(s, ids, first, last))
        if wish.pool is None:
            free = set(ids)
        else:
            free = await self.others.free(ids, {wish.pool: units}, first, last)
        return [(item, rank) for item, rank in found if item.service_id in free - closed]

    async def _load(self, listing_id: UUID) -> schemas.Listing | None:
        found = await self.runtime.store.read(lambda s: repository.listing(s, listing_id))
        return None if found is None else _listing(found)

    async def _fresh(self, listing_id: UUID) -> schemas.Listing:
        found = await self._load(listing_id)
        if found is None:
            raise not_found("service", listing_id)
        return found

    async def _drop(self, listing_id: UUID) -> None:
        await self.runtime.cache.drop(_key(listing_id))

    def _local_now(self, time_zone: str) -> datetime:
        return self.runtime.clock().astimezone(ZoneInfo(time_zone))


def replace_status(listing: schemas.Internal, status: int) -> schemas.Internal:
    """The same listing in another state of moderation."""
    return msgspec.structs.replace(listing, audit_status=status)


def wish_near(wish: repository.Search, near: tuple[float, float] | None) -> repository.Search:
    """A wish with a place. Raises a 400 problem when it sorts or cuts by distance and has none."""
    if near is None and (wish.sort == "distance" or wish.radius_km is not None):
        raise errors.unusable("/lat", "Distance needs 'lat' and 'lng'.")
    return replace(wish, near=near)


def _page(found: list[tuple[schemas.Found, float]], limit: int, runtime: Runtime) -> Page[schemas.Found]:
    items = [item for item, _ in found[:limit]]
    more = len(found) > limit
    return Page(items, runtime.cursors.encode((found[limit - 1][1], items[-1].service_id)) if more else None)


def _check_time_zone(name: str) -> None:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError):
        raise errors.unusable("/time_zone", f"{name!r} is no IANA time zone such as Asia/Shanghai.") from None


def _key(listing_id: UUID) -> str:
    return CACHE_KEY.format(id=listing_id)


def _prices(found: Any) -> domain.PriceRules:
    prices = msgspec.convert(found["prices"], schemas.Prices)
    tiers = tuple(sorted((tier.nights, tier.percent_off) for tier in prices.long_stay))
    return domain.PriceRules(found["price_cents"], prices.weekend_percent, prices.extra_pet_percent, tiers)


def _listing(found: Any) -> schemas.Listing:
    names = set(schemas.Listing.__struct_fields__) - {"service_id", "schedule", "prices", "rating"}
    return schemas.Listing(
        service_id=found["id"],
        schedule=msgspec.convert(found["schedule"], schemas.Schedule),
        prices=msgspec.convert(found["prices"], schemas.Prices),
        rating=found["rating_x100"] / 100,
        **{name: found[name] for name in names},
    )


def _internal(found: Any) -> schemas.Internal:
    return schemas.Internal(**{name: found[name] for name in schemas.Internal.__struct_fields__})


def _found(row: Any, distance_km: float | None = None) -> schemas.Found:
    return schemas.Found(
        row.id,
        row.provider_id,
        row.title,
        row.city,
        row.price_cents,
        list(row.pools),
        row.instant_book,
        row.rating_x100 / 100,
        row.rating_count,
        row.audit_status,
        None if distance_km is None else round(distance_km, 2),
    )
