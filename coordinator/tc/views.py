"""What people and dashboards see: transactions, one or many, and figures. Reads only; nothing here decides."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

import asyncpg
import msgspec

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


class TransactionDetail(msgspec.Struct, frozen=True):
    """One global transaction with its branches and the waits around it."""

    transaction: TransactionView
    branches: list[BranchView]
    waits: list[WaitView]


class Page(msgspec.Struct, frozen=True):
    """Transactions from the youngest on; `next_cursor` asks for those after, None when there are no more."""

    items: list[TransactionView]
    next_cursor: str | None


_PAGE = """
SELECT * FROM tc.global_transaction
WHERE ($1::smallint IS NULL OR decision = $1) AND ($2::smallint IS NULL OR settlement = $2)
    AND ($3::text IS NULL OR name = $3) AND ($4::uuid IS NULL OR xid < $4)
ORDER BY xid DESC LIMIT $5
"""

_COUNTS = """
SELECT count(*) FILTER (WHERE decision = 0) AS undecided,
    count(*) FILTER (WHERE settlement = 1) AS settling,
    count(*) FILTER (WHERE settlement = 3) AS quarantined,
    min(deadline) FILTER (WHERE decision = 0) AS oldest_deadline,
    min(decided_at) AS oldest_unsettled
FROM tc.global_transaction WHERE decision = 0 OR settlement IN (1, 3)
"""


_WAITS = """
SELECT * FROM tc.wait WHERE (holder = $1 OR waiter = $1) AND expires_at > clock_timestamp() ORDER BY since LIMIT 200
"""


async def page(
    store: Store,
    limit: int,
    cursor: UUID | None = None,
    decision: Decision | None = None,
    settlement: Settlement | None = None,
    name: str | None = None,
) -> Page:
    """At most `limit` transactions older than `cursor`, filtered. Raises StoreUnavailable."""
    rows = await store.read(_PAGE, decision, settlement, name, cursor, limit + 1)
    items = [_transaction(row) for row in rows[:limit]]
    return Page(items, str(items[-1].xid) if len(rows) > limit else None)


async def detail(store: Store, xid: UUID) -> TransactionDetail | None:
    """One transaction, or None where nothing of it is known. Raises StoreUnavailable."""
    rows = await store.read("SELECT * FROM tc.global_transaction WHERE xid = $1", xid)
    if not rows:
        return None
    branches = await store.read("SELECT * FROM tc.branch WHERE xid = $1 ORDER BY known_at, resource, branch_id", xid)
    waits = await store.read(_WAITS, xid)
    return TransactionDetail(
        _transaction(rows[0]),
        [_branch(row) for row in branches],
        [WaitView(row["holder"], row["waiter"], row["resource"], _ms(row["since"])) for row in waits],
    )


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


def _ms(instant: datetime) -> int:
    return round(instant.timestamp() * 1000)


def _ms_or_none(instant: datetime | None) -> int | None:
    return None if instant is None else _ms(instant)
