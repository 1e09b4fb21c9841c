"""The promises of the design, looked at from outside: by SQL of their own in every database, after each story."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

from tests.faults.crash.cell import Cell
from tests.faults.crash.stories import EXPIRED, NIGHTS, PAID, PENDING, REFUNDED, TOTAL_CENTS, WALLET_CENTS, Scene, Story

HELD, BOOKED, RELEASED = 0, 1, 2
HOLD_OF = {PENDING: HELD, PAID: BOOKED, REFUNDED: RELEASED, EXPIRED: RELEASED}
ESCROW_OF = {PENDING: None, PAID: TOTAL_CENTS, REFUNDED: 0, EXPIRED: None}
KIND_OF = {
    "book": "order_created",
    "pay": "payment_completed",
    "cancel": "order_cancelled",
    "expire": "order_expired",
}
WATCH_PAUSE_S = 0.25

OVER_TOTAL = "SELECT count(*) AS n FROM nights WHERE held + booked > total"
LEDGER_SUM = "SELECT coalesce(sum(amount_cents), 0)::bigint AS n FROM ledger_entries"
LEDGER_OF_EACH = (
    "SELECT count(*) AS n FROM (SELECT FROM ledger_entries GROUP BY transfer_id HAVING sum(amount_cents) <> 0) t"
)
COUNTED_OTHERWISE = """
SELECT count(*) AS n FROM nights AS n, LATERAL (
    SELECT count(*) FILTER (WHERE h.state = 0) AS held, count(*) FILTER (WHERE h.state = 1) AS booked FROM holds AS h
    WHERE h.listing_id = n.listing_id AND n.night >= h.check_in AND n.night < h.check_out) AS h
