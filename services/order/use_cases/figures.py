"""Figures over all shards: what must hold, and how much there is."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from uuid import UUID

from services.kit.database import Store
from services.order import repository
from services.order.config import CONSISTENCY_BATCH_MAX, SWEEP_GRACE_S, SWEEP_INTERVAL_S
from services.order.domain import Status
from services.order.repository import OrderState, Place
from services.order.schemas import Consistency, Statistics
from services.order.use_cases.desk import Desk
from sharding import bucket_of_id

SWEEP_SLACK = timedelta(seconds=SWEEP_GRACE_S + 4 * SWEEP_INTERVAL_S)
"""How long past its window an unpaid order may wait for the sweeper before it counts as forgotten."""

START: Place = (-1, UUID(int=0))


class Figures:
    """Reads every shard in bounded batches. What an undecided transaction holds is left out."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def consistency(self) -> Consistency:
        """Compares orders and provider's indexes over all shards, both ways; costs one pass over all orders."""
        desk = self._desk
        parts = await asyncio.gather(*(self._check_orders(store) for store in desk.runtime.stores))
        lonely = await asyncio.gather(*(self._check_index(store) for store in desk.runtime.stores))
        before = desk.clock() - SWEEP_SLACK
        overdue = await asyncio.gather(
            *(
                store.read(lambda session: repository.unpaid_past(session, before, CONSISTENCY_BATCH_MAX))
                for store in desk.runtime.stores
            )
        )
        by_status: Counter[Status] = Counter()
        for counts, _, _ in parts:
            by_status.update(counts)
        return Consistency(
            orders_checked=by_status.total(),
            orders_by_status={status.label: by_status[status] for status in Status if by_status[status]},
            orders_without_index=sum(missing for _, missing, _ in parts),
            index_status_differs=sum(different for _, _, different in parts),
            index_without_order=sum(lonely),
            unpaid_past_window=sum(len(found) for found in overdue),
        )

    async def statistics(self) -> Statistics:
        """Sums over all shards."""
        desk = self._desk
        since = desk.clock() - timedelta(hours=24)
        parts = await asyncio.gather(
            *(store.read(lambda session: repository.totals(session, since)) for store in desk.runtime.stores)
        )
        by_status: Counter[Status] = Counter()
        completed = refunded = escrow = recent = 0
        for rows in parts:
            for row in rows:
                by_status[row.status] += row.orders
                recent += row.recent
                refunded += row.refund_cents
                if row.status is Status.COMPLETED:
                    completed += row.total_cents
                if row.status in (Status.PAID, Status.CONFIRMED, Status.IN_PROGRESS):
                    escrow += row.total_cents
        return Statistics(
            orders=by_status.total(),
            orders_by_status={status.label: by_status[status] for status in Status if by_status[status]},
            orders_24h=recent,
            completed_cents=completed,
            refunded_cents=refunded,
            escrow_cents=escrow,
        )

    async def _check_orders(self, store: Store) -> tuple[Counter[Status], int, int]:
        """(orders by status, without index, index differs) of one shard."""
        counts: Counter[Status] = Counter()
        suspects: list[OrderState] = []
        after = START
        while True:
            batch = await store.read(partial(repository.settled_orders, after=after, limit=CONSISTENCY_BATCH_MAX))
            counts.update(row.status for row in batch)
            suspects.extend(await self._differing(batch))
            if len(batch) < CONSISTENCY_BATCH_MAX:
                break
            after = (batch[-1].bucket, batch[-1].id)
        # A change between the two reads looks like a difference; whoever differs twice in the same state is one.
        missing = different = 0
        for start in range(0, len(suspects), CONSISTENCY_BATCH_MAX):
            places = [(row.bucket, row.id) for row in suspects[start : start + CONSISTENCY_BATCH_MAX]]
            again = await store.read(partial(repository.settled_named, places=places))
            indexed = await self._index_of(again)
            missing += sum(row.id not in indexed for row in again)
            different += sum(row.id in indexed and indexed[row.id] != row.status for row in again)
        return counts, missing, different

    async def _differing(self, rows: Sequence[OrderState]) -> list[OrderState]:
        indexed = await self._index_of(rows)
        return [row for row in rows if indexed.get(row.id) != row.status]

    async def _index_of(self, rows: Sequence[OrderState]) -> dict[UUID, int]:
        desk = self._desk
        by_store: dict[str, tuple[Store, list[Place]]] = {}
        for row in rows:
            store = desk.runtime.store_of(row.provider_id)
            by_store.setdefault(store.name, (store, []))[1].append((int(bucket_of_id(row.provider_id)), row.id))
        found: dict[UUID, int] = {}
        for store, places in by_store.values():
            found |= await store.read(partial(repository.index_states, places=places))
        return found

    async def _check_index(self, store: Store) -> int:
        """How many entries of one shard's indexes point at no order."""
        desk = self._desk
        lonely = 0
        after = START
        while True:
            entries = await store.read(partial(repository.settled_index, after=after, limit=CONSISTENCY_BATCH_MAX))
            by_store: dict[str, tuple[Store, list[Place]]] = {}
            for _, order_id in entries:
                home = desk.runtime.store_of(order_id)
                by_store.setdefault(home.name, (home, []))[1].append((int(bucket_of_id(order_id)), order_id))
            for home, wanted in by_store.values():
                known = await home.read(partial(repository.known_orders, places=wanted))
                lonely += len({order_id for _, order_id in wanted} - known)
            if len(entries) < CONSISTENCY_BATCH_MAX:
                return lonely
            after = entries[-1]
