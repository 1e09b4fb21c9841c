"""What people and dashboards see."""

from __future__ import annotations

import asyncio

from coordinator.protocol.messages import Wait
from coordinator.protocol.statuses import Decision
from tests.integration.coordinator.tc.harness import (
    Caller,
    begin,
    branch_of,
    commit,
    eventually,
    new_xid,
    now_ms,
    register,
    rollback,
)


async def test_lists_are_paged_without_gap_or_repeat_while_new_ones_come(tc: Caller) -> None:
    """Following the cursor shows each transaction that was there once, the youngest first."""
    xids = [new_xid(age_s=100 - place) for place in range(25)]
    await tc.say(*(begin(xid) for xid in xids))
    seen: list[str] = []
    query = {"limit": "10"}
    while True:
        _, page = await tc.get("/v1/transactions", **query)
        seen += [item["xid"] for item in page["items"]]
        if page["next_cursor"] is None:
            break
        query["cursor"] = page["next_cursor"]
        await tc.say(begin(new_xid()))
    assert seen == [str(xid) for xid in reversed(xids)]


async def test_lists_are_filtered_by_decision_settlement_and_name(tc: Caller) -> None:
    """Each filter alone and together; by word in any case, or by number."""
    open_, committed, settled = new_xid(), new_xid(), new_xid()
    await tc.say(begin(open_), commit(committed, branch_of("capacity")), rollback(settled, name="cancel"))

    async def found(**query: str) -> set[str]:
        _, page = await tc.get("/v1/transactions", **query)
        return {item["xid"] for item in page["items"]}

    assert await found(decision="undecided") == {str(open_)} == await found(decision="0")
    assert await found(settlement="SETTLING") == {str(committed)}
    assert await found(name="cancel") == {str(settled)} == await found(decision="2", settlement="2", name="cancel")
    assert await found(name="cancel", decision="1") == set()


async def test_one_transaction_is_shown_with_branches_and_waits(tc: Caller) -> None:
    """Decision, reason, name, caller, times, branches with states and resources, and who waits."""
    xid, waiter, branch, hinted = new_xid(), new_xid(), branch_of("capacity"), branch_of("order")
    await tc.say(begin(xid, name="book"), register(xid, hinted))
    waiting = asyncio.create_task(tc.wait(Wait(xid, now_ms(30), waiter, now_ms(30), "capacity", 20_000)))

    async def seen() -> bool:
        return bool((await tc.get(f"/v1/transactions/{xid}"))[1]["waits"])

    await eventually(seen)
    _, body = await tc.get(f"/v1/transactions/{xid}")
    assert (body["decision"], body["decided_ms"], body["settlement"]) == ("UNDECIDED", None, "OPEN")
    assert [(wait["waiter"], wait["resource"]) for wait in body["waits"]] == [(str(waiter), "capacity")]
    await tc.named("capacity").say(commit(xid, branch))
    assert (await waiting).holder == Decision.COMMITTED
    _, body = await tc.get(f"/v1/transactions/{xid}")
    assert (body["name"], body["caller"], body["reason"]) == ("book", "order", "asked")
    assert body["heard_ms"] <= body["decided_ms"] <= body["deadline_ms"]
    shown = {(b["resource"], b["branch"], b["state"], b["committed"]) for b in body["branches"]}
    assert shown == {
        ("capacity", str(branch.branch), "OPEN", True),
        ("order", str(hinted.branch), "OPEN", False),
    }


async def test_statistics_count_what_is_not_finished(tc: Caller) -> None:
    """Figures over all replicas and of this one."""
    await tc.say(begin(new_xid()), begin(new_xid()), commit(new_xid(), branch_of("capacity")), rollback(new_xid()))
    _, body = await tc.get("/v1/statistics")
    assert (body["undecided"], body["settling"], body["quarantined"], body["waits"]) == (2, 1, 0, 0)
    assert (body["replica"]["messages"], body["replica"]["batches"]) == (4, 1)