WHERE n.listing_id = $1 AND (n.held, n.booked) <> (h.held, h.booked)
"""


@asynccontextmanager
async def watched(cell: Cell, problems: list[str]) -> AsyncIterator[None]:
    """Looks again and again, meanwhile: no night above its total, and the ledger sums to zero at every instant."""

    async def look() -> None:
        while True:
            over = (await cell.eyes.rows("capacity", OVER_TOTAL))[0]["n"]
            total = (await cell.eyes.rows("payment", LEDGER_SUM))[0]["n"]
            if over:
                problems.append(f"{over} nights were above their total for a moment")
            if total:
                problems.append(f"the ledger summed to {total} for a moment")
            await asyncio.sleep(0 if problems else WATCH_PAUSE_S)
            if problems:
                return

    watching = asyncio.create_task(look())
    try:
        yield
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


async def broken(scene: Scene, story: Story) -> list[str]:
    """Every promise that does not hold after a story, in words; to be asked when all is quiet."""
    rows = scene.cell.eyes.rows
    orders = await _all_orders(scene)
    known = {row["id"]: row["status"] for row in orders}
    found = []
    counted = dict(Counter(known.values()))
    if counted != story.ends:
        found.append(f"orders by status are {counted}, not {story.ends}")
    for order_id, status in scene.acknowledged.items():
        if known.get(order_id) != status:
            found.append(f"status {status} of order {order_id} was acknowledged, but it is {known.get(order_id)}")
    for row in orders:
        found += await _order(scene, row)
    found += await _strangers(scene, set(known))
    found += await _sums(scene, list(known.values()))
    found += await _messages(scene, set(known))
    counted_otherwise = (await rows("capacity", COUNTED_OTHERWISE, scene.listing.id))[0]["n"]
    if counted_otherwise:
        found.append(f"{counted_otherwise} nights are counted otherwise than they are held")
    return found


async def _all_orders(scene: Scene) -> list[Any]:
    query = "SELECT id, status, total_cents FROM orders WHERE owner_id = $1"
    return [
        row
        for shard in ("order@shard-0", "order@shard-1")
        for row in await scene.cell.eyes.rows(shard, query, scene.owner.id)
    ]


async def _order(scene: Scene, order: Any) -> list[str]:
    """An order has all of it: details, history, index, nights, pet and money."""
    rows = scene.cell.eyes.rows
    order_id, status = order["id"], order["status"]
    details = await rows("order@shard-0", "SELECT FROM order_details WHERE order_id = $1", order_id)
    last = await rows(
        "order@shard-0", "SELECT to_status FROM order_events WHERE order_id = $1 ORDER BY seq DESC LIMIT 1", order_id
    )
    index = await rows("order@shard-1", "SELECT status FROM provider_orders WHERE order_id = $1", order_id)
    hold = await rows("capacity", "SELECT state FROM holds WHERE order_id = $1", order_id)
    pets = await rows("pet", "SELECT FROM claimed_nights WHERE order_id = $1", order_id)
    escrow = await rows("payment", "SELECT balance_cents FROM escrows WHERE order_id = $1", order_id)
    seen = {
        "details": len(details),
        "last event": [row["to_status"] for row in last],
        "status in the index": [row["status"] for row in index],
        "hold": [row["state"] for row in hold],
        "nights of the pet": len(pets),
        "escrow": escrow[0]["balance_cents"] if escrow else None,
    }
    due = {
        "details": 1,
        "last event": [status],
        "status in the index": [status],
        "hold": [HOLD_OF.get(status)],
        "nights of the pet": NIGHTS if HOLD_OF.get(status) != RELEASED else 0,
        "escrow": ESCROW_OF.get(status),
    }
    return [
        f"order {order_id} is {status}, its {what} is {seen[what]}, not {due[what]}"
        for what in due
        if seen[what] != due[what]
    ]


async def _strangers(scene: Scene, known: set[UUID]) -> list[str]:
    """Nothing is left of a booking that is not there."""
    rows, provider, owner = scene.cell.eyes.rows, scene.listing.provider.id, scene.owner.id
    asked = (
        ("order@shard-0", "SELECT DISTINCT e.order_id FROM order_events AS e WHERE e.actor_id = $1", owner),
        ("order@shard-1", "SELECT order_id FROM provider_orders WHERE owner_id = $1", owner),
        ("capacity", "SELECT order_id FROM holds WHERE listing_id = $1", scene.listing.id),
        ("pet", "SELECT order_id FROM claims WHERE owner_id = $1", owner),
        ("pet", "SELECT order_id FROM claimed_nights WHERE pet_id = $1", UUID(scene.owner.pets[0])),
        ("payment", "SELECT order_id FROM escrows WHERE owner_id = $1", owner),
        ("notification", "SELECT order_id FROM notifications WHERE recipient = $1", owner),
        ("notification", "SELECT order_id FROM notifications WHERE recipient = $1", provider),
    )
    found = []
    for database, query, value in asked:
        left = {row["order_id"] for row in await rows(database, query, value)} - known
        if left:
            table = query.split(" FROM ")[1].split()[0]
            found.append(f"{database}.{table} speaks of orders that are not there: {sorted(map(str, left))}")
    return found


async def _sums(scene: Scene, statuses: list[int]) -> list[str]:
    rows = scene.cell.eyes.rows
    found = []
    total, uneven = (await rows("payment", LEDGER_SUM))[0]["n"], (await rows("payment", LEDGER_OF_EACH))[0]["n"]
    if total or uneven:
        found.append(f"the ledger sums to {total}, and {uneven} transfers do not sum to zero")
    over = (await rows("capacity", OVER_TOTAL))[0]["n"]
    if over:
        found.append(f"{over} nights are above their total")
    wallet = await rows("payment", "SELECT balance_cents FROM wallets WHERE user_id = $1", scene.owner.id)
    due = WALLET_CENTS - TOTAL_CENTS * statuses.count(PAID)
    if [row["balance_cents"] for row in wallet] != [due]:
        found.append(f"the owner's wallet is {[row['balance_cents'] for row in wallet]}, not {due}")
    return found


async def _messages(scene: Scene, known: set[UUID]) -> list[str]:
    """Owner and provider were told of every event of an order, once."""
    rows = scene.cell.eyes.rows
    due: Counter[tuple[UUID, str, UUID]] = Counter()
    for order_id in known:
        for row in await rows("order@shard-0", "SELECT event FROM order_events WHERE order_id = $1", order_id):
            for person in (scene.owner.id, scene.listing.provider.id):
                due[order_id, KIND_OF[row["event"]], person] += 1
    query = "SELECT order_id, kind, recipient FROM notifications WHERE recipient IN ($1, $2)"
    told = await rows("notification", query, scene.owner.id, scene.listing.provider.id)
    seen = Counter((row["order_id"], row["kind"], row["recipient"]) for row in told if row["order_id"] in known)
    missing, twice = due - seen, seen - due
    found = [f"nobody told {person} of {kind} of {order_id}" for order_id, kind, person in missing]
    return found + [f"{person} was told of {kind} of {order_id} too often" for order_id, kind, person in twice]
