"""What people and dashboards see: transactions, one or many, and figures. Reads only; nothing here decides."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg
import msgspec

from coordinator.protocol.ids import uuid7
from coordinator.protocol.statuses import BranchState, Decision, Settlement
from coordinator.tc.store import Store


class TransactionView(msgspec.Struct, frozen=True):
    """A global transaction in a list. Instants are milliseconds since 1970."""

    xid: UUID
    name: str
    caller: str
    decision: str
    reason: str | None
    settlement: str
    deadline_ms: int
    heard_ms: int
    decided_ms: int | None
    settled_ms: int | None
    nudges: int
    """How often its resources were told once more."""


class BranchView(msgspec.Struct, frozen=True):
    """One branch; `committed` when the commit named it. `confirmed_ms` is when its resource last spoke of it."""

    resource: str
    branch: UUID
    state: str
    committed: bool
    known_ms: int
    confirmed_ms: int | None


class WaitView(msgspec.Struct, frozen=True):
    """A wait that is open now, in which the transaction is holder or waiter."""

    holder: UUID
    waiter: UUID | None
    resource: str
    since_ms: int


class QuarantineView(msgspec.Struct, frozen=True):
    """What a person has to decide about in one resource: `images` are rows with before, after and now.

    `shown` is the digest that a decision about them names; `reason` says why, where it is no row that was changed.
    """

    resource: str
    reason: str | None
    shown: str
    total: int
    images: list[dict[str, Any]]
    reported_ms: int


class ResolutionView(msgspec.Struct, frozen=True):
    """A person's decision, with the images it was made on; `outcome` is None until the resource has carried it out."""

    resolution_id: UUID
    xid: UUID
    resource: str
    action: str
    kept: list[dict[str, Any]] | None
    by: str
    caller: str
    decided_ms: int
    done_ms: int | None
    outcome: dict[str, Any] | None
    images: list[dict[str, Any]] | None


class TransactionDetail(msgspec.Struct, frozen=True):
    """One global transaction with its branches, the waits around it, what is quarantined, and what was decided."""

    transaction: TransactionView
    branches: list[BranchView]
    waits: list[WaitView]
    quarantine: list[QuarantineView]
    resolutions: list[ResolutionView]


class GraphWait(msgspec.Struct, frozen=True):
    """One wait that is open now; names are None where the coordinator has not heard of the transaction."""

    waiter: UUID | None
    waiter_name: str | None
    holder: UUID
    holder_name: str | None
    holder_decision: str
    holder_settlement: str
    resource: str
    since_ms: int


class Page(msgspec.Struct, frozen=True):
    """Transactions from the youngest on; `next_cursor` asks for those after, None when there are no more."""

    items: list[TransactionView]
    next_cursor: str | None


_COUNTS = """
SELECT count(*) FILTER (WHERE decision = 0) AS undecided,
    count(*) FILTER (WHERE settlement = 1) AS settling,
    count(*) FILTER (WHERE settlement = 3) AS quarantined,
    min(deadline) FILTER (WHERE decision = 0) AS oldest_deadline,
    min(decided_at) AS oldest_unsettled
FROM tc.global_transaction WHERE decision = 0 OR settlement IN (1, 3)
"""


GRAPH_MAX = 1000
"""Waits that the graph shows at most."""

_GRAPH = """
SELECT w.*, h.name AS holder_name, h.decision, h.settlement, v.name AS waiter_name
FROM tc.wait w
LEFT JOIN tc.global_transaction h ON h.xid = w.holder
LEFT JOIN tc.global_transaction v ON v.xid = w.waiter
WHERE w.expires_at > clock_timestamp() ORDER BY w.since LIMIT $1
"""

_WAITS = """
SELECT * FROM tc.wait WHERE (holder = $1 OR waiter = $1) AND expires_at > clock_timestamp() ORDER BY since LIMIT 200
"""


@dataclass(frozen=True)
class Filter:
    """What a list is narrowed to; None narrows nothing. `began_before_ms` is by the transaction's maker's clock."""

    decision: Decision | None = None
    settlement: Settlement | None = None
    name: str | None = None
    resource: str | None = None
    began_before_ms: int | None = None

    def sql(self) -> str:
        """The page: $1 name, $2 resource, $3 the least xid that is too young, $4 how many.

        States stand in it as numbers. What is not finished is looked up in its own small index, whatever history holds;
        the planner must not weigh that against walking through history in the order that is wanted.
        """
        source, states = "tc.global_transaction", []
        if self.decision is not None:
            states.append(f"g.decision = {int(self.decision)}")
        if self.settlement is not None:
            states.append(f"g.settlement = {int(self.settlement)}")
        if self.settlement in (Settlement.SETTLING, Settlement.QUARANTINED):
            source = "(SELECT * FROM tc.global_transaction WHERE settlement IN (1, 3) OFFSET 0)"
        elif self.settlement is Settlement.OPEN or self.decision is Decision.UNDECIDED:
            source = "(SELECT * FROM tc.global_transaction WHERE decision = 0 OFFSET 0)"
        narrowed = " AND ".join(["g.xid < coalesce($3::uuid, 'ffffffff-ffff-ffff-ffff-ffffffffffff')", *states])
        return f"""
            SELECT g.* FROM {source} g WHERE {narrowed} AND ($1::text IS NULL OR g.name = $1)
                AND ($2::text IS NULL OR EXISTS (SELECT FROM tc.branch b WHERE b.xid = g.xid AND b.resource = $2))
            ORDER BY g.xid DESC LIMIT $4
        """  # noqa: S608 - made of numbers


