"""The audit log's SQL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import insert, select, true, update
from sqlalchemy.ext.asyncio import AsyncSession

from services.admin.domain import Entry, chained
from services.admin.tables import audit_head, audit_log


async def append(
    session: AsyncSession, *, at: datetime, actor: UUID, action: str, subject: str, reason: str, xid: UUID | None
) -> int:
    """Appends an entry; returns its number.

    The head of the chain is one row that every entry writes: whoever comes while an entry is undecided meets its lock
    and waits, so an entry that is undone leaves no gap behind it.
    """
    head = (
        await session.execute(
            update(audit_head).values(number=audit_head.c.number + 1).returning(audit_head.c.number, audit_head.c.hash)
        )
    ).one()
    number, previous = int(head.number), bytes(head.hash)
    entry = Entry(number, actor, action, subject, reason, int(at.timestamp() * 1000), xid)
    hashed = chained(previous, entry)
    await session.execute(
        insert(audit_log).values(
            number=number,
            at=datetime.fromtimestamp(entry.at_ms / 1000, tz=at.tzinfo),
            actor=actor,
            action=action,
            subject=subject,
            reason=reason,
            xid=xid,
            hash=hashed,
        )
    )
    await session.execute(update(audit_head).values(hash=hashed))
    return number


async def page(session: AsyncSession, *, before: int | None, limit: int) -> Sequence[Any]:
    """Entries, newest first."""
    query = select(audit_log).order_by(audit_log.c.number.desc()).limit(limit)
    if before is not None:
        query = query.where(audit_log.c.number < before)
    return (await session.execute(query)).all()


@dataclass(frozen=True)
class Chain:
    """The whole chain, oldest first, and the number and hash that its last entry must have."""

    entries: list[tuple[Entry, bytes]]
    head: tuple[int, bytes]


async def chain(session: AsyncSession) -> Chain:
    """The chain and its head as of one instant: one statement sees one snapshot."""
    h, log = audit_head.c, audit_log.c
    query = (
        select(audit_log, h.number.label("head_number"), h.hash.label("head_hash"))
        .select_from(audit_head.outerjoin(audit_log, true()))
        .order_by(log.number)
    )
    rows = (await session.execute(query)).all()
    entries = [
        (
            Entry(r.number, r.actor, r.action, r.subject, r.reason, round(r.at.timestamp() * 1000), r.xid),
            bytes(r.hash),
        )
        for r in rows
        if r.number is not None
    ]
    return Chain(entries, (rows[0].head_number, bytes(rows[0].head_hash)))
