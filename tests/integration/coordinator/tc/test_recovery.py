"""What is due with time."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import asyncpg
import structlog.testing

from coordinator.protocol.messages import Confirm
from coordinator.protocol.statuses import BranchState, Decision
from tests.integration.coordinator.tc.harness import (
    QUICK,
    Caller,
    begin,
    branch_of,
    commit,
    eventually,
    new_xid,
    now_ms,
    register,
    resource_at,
    rollback,
    running,
    settings_for,
)


async def test_a_transaction_that_nobody_decides_is_rolled_back_and_undone(tcs: tuple[Caller, Caller]) -> None:
    """Past the deadline the coordinator decides by itself and tells the resources, once over all replicas."""
    tc = tcs[0]
    async with resource_at("capacity", tc) as capacity:
        xids = [new_xid() for _ in range(50)]
        for xid in xids:
            await tc.say(begin(xid, later_s=0.3), register(xid, branch_of("capacity"), later_s=0.3))

        async def settled() -> bool:
            _, page = await tc.get("/v1/transactions", decision="rolled_back", settlement="settled", limit="100")
            return {item["reason"] for item in page["items"]} == {"timed_out"} and len(page["items"]) == 50

        await eventually(settled)
        assert sorted(capacity.xids()) == sorted(xids)
        assert await tc.decide(commit(xids[0])) == (Decision.ROLLED_BACK, "timed_out")


async def test_what_stays_unsettled_is_alerted_once_an_interval_over_all_replicas(database: str) -> None:
    """The log names the transaction, where it hangs, and does not repeat itself."""
    settings = settings_for(database, replace(QUICK, unsettled_alert_s=0.1))
    with structlog.testing.capture_logs() as logs:
        async with running(settings) as tc, running(settings):
            stuck, fine, branch = new_xid(), new_xid(), branch_of("capacity")
            await tc.say(commit(stuck, branch), commit(fine))
            await eventually(lambda: any(line["event"] == "transaction.unsettled" for line in logs))
            await asyncio.sleep(1.5)
    alerts = [line for line in logs if line["event"] == "transaction.unsettled"]
    assert [(line["xid"], line["resources"], line["alert"]) for line in alerts] == [(str(stuck), ["capacity"], True)]


async def test_a_resource_that_did_the_opposite_is_alerted(tc: Caller) -> None:
    """A committed branch that was undone is no state of the protocol; somebody has to look."""
    xid, branch = new_xid(), branch_of("capacity")
    with structlog.testing.capture_logs() as logs:
        await tc.say(commit(xid, branch))
        await tc.say(Confirm(xid, "capacity", [(branch.branch, BranchState.UNDONE)]))
    (line,) = [line for line in logs if line["event"] == "transaction.diverged"]
    assert (line["xid"], line["decision"], line["branches"]) == (str(xid), "COMMITTED", [str(branch.branch)])


async def test_history_is_kept_until_all_is_confirmed_old_and_past_its_deadline(database: str) -> None:
    """Only what is settled and past its deadline for long enough is purged, with its branches."""
    limits = replace(QUICK, history_keep_s=2.0, purge_interval_s=0.2)
    connection = await asyncpg.connect(database)
    try:
        async with running(settings_for(database, limits)) as tc:
            old = [new_xid(age_s=60) for _ in range(4)]
            settled, unconfirmed, undecided, far = old
            await tc.say(rollback(settled, deadline_ms=now_ms(-10)))
            await tc.say(commit(unconfirmed, branch_of("capacity")), begin(undecided))
            await tc.say(rollback(far, deadline_ms=now_ms(3600)))
            await connection.execute(
                "UPDATE tc.global_transaction SET settled_at = settled_at - interval '1 h' WHERE settlement = 2"
            )
            await connection.execute(
                "UPDATE tc.global_transaction SET deadline = deadline - interval '1 h' WHERE xid = $1", unconfirmed
            )

            async def purged() -> bool:
                return (await tc.get(f"/v1/transactions/{settled}"))[0] == 404

            await eventually(purged)
            assert [(await tc.get(f"/v1/transactions/{xid}"))[0] for xid in old[1:]] == [200, 200, 200]
            assert await tc.decide(commit(settled, deadline_ms=now_ms(-10))) == (Decision.ROLLED_BACK, "timed_out")
    finally:
        await connection.close()
