"""What providers and moderators do with listings, and how one is shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec
from sqlalchemy.ext.asyncio import AsyncSession

from coordinator.protocol.ids import uuid7
from services.boarding import domain, errors, events, repository, schemas
from services.boarding.clients import Others
from services.boarding.use_cases.rows import found_of, internal_of, key_of, listing_of, local_now
from services.kit import outbox
from services.kit.cache import Passing
from services.kit.paging import Page, page_of
from services.kit.problems import not_found
from services.kit.runtime import Runtime

DETAILS = ("description", "address", "house_rules", "schedule", "prices")
COLUMNS = ("title", "city", "latitude", "longitude", "price_cents", "instant_book", "policy", "time_zone")


@dataclass(frozen=True)
class Listings:
    """The use cases, over one runtime."""

    runtime: Runtime
    others: Others

    async def publish(self, provider_id: UUID, body: schemas.Publish) -> schemas.Published:
        """A new draft, with its places. Raises 400 when its rules make no sense."""
        _check_time_zone(body.time_zone)
        _check_schedule(body.schedule)
        listing_id = uuid7(int(self.runtime.clock().timestamp() * 1000))
        row = {
            "id": listing_id,
            "provider_id": provider_id,
            "pools": _taken(body.capacity),
            "audit_status": int(domain.AuditStatus.DRAFT),
            **{name: getattr(body, name) for name in COLUMNS},
        }
        details = {name: schemas.builtins(getattr(body, name)) for name in DETAILS}
        if body.capacity:
            # First: places of a listing that was not made harm nobody, a draft without its places would.
            await self.others.set_pools(listing_id, body.capacity)
        await self.runtime.store.local(lambda s: repository.add(s, row, details))
        return schemas.Published("服务创建成功", listing_id, row["audit_status"])

    async def change(self, provider_id: UUID, listing_id: UUID, body: schemas.Change) -> schemas.Listing:
        """Changes what the body names."""
        if body.schedule is not msgspec.UNSET:
            _check_schedule(body.schedule)
        given = {k: schemas.builtins(v) for k, v in msgspec.structs.asdict(body).items() if v is not msgspec.UNSET}
        details = {k: v for k, v in given.items() if k in DETAILS}
        row = {k: v for k, v in given.items() if k not in DETAILS}
        await self._write(provider_id, listing_id, lambda found: row, details)
        fresh = await self.runtime.store.read(lambda s: self._own(s, provider_id, listing_id))
        return listing_of(fresh)

    async def set_capacity(self, provider_id: UUID, listing_id: UUID, pools: dict[str, int]) -> schemas.Capacity:
        """Says how many places each kind of pet has; a kind that is not named is no longer taken.

        Raises the capacity service's 409 `capacity-in-use`, with nothing changed.
        """
        await self.runtime.store.read(lambda s: self._own(s, provider_id, listing_id))
        await self.others.set_pools(listing_id, pools)
        await self._write(provider_id, listing_id, lambda found: {"pools": _taken(pools)}, {})
        return schemas.Capacity(pools)

    async def block(self, provider_id: UUID, listing_id: UUID, nights: list[date]) -> None:
        """Replaces the nights on which the provider takes nobody."""

        async def work(session: AsyncSession) -> None:
            found = await self._own(session, provider_id, listing_id, lock=True)
            today = local_now(self.runtime.clock, found["time_zone"]).date()
            await repository.set_blocked(session, listing_id, today, nights)

        await self.runtime.store.local(work)

    async def submit(self, provider_id: UUID, listing_id: UUID) -> schemas.Published:
        """Hands a draft to moderation. Raises 409 `illegal-transition` when it is none."""
        pending = await self._write(provider_id, listing_id, lambda found: _moved(found, "submit"), {})
        return schemas.Published("服务已提交审核", listing_id, pending["audit_status"])

    async def moderate(self, listing_id: UUID, verb: str, reason: str) -> schemas.Internal:
        """A branch: an administrator's decision. Repeated it gives the same answer and does nothing."""

        async def work(session: AsyncSession) -> schemas.Internal:
            found = await repository.listing(session, listing_id, lock=True)
            if found is None:
                raise not_found("service", listing_id)
            moved = _moved(found, verb)
            await self._store(session, listing_id, moved, {})
            await outbox.send(
                session,
                self.runtime.clock,
                queue=events.NOTIFICATION_QUEUE,
                actor=events.NOTIFICATION_ACTOR,
                args=events.moderated(verb, found["provider_id"], found["title"], reason),
            )
            return msgspec.structs.replace(internal_of(found), **moved)

        return await self.runtime.store.branch(work, schemas.Internal)

    async def shown(self, listing_id: UUID, asking: UUID | None) -> schemas.Listing:
        """A listing, from the cache where it is there. Its provider sees it in any state, others when approved."""
        cache = self.runtime.cache
        found = await cache.get_or_load(key_of(listing_id), schemas.Listing, lambda: self._load(listing_id))
        if found is None or (found.audit_status != domain.AuditStatus.APPROVED and found.provider_id != asking):
            raise not_found("service", listing_id)
        return found

    async def internal(self, listing_id: UUID) -> schemas.Internal:
        """A listing as other services see it."""
        found = await self.runtime.store.read(lambda s: repository.listing(s, listing_id))
        if found is None:
            raise not_found("service", listing_id)
        return internal_of(found)

    async def waiting(self, status: int, cursor: str | None, limit: int) -> Page[schemas.Found]:
        """Listings in one state of moderation."""
        after = self.runtime.cursors.decode(cursor, tuple[UUID])
        rows = await self.runtime.store.read(
            lambda s: repository.in_state(s, status, after[0] if after else None, limit + 1)
        )
        return page_of([found_of(row) for row in rows], limit, self.runtime.cursors, lambda f: (f.service_id,))

    async def mine(self, provider_id: UUID, cursor: str | None, limit: int) -> Page[schemas.Found]:
        """A provider's own listings."""
        after = self.runtime.cursors.decode(cursor, tuple[UUID])
        rows = await self.runtime.store.read(
            lambda s: repository.of_provider(s, provider_id, after[0] if after else None, limit + 1)
        )
        return page_of([found_of(row) for row in rows], limit, self.runtime.cursors, lambda f: (f.service_id,))

    async def rate(self, listing_id: UUID, count: int, mean_x100: int) -> None:
        """Takes over a rating from the review service; a repeat changes nothing, an older count is ignored."""
        rating = {"rating_count": count, "rating_x100": mean_x100}

        async def work(session: AsyncSession) -> None:
            found = await repository.listing(session, listing_id, lock=True)
            if found is None or found["rating_count"] > count:
                return
            if any(found[name] != value for name, value in rating.items()):
                await self._store(session, listing_id, rating, {})

        await self.runtime.store.local(work)

    async def _write(
        self,
        provider_id: UUID,
        listing_id: UUID,
        columns: Callable[[Any], dict[str, Any]],
        details: dict[str, Any],
    ) -> dict[str, Any]:
        """Changes the provider's listing to what `columns` makes of it, and gives that; the cache forgets it."""

        async def work(session: AsyncSession) -> dict[str, Any]:
            row = columns(await self._own(session, provider_id, listing_id, lock=True))
            await self._store(session, listing_id, row, details)
            return row

        written = await self.runtime.store.local(work)
        await self.runtime.cache.drop(key_of(listing_id))
        return written

    async def _store(
        self, session: AsyncSession, listing_id: UUID, row: dict[str, Any], details: dict[str, Any]
    ) -> None:
        await repository.change(session, listing_id, row, details)
        await outbox.cache_drop(session, self.runtime.clock, key_of(listing_id))

    async def _own(self, session: AsyncSession, provider_id: UUID, listing_id: UUID, *, lock: bool = False) -> Any:
        found = await repository.listing(session, listing_id, lock=lock)
        if found is None or found["provider_id"] != provider_id:
            raise not_found("service", listing_id)
        return found

    async def _load(self, listing_id: UUID) -> schemas.Listing | Passing[schemas.Listing] | None:
        found = await self.runtime.store.read(lambda s: repository.listing(s, listing_id))
        if found is None:
            return None
        return Passing(listing_of(found)) if found["undecided"] else listing_of(found)


def _moved(found: Any, verb: str) -> dict[str, Any]:
    """What a step of moderation changes. Raises 409 `illegal-transition`."""
    try:
        return {"audit_status": int(domain.moderate(domain.AuditStatus(found["audit_status"]), verb))}
    except domain.IllegalModeration as error:
        raise errors.illegal_moderation(str(error)) from None


def _taken(pools: Mapping[str, int]) -> list[str]:
    """The kinds of pets for which there is a place."""
    return sorted(pool for pool, total in pools.items() if total > 0)


def _check_time_zone(name: str) -> None:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise errors.unusable("/time_zone", f"{name!r} is no IANA time zone such as Asia/Shanghai.") from None


def _check_schedule(schedule: schemas.Schedule) -> None:
    if schedule.min_nights > schedule.max_nights:
        raise errors.unusable(
            "/schedule/min_nights", f"{schedule.min_nights} nights at least and {schedule.max_nights} at most is never."
        )
