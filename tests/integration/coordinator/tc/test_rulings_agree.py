"""The rule in the store is the rule that can be read in `core.rulings`."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import combinations_with_replacement, product
from uuid import UUID, uuid4

import asyncpg

from coordinator.protocol.statuses import BranchState, Decision
from coordinator.tc.core.rulings import KnownBranch, Stored, Wish, rule, settled
from coordinator.tc.store import Store
from tests.integration.coordinator.tc.harness import QUICK, new_xid, now_ms

APPLY = """
SELECT decision, reason, fresh FROM tc.apply(gen_random_uuid(), '1 h', p_wish_xid => ARRAY[$1::uuid],
    p_wish => ARRAY[$2::smallint], p_wish_name => '{book}', p_wish_caller => '{order}',
    p_wish_deadline_ms => ARRAY[$3::bigint], p_wish_reason => ARRAY['deadlock'])
"""


ADD_BRANCH = "INSERT INTO tc.branch (xid, resource, branch_id, state, committed) VALUES ($1, $2, $3, $4, $5)"
DERIVE_SETTLEMENT = """
SELECT tc.apply(gen_random_uuid(), '1 h', p_confirm_xid => $1, p_confirm_resource => '{elsewhere}')
"""
FORGOTTEN_SHORT = "SELECT tc.confirm_forgotten($1, $2, $3)"
FORGOTTEN_LONG = """
SELECT tc.apply(gen_random_uuid(), '1 h', p_confirm_xid => $1, p_confirm_resource => $2, p_state_xid => $1,
    p_state_resource => $2, p_state_branch => $3, p_state => '{1}')
