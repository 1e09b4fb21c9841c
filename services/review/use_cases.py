"""What the review service does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from coordinator.protocol.ids import uuid7
from services.kit import outbox
from services.kit.paging import Page, page_of
from services.kit.problems import not_found
from services.kit.runtime import Runtime
from services.review import clients, domain, errors, events, repository
from services.review.config import BLIND_DAYS, ORDER_COMPLETED, PUBLISH_BATCH_MAX
from services.review.schemas import Review, Stay, Summary, Write


@dataclass
class Reviews:
    """The use cases, over one runtime."""

    runtime: Runtime

    async def write(self, author: UUID, body: Write) -> Review:
        """A review of a completed stay. It is hidden until the other side's is in, or BLIND_DAYS have passed."""
        stay = await clients.stay_of(self.runtime, body.order_id)
        direction = domain.direction_of(author, stay.owner_id, stay.provider_id)
        if direction is None:
            raise not_found("stay", body.order_id)
        if stay.status != ORDER_COMPLETED:
            raise errors.stay_not_finished(body.order_id)
        now = self.runtime.clock()
        row = self._row(author, direction, stay, body, now)

        async def work(session: AsyncSession) -> None:
            await repository.one_at_a_time(session, body.order_id)
            if not await repository.add(session, **row):
                raise errors.already_reviewed(body.order_id)
            both = await repository.of_order(session, body.order_id)
            due = [r for r in both if domain.is_due(r.written_at, now, len(both) == len(domain.Direction), BLIND_DAYS)]
            await self._publish(session, due, now)

        await self.runtime.store.local(work)
        return await self._one(row["id"])

    async def publish_due(self) -> None:
        """Shows what has been hidden for BLIND_DAYS. Runs again and again."""
        now = self.runtime.clock()

        async def work(session: AsyncSession) -> None:
            rows = await repository.hidden_before(session, now - timedelta(days=BLIND_DAYS), PUBLISH_BATCH_MAX)
            await self._publish(session, rows, now)

        await self.runtime.store.local(work)

    async def page(
        self, *, listing_id: UUID | None, user_id: UUID | None, cursor: str | None, limit: int
    ) -> Page[Review]:
        """Shown reviews, newest first."""
        after = self.runtime.cursors.decode(cursor, tuple[datetime, UUID])
        rows = await self.runtime.store.read(
            lambda s: repository.page(s, listing_id=listing_id, user_id=user_id, after=after, limit=limit + 1)
        )
        return page_of([_shown(row) for row in rows], limit, self.runtime.cursors, lambda r: (r.published_at, r.id))

    async def summary(self, listing_id: UUID) -> Summary:
        """How a listing is rated."""
        count, total = await self.runtime.store.read(lambda s: repository.totals(s, listing_id))
        return Summary(
            listing_id,
            count,
            domain.mean_x100(count, total) / 100,
            domain.score_x100(count, total) / 100,
            domain.FORMULA,
        )

    async def reply(self, asking: UUID, review_id: UUID, text: str) -> Review:
        """The one reply, by whoever was reviewed, to a review that is shown."""
        found = await self._one(review_id)
        if found.subject_id != asking or found.published_at is None:
            raise not_found("review", review_id)
        now = self.runtime.clock()
        if not await self.runtime.store.local(lambda s: repository.reply(s, review_id, text, now)):
            raise errors.already_replied()
        return await self._one(review_id)

    async def report(self, asking: UUID, review_id: UUID, reason: str) -> None:
        """Tells administrators that a shown review breaks the rules."""
        if (await self._one(review_id)).published_at is None:
            raise not_found("review", review_id)
        await self.runtime.store.local(lambda s: repository.report(s, review_id, asking, reason))

    async def _publish(self, session: AsyncSession, rows: Sequence[Any], now: datetime) -> None:
        shown = [row for row in rows if await repository.publish(session, row.id, now)]
        for row in shown:
            await outbox.send(
                session,
                self.runtime.clock,
                queue=events.NOTIFICATION_QUEUE,
                actor=events.NOTIFICATION_ACTOR,
                args=events.review_published(row.subject_id, row.order_id, row.rating),
            )
        # In one order for all, and after every row is taken: two that publish at once never wait for each other.
        for listing_id in sorted({row.listing_id for row in shown if row.direction == domain.Direction.OF_LISTING}):
            await repository.one_count_at_a_time(session, listing_id)
            count, total = await repository.totals(session, listing_id)
            await outbox.send(
                session,
                self.runtime.clock,
                queue=events.BOARDING_QUEUE,
                actor=events.RATING_ACTOR,
                args=events.rating_changed(listing_id, count, domain.mean_x100(count, total)),
            )

    async def _one(self, review_id: UUID) -> Review:
        row = await self.runtime.store.read(lambda s: repository.one(s, review_id))
        if row is None:
            raise not_found("review", review_id)
        return _shown(row)

    def _row(self, author: UUID, direction: domain.Direction, stay: Stay, body: Write, now: datetime) -> dict[str, Any]:
        return {
            "id": uuid7(int(now.timestamp() * 1000)),
            "order_id": body.order_id,
            "direction": direction.value,
            "author_id": author,
            "subject_id": stay.provider_id if direction is domain.Direction.OF_LISTING else stay.owner_id,
            "listing_id": stay.listing_id,
            "rating": body.rating,
            "text": body.text,
            "written_at": now,
        }


def _shown(row: Any) -> Review:
    return Review(**{name: getattr(row, name) for name in Review.__struct_fields__})
