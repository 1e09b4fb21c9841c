"""The care log: what happened each day, in a chain that nobody can rewrite unnoticed."""

from __future__ import annotations

from itertools import pairwise
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from services.kit.problems import unprocessable
from services.order import errors, repository
from services.order.config import CARE_LOGS_PER_ORDER_MAX
from services.order.domain import CHAIN_START, Event, Order, chain_hash, chain_holds
from services.order.repository import CareRow
from services.order.schemas import CareItem, CarePage, CareRequest, to_json
from services.order.use_cases.desk import Actor, Desk


class Care:
    """Writes and reads care logs. A local matter of the order's shard: no global transaction."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def append(self, actor: Actor, order_id: UUID, request: CareRequest) -> CareItem:
        """Appends an entry while the pets are there. Raises 404, 409 `illegal-transition`, 422 `pet-not-staying`."""
        desk = self._desk
        key = desk.key(order_id)

        async def work(session: AsyncSession) -> CareRow:
            # Taking the order puts entries of one order in line, and waits for a check-out that is being decided.
            order, party = await desk.take(session, key, actor)
            to = desk.next_status(order, Event.LOG_CARE, party)
            details = await repository.find_details(session, key)
            if str(request.pet_id) not in {pet["id"] for pet in details.pets}:
                raise errors.pet_not_staying(request.pet_id)
            now = desk.clock()
            last = await repository.last_care(session, key)
            seq = 1 if last is None else last.seq + 1
            if seq > CARE_LOGS_PER_ORDER_MAX:
                raise errors.too_many_entries(CARE_LOGS_PER_ORDER_MAX)
            entry = {**self._entry(order, request), "seq": seq, "at": now.isoformat(), "author_id": str(actor.person)}
            previous = CHAIN_START if last is None else last.hash
            row = CareRow(seq, now, actor.person or order.provider_id, entry, previous, chain_hash(previous, entry))
            await repository.append_care(session, key, row)
            await desk.record(
                session,
                order,
                to,
                event=Event.LOG_CARE,
                kind="care_log",
                actor=actor,
                at=now,
                xid=None,
                data={"care_seq": seq},
            )
            return row

        return _item(await desk.store_of(key).local(work))

    async def page(self, actor: Actor, order_id: UUID, limit: int, cursor: str | None) -> CarePage:
        """A page of the log, oldest first, with the proof that its chain holds. Raises 404."""
        desk = self._desk
        key = desk.key(order_id)
        position = desk.runtime.cursors.decode(cursor, tuple[int])
        after = 0 if position is None else position[0]

        async def look(session: AsyncSession) -> list[CareRow]:
            if await repository.find(session, key, actor.sees) is None:
                raise errors.order_not_found(order_id)
            return await repository.care_of(session, key, after, limit + 1)

        rows = await desk.store_of(key).read(look)
        items = rows[:limit]
        start = items[0].previous_hash if items else CHAIN_START
        begins_well = not items or items[0].seq != 1 or start == CHAIN_START
        links = all(later.previous_hash == row.hash for row, later in pairwise(items))
        return CarePage(
            items=[_item(row) for row in items],
            chain_intact=begins_well and links and chain_holds(start, [(row.entry, row.hash) for row in items]),
            next_cursor=desk.runtime.cursors.encode([items[-1].seq]) if len(rows) > limit else None,
        )

    def _entry(self, order: Order, request: CareRequest) -> dict[str, Any]:
        today = self._desk.local_now(order).date()
        day = request.day or today
        if day > today:
            raise unprocessable("day-in-future", f"The day {day} has not come yet; it is {today} there.")
        return {**to_json(request), "day": day.isoformat()}


def _item(row: CareRow) -> CareItem:
    return CareItem(
        seq=row.seq,
        at=row.at,
        author_id=row.author_id,
        entry=row.entry,
        previous_hash=row.previous_hash.hex(),
        hash=row.hash.hex(),
    )