"""


async def _all_of(connection: asyncpg.Connection, xid: UUID) -> tuple[object, ...]:
    """What the store has of a transaction, without ids and with instants only as being there or not."""
    head = await connection.fetchrow(
        "SELECT decision, reason, settlement, settled_at IS NULL, next_nudge_at IS NULL"
        " FROM tc.global_transaction WHERE xid = $1",
        xid,
    )
    branches = await connection.fetch(
        "SELECT resource, state, committed, confirmed_at IS NULL FROM tc.branch WHERE xid = $1 ORDER BY resource", xid
    )
    return (None if head is None else tuple(head), *(tuple(row) for row in branches))


async def _installed(database: str) -> asyncpg.Connection:
    store = Store(database, uuid4(), QUICK)  # no replica: its sweep would decide what is past its deadline
    await store.open()
    await store.close()
    return await asyncpg.connect(database)


async def _insert(connection: asyncpg.Connection, xid: UUID, stored: Stored) -> None:
    await connection.execute(
        "INSERT INTO tc.global_transaction (xid, name, caller, deadline, decision, reason, decided_at, settlement)"
        " VALUES ($1, 'book', 'order', to_timestamp($2 / 1000.0), $3, $4, $5, $6)",
        xid,
        stored.deadline_ms,
        int(stored.decision),
        stored.reason,
        None if stored.decision is Decision.UNDECIDED else datetime.now(UTC),
        0 if stored.decision is Decision.UNDECIDED else 2,
    )


async def test_the_store_rules_as_the_readable_rule_does(database: str) -> None:
    """Every stored state, wish, pair of deadlines and end of memory is ruled alike by SQL and by Python."""
    connection = await _installed(database)
    now, early, late = now_ms(), now_ms(-3600), now_ms(3600)
    decided = [(Decision.UNDECIDED, None), (Decision.COMMITTED, "asked"), (Decision.ROLLED_BACK, "timed_out")]
    states = [None, *(Stored(d, reason, deadline) for (d, reason), deadline in product(decided, (early, late)))]
    try:
        for memory_ms, stored, wish, deadline_ms in product((None, now_ms(-1800)), states, Wish, (early, late)):
            await connection.execute(
                "UPDATE tc.memory SET committed_before = coalesce(to_timestamp($1 / 1000.0), '-infinity')", memory_ms
            )
            xid = new_xid()
            if stored is not None:
                await _insert(connection, xid, stored)
            expected = rule(stored, wish, deadline_ms, now, reason="deadlock", memory_ms=memory_ms)
            row = await connection.fetchrow(APPLY, xid, int(wish), deadline_ms)
            ruled = (row["decision"], row["reason"], row["fresh"]) if row else (Decision.UNDECIDED, None, False)
            assert ruled == (expected.decision, expected.reason, expected.fresh), (stored, wish, deadline_ms, memory_ms)
    finally:
        await connection.close()


async def test_the_store_knows_settlement_as_the_readable_rule_does(database: str) -> None:
    """Every decision over every combination of three branches settles alike in SQL and in Python."""
    connection = await _installed(database)
    kinds = [KnownBranch(state, committed) for state in BranchState for committed in (True, False)]
    expected: dict[UUID, int] = {}
    branches: list[tuple[UUID, str, UUID, int, bool]] = []
    try:
        for decision in (Decision.COMMITTED, Decision.ROLLED_BACK):
            for count in range(4):
                for known in combinations_with_replacement(kinds, count):
                    xid = new_xid()
                    await _insert(connection, xid, Stored(decision, "asked", now_ms(60)))
                    branches += [(xid, "capacity", uuid4(), int(b.state), b.committed) for b in known]
                    expected[xid] = settled(decision, list(known))
        await connection.executemany(
            "INSERT INTO tc.branch (xid, resource, branch_id, state, committed) VALUES ($1, $2, $3, $4, $5)", branches
        )
        await connection.execute(
            "SELECT tc.apply(gen_random_uuid(), '1 h', p_confirm_xid => $1, p_confirm_resource => $2)",
            list(expected),
            ["elsewhere"] * len(expected),
        )
        rows = await connection.fetch("SELECT xid, settlement FROM tc.global_transaction")
        assert {row["xid"]: row["settlement"] for row in rows} == expected
    finally:
        await connection.close()


async def test_the_short_way_of_confirmations_ends_where_the_long_one_does(database: str) -> None:
    """Whatever was stored, the short way makes of a forgotten branch what the long one makes, or leaves it to that."""
    connection = await _installed(database)
    states = [None, *((state, committed) for state in BranchState for committed in (True, False))]
    ways: list[dict[tuple[int, int], tuple[object, ...]]] = [{}, {}]
    try:
        for way in ways:
            for place, (decision, own, other) in enumerate(product((None, *Decision), states, states)):
                xid, resources = new_xid(), ("capacity", "order")
                if decision is not None:
                    await _insert(connection, xid, Stored(decision, "asked" if decision else None, now_ms(60)))
                    branch = uuid4()
                    for resource, known in zip(resources, (own, other), strict=True):
                        if known is not None:
                            named = known[1] and decision is Decision.COMMITTED
                            await connection.execute(ADD_BRANCH, xid, resource, branch, int(known[0]), named)
                    await connection.execute(DERIVE_SETTLEMENT, [xid])
                else:
                    branch = uuid4()
                for repeat in range(2):
                    left = [xid]
                    if way is ways[0]:
                        left = await connection.fetchval(FORGOTTEN_SHORT, [xid], ["capacity"], [branch])
                    if left:
                        await connection.execute(FORGOTTEN_LONG, [xid], ["capacity"], [branch])
                    way[place, repeat] = await _all_of(connection, xid)
        assert ways[0] == ways[1]
    finally:
        await connection.close()


async def test_a_confirmation_of_the_last_open_branch_takes_the_short_way(database: str) -> None:
    """What the commit named and nobody confirmed yet is not left to the long way, in one list or in several."""
    connection = await _installed(database)
    try:
        xid, first, second = new_xid(), uuid4(), uuid4()
        await _insert(connection, xid, Stored(Decision.COMMITTED, "asked", now_ms(60)))
        await connection.execute("UPDATE tc.global_transaction SET settlement = 1")
        for branch in (first, second):
            await connection.execute(
                "INSERT INTO tc.branch (xid, resource, branch_id, committed) VALUES ($1, 'capacity', $2, true)",
                xid,
                branch,
            )
        assert await connection.fetchval(FORGOTTEN_SHORT, [xid], ["capacity"], [first]) == []
        assert await connection.fetchval("SELECT settlement FROM tc.global_transaction") == 1
        assert await connection.fetchval(FORGOTTEN_SHORT, [xid] * 2, ["capacity"] * 2, [first, second]) == []
        assert await connection.fetchval("SELECT settlement FROM tc.global_transaction") == 2
        assert await connection.fetchval(FORGOTTEN_SHORT, [xid], ["capacity"], [uuid4()]) == [xid]
    finally:
        await connection.close()
