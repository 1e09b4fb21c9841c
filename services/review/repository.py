"""The review service's SQL."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import func, select, tuple_, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncSession

from services.review.domain import Direction
from services.review.tables import reports, reviews


async def one_at_a_time(session: AsyncSession, order_id: UUID) -> None:
    """Lets one side of a stay write at a time: of two at once, the second sees the first."""
    await session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(str(order_id), 0))))


async def add(session: AsyncSession, **row: Any) -> bool:
    """Stores a review; False when this side of the stay has one."""
    made = await session.execute(upsert(reviews).values(row).on_conflict_do_nothing().returning(reviews.c.id))
    return made.first() is not None


async def of_order(session: AsyncSession, order_id: UUID) -> Sequence[Any]:
    """Both sides' reviews of a stay."""
    query = select(reviews).where(reviews.c.order_id == order_id).order_by(reviews.c.direction)
    return (await session.execute(query)).all()


async def hidden_before(session: AsyncSession, before: datetime, limit: int) -> Sequence[Any]:
    """Hidden reviews that were written before an instant."""
    query = (
        select(reviews)
        .where(reviews.c.published_at.is_(None), reviews.c.written_at <= before)
        .order_by(reviews.c.written_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    return (await session.execute(query)).all()


async def publish(session: AsyncSession, review_id: UUID, at: datetime) -> bool:
    """Shows a review; False when it is shown already."""
    done = await session.execute(
        update(reviews)
        .where(reviews.c.id == review_id, reviews.c.published_at.is_(None))
        .values(published_at=at)
        .returning(reviews.c.id)
    )
    return done.first() is not None


async def one_count_at_a_time(session: AsyncSession, listing_id: UUID) -> None:
    """Lets one transaction at a time count a listing's reviews: of two at once, the second counts the first's."""
    await session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(str(listing_id), 1))))


async def totals(session: AsyncSession, listing_id: UUID) -> tuple[int, int]:
    """How many shown reviews a listing has, and the sum of their ratings."""
    row = (
        await session.execute(
            select(func.count(), func.coalesce(func.sum(reviews.c.rating), 0)).where(
                reviews.c.listing_id == listing_id,
                reviews.c.direction == Direction.OF_LISTING.value,
                reviews.c.published_at.is_not(None),
            )
        )
    ).one()
    return int(row[0]), int(row[1])


async def page(
    session: AsyncSession,
    *,
    listing_id: UUID | None,
    user_id: UUID | None,
    after: tuple[datetime, UUID] | None,
    limit: int,
) -> Sequence[Any]:
    """Shown reviews of a listing, or of a person, newest first."""
    query = (
        select(reviews)
        .where(reviews.c.published_at.is_not(None))
        .order_by(reviews.c.published_at.desc(), reviews.c.id.desc())
        .limit(limit)
    )
    if listing_id is not None:
        query = query.where(reviews.c.listing_id == listing_id, reviews.c.direction == Direction.OF_LISTING.value)
    if user_id is not None:
        query = query.where(reviews.c.subject_id == user_id)
    if after is not None:
        query = query.where(tuple_(reviews.c.published_at, reviews.c.id) < tuple_(*after))
    return (await session.execute(query)).all()


async def one(session: AsyncSession, review_id: UUID) -> Any:
    """A review, shown or not."""
    return (await session.execute(select(reviews).where(reviews.c.id == review_id))).first()


async def reply(session: AsyncSession, review_id: UUID, text: str, at: datetime) -> bool:
    """Adds the one reply; False when there is one."""
    done = await session.execute(
        update(reviews)
        .where(reviews.c.id == review_id, reviews.c.reply.is_(None))
        .values(reply=text, replied_at=at)
        .returning(reviews.c.id)
    )
    return done.first() is not None


async def report(session: AsyncSession, review_id: UUID, reporter_id: UUID, reason: str) -> None:
    """Remembers a report; a second one of the same person replaces the reason."""
    row = upsert(reports).values(review_id=review_id, reporter_id=reporter_id, reason=reason)
    await session.execute(
        row.on_conflict_do_update(index_elements=["review_id", "reporter_id"], set_={"reason": row.excluded.reason})
    )
