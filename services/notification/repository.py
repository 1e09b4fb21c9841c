"""The notification service's SQL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import exists, func, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncSession

from services.notification.tables import notifications, preferences


async def known(session: AsyncSession, message_id: UUID, recipient: UUID) -> bool:
    """Whether this message was stored before."""
    mine = (notifications.c.id == message_id) & (notifications.c.recipient == recipient)
    return bool(await session.scalar(select(exists().where(mine))))


async def add(session: AsyncSession, *, recipient: UUID, **row: Any) -> bool:
    """Stores a notification; False when this message was stored before.

    One at a time for each recipient, so that their numbers appear in rising order: a reader who has seen one will
    never find a smaller one that is new.
    """
    await session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(str(recipient), 0))))
    made = await session.execute(
        upsert(notifications)
        .values(recipient=recipient, **row)
        .on_conflict_do_nothing()
        .returning(notifications.c.number)
    )
    return made.first() is not None


async def page(
    session: AsyncSession, recipient: UUID, *, unread: bool, before: int | None, limit: int
) -> Sequence[Any]:
    """Somebody's notifications, newest first."""
    query = (
        select(notifications)
        .where(notifications.c.recipient == recipient)
        .order_by(notifications.c.number.desc())
        .limit(limit)
    )
    if unread:
        query = query.where(notifications.c.read_at.is_(None))
    if before is not None:
        query = query.where(notifications.c.number < before)
    return (await session.execute(query)).all()


async def since(session: AsyncSession, recipient: UUID, number: int, limit: int) -> Sequence[Any]:
    """Somebody's notifications after `number`, oldest first."""
    query = (
        select(notifications)
        .where(notifications.c.recipient == recipient, notifications.c.number > number)
        .order_by(notifications.c.number)
        .limit(limit)
    )
    return (await session.execute(query)).all()


async def latest(session: AsyncSession, recipient: UUID) -> int:
    """The number of somebody's newest notification, 0 when there is none."""
    found = await session.scalar(
        select(func.coalesce(func.max(notifications.c.number), 0)).where(notifications.c.recipient == recipient)
    )
    return int(found or 0)


async def unread_count(session: AsyncSession, recipient: UUID) -> int:
    """How many somebody has not read."""
    found = await session.scalar(
        select(func.count()).where(notifications.c.recipient == recipient, notifications.c.read_at.is_(None))
    )
    return int(found or 0)


async def mark_read(session: AsyncSession, recipient: UUID, notification_id: UUID | None) -> int:
    """Marks one (or, None, all) of somebody's notifications as read; returns how many it found."""
    query = update(notifications).where(notifications.c.recipient == recipient)
    query = query.values(read_at=func.coalesce(notifications.c.read_at, func.clock_timestamp()))
    if notification_id is not None:
        query = query.where(notifications.c.id == notification_id)
    else:
        query = query.where(notifications.c.read_at.is_(None))
    found = await session.execute(query.returning(notifications.c.number))
    return len(found.all())


async def preferences_of(session: AsyncSession, user_id: UUID) -> dict[str, bool]:
    """What somebody wants by e-mail."""
    found = await session.scalar(select(preferences.c.email).where(preferences.c.user_id == user_id))
    return dict(found or {})


async def set_preferences(session: AsyncSession, user_id: UUID, email: dict[str, bool]) -> None:
    """Replaces what somebody wants by e-mail."""
    row = upsert(preferences).values(user_id=user_id, email=email)
    await session.execute(row.on_conflict_do_update(index_elements=["user_id"], set_={"email": row.excluded.email}))