async def page(store: Store, limit: int, cursor: UUID | None = None, wanted: Filter = Filter()) -> Page:
    """At most `limit` transactions older than `cursor`, filtered. Raises StoreUnavailable."""
    before = None if wanted.began_before_ms is None else uuid7(wanted.began_before_ms, bytes(10))
    oldest = min((xid for xid in (cursor, before) if xid is not None), default=None)
    rows = await store.read(wanted.sql(), wanted.name, wanted.resource, oldest, limit + 1)
    items = [_transaction(row) for row in rows[:limit]]
    return Page(items, str(items[-1].xid) if len(rows) > limit else None)


async def detail(store: Store, xid: UUID) -> TransactionDetail | None:
    """One transaction, or None where nothing of it is known. Raises StoreUnavailable."""
    rows = await store.read("SELECT * FROM tc.global_transaction WHERE xid = $1", xid)
    if not rows:
        return None
    branches = await store.read("SELECT * FROM tc.branch WHERE xid = $1 ORDER BY known_at, resource, branch_id", xid)
    waits = await store.read(_WAITS, xid)
    quarantine = await store.read("SELECT * FROM tc.quarantine WHERE xid = $1 ORDER BY resource", xid)
    resolutions = await store.read("SELECT * FROM tc.resolution WHERE xid = $1 ORDER BY decided_at LIMIT 200", xid)
    return TransactionDetail(
        _transaction(rows[0]),
        [_branch(row) for row in branches],
        [WaitView(row["holder"], row["waiter"], row["resource"], _ms(row["since"])) for row in waits],
        [_quarantine(row) for row in quarantine],
        [_resolution(row) for row in resolutions],
    )


async def wait_graph(store: Store) -> list[GraphWait]:
    """Who waits for whom now, over all replicas, the longest first, at most GRAPH_MAX. Raises StoreUnavailable."""
    return [
        GraphWait(
            row["waiter"],
            row["waiter_name"] or None,
            row["holder"],
            row["holder_name"] or None,
            Decision(row["decision"] or 0).name,
            Settlement(row["settlement"] or 0).name,
            row["resource"],
            _ms(row["since"]),
        )
        for row in await store.read(_GRAPH, GRAPH_MAX)
    ]


async def resolution(store: Store, resolution_id: UUID) -> ResolutionView:
    """A decision that was taken down. Raises StoreUnavailable; KeyError where there is none."""
    rows = await store.read("SELECT * FROM tc.resolution WHERE resolution_id = $1", resolution_id)
    if not rows:
        raise KeyError(resolution_id)
    return _resolution(rows[0])


async def pending_resolution(store: Store, xid: UUID, resource: str) -> ResolutionView | None:
    """The decision about `xid` that `resource` has not carried out yet. Raises StoreUnavailable."""
    query = "SELECT * FROM tc.resolution WHERE xid = $1 AND resource = $2 AND done_at IS NULL"
    rows = await store.read(query, xid, resource)
    return _resolution(rows[0]) if rows else None


async def open_alerts(store: Store) -> dict[str, int]:
    """How many alerts of each kind hold now. Raises StoreUnavailable."""
    query = "SELECT kind, count(*) AS alerts FROM tc.alert WHERE closed_at IS NULL GROUP BY kind"
    return {row["kind"]: row["alerts"] for row in await store.read(query)}


async def counts(store: Store) -> dict[str, int | None]:
    """What is not finished, over all replicas. Raises StoreUnavailable."""
    row = (await store.read(_COUNTS))[0]
    waits = (await store.read("SELECT count(*) AS waits FROM tc.wait WHERE expires_at > clock_timestamp()"))[0]
    return {
        "undecided": row["undecided"],
        "settling": row["settling"],
        "quarantined": row["quarantined"],
        "oldest_deadline_ms": _ms_or_none(row["oldest_deadline"]),
        "oldest_unsettled_ms": _ms_or_none(row["oldest_unsettled"]),
        "waits": waits["waits"],
    }


def _transaction(row: asyncpg.Record) -> TransactionView:
    return TransactionView(
        xid=row["xid"],
        name=row["name"],
        caller=row["caller"],
        decision=Decision(row["decision"]).name,
        reason=row["reason"],
        settlement=Settlement(row["settlement"]).name,
        deadline_ms=_ms(row["deadline"]),
        heard_ms=_ms(row["heard_at"]),
        decided_ms=_ms_or_none(row["decided_at"]),
        settled_ms=_ms_or_none(row["settled_at"]),
        nudges=row["nudges"],
    )


def _branch(row: asyncpg.Record) -> BranchView:
    return BranchView(
        resource=row["resource"],
        branch=row["branch_id"],
        state=BranchState(row["state"]).name,
        committed=row["committed"],
        known_ms=_ms(row["known_at"]),
        confirmed_ms=_ms_or_none(row["confirmed_at"]),
    )


def _quarantine(row: asyncpg.Record) -> QuarantineView:
    return QuarantineView(
        resource=row["resource"],
        reason=row["reason"],
        shown=row["digest"],
        total=row["total"],
        images=json.loads(row["images"]),
        reported_ms=_ms(row["reported_at"]),
    )


def _resolution(row: asyncpg.Record) -> ResolutionView:
    return ResolutionView(
        resolution_id=row["resolution_id"],
        xid=row["xid"],
        resource=row["resource"],
        action=row["action"],
        kept=_json_or_none(row["kept"]),
        by=row["decided_by"],
        caller=row["caller"],
        decided_ms=_ms(row["decided_at"]),
        done_ms=_ms_or_none(row["done_at"]),
        outcome=_json_or_none(row["outcome"]),
        images=_json_or_none(row["images"]),
    )


def _json_or_none(text: str | None) -> Any:
    return None if text is None else json.loads(text)


def _ms(instant: datetime) -> int:
    return round(instant.timestamp() * 1000)


def _ms_or_none(instant: datetime | None) -> int | None:
    return None if instant is None else _ms(instant)
