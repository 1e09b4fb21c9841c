"""Telling the resources."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import structlog.testing

from coordinator.protocol.messages import Confirm, Outcome
from coordinator.protocol.statuses import BranchState, Decision
from coordinator.tc.core.backoff import Backoff
from tests.integration.coordinator.tc.harness import (
    QUICK,
    Caller,
    branch_of,
    commit,
    eventually,
    new_xid,
    register,
    resource_at,
    rollback,
    running,
    settings_for,
)

NEVER_AGAIN = replace(QUICK, renudge=Backoff(first_s=3600.0, cap_s=3600.0))
"""The first nudge is the only one."""


async def test_a_commit_is_told_to_its_resources_and_settles(database: str) -> None:
    """Each resource hears its own branches, and what it confirms is recorded."""
    async with running(settings_for(database, NEVER_AGAIN)) as tc:
        async with resource_at("capacity", tc.named("capacity")) as capacity, resource_at("order", tc) as order:
            xid, first, second, third = new_xid(), branch_of("capacity"), branch_of("order"), branch_of("order")
            await tc.say(commit(xid, first, second, third))
            await eventually(lambda: capacity.heard and order.heard)
            (settle,) = order.heard[0].settle
            assert (settle.xid, settle.decision, set(settle.branches)) == (xid, 1, {second.branch, third.branch})

            async def settled() -> bool:
                return await tc.settlement(xid) == "SETTLED"

            await eventually(settled)


async def test_who_commits_and_confirms_is_not_told_what_it_knows(database: str) -> None:
    """The resources of the caller hear of a commit only when they have not confirmed it after a while."""
    limits = replace(NEVER_AGAIN, nudge_own_delay_s=0.3)
    async with running(settings_for(database, limits)) as tc, resource_at("order", tc) as order:
        first, second, third, fourth = (new_xid() for _ in range(4))
        await tc.say(commit(first, branch_of("order")))
        await eventually(lambda: order.xids() == [first])  # from now on it is known whose the resource is
        one, two, other = branch_of("order"), branch_of("order"), branch_of("order")
        await tc.say(commit(second, one, two), commit(third, other))
        states = [(branch.branch, int(BranchState.FORGOTTEN)) for branch in (one, two)]
        await tc.say(Confirm(second, "order", states), Confirm(third, "order", states))
        await tc.named("capacity").say(commit(fourth, branch_of("order")))
        await eventually(lambda: order.xids() == [first, fourth, third])
        assert await tc.settlement(second) == "SETTLED"


async def test_commits_that_come_together_travel_together(tc: Caller) -> None:
    """While a resource works at one nudge, the next one gathers."""
    async with resource_at("capacity", tc) as capacity:
        capacity.slow_s = 0.2
        xids = [new_xid() for _ in range(100)]
        await asyncio.gather(*(tc.say(commit(xid, branch_of("capacity"))) for xid in xids))
        await eventually(lambda: set(capacity.xids()) == set(xids))
        assert len(capacity.heard) < 20


async def test_who_hears_of_a_rollback_finds_it_undone(tc: Caller) -> None:
    """The answer to a rollback waits for the resources, also for those that only a hint named."""
    async with resource_at("capacity", tc) as capacity:
        capacity.slow_s = 0.3
        xid, named, hinted = new_xid(), branch_of("capacity"), branch_of("capacity")
        capacity.present[xid] = [named.branch, hinted.branch]
        await tc.say(register(xid, hinted))
        assert await tc.decide(rollback(xid, named)) == (Decision.ROLLED_BACK, "asked")
        assert capacity.xids() == [xid]
        assert await tc.settlement(xid) == "SETTLED"


async def test_a_resource_that_hangs_delays_a_rollback_no_longer_than_the_limit(database: str) -> None:
    """The answer comes without it; the undo follows."""
    async with running(settings_for(database, replace(NEVER_AGAIN, nudge_wait_s=0.1))) as tc:
        async with resource_at("capacity", tc) as capacity:
            capacity.slow_s = 1.0
            xid = new_xid()
            assert await tc.decide(rollback(xid, branch_of("capacity"))) == (Decision.ROLLED_BACK, "asked")
            assert capacity.heard == []
            await eventually(lambda: capacity.xids() == [xid])


async def test_a_rollback_does_not_hold_up_a_commit_in_the_same_list(database: str) -> None:
    """Others' answers do not wait for a slow resource."""
    async with running(settings_for(database, replace(NEVER_AGAIN, nudge_wait_s=60.0, nudge_timeout_s=60.0))) as tc:
        async with resource_at("capacity", tc) as capacity:
            capacity.slow_s = 2.0
            answers = await tc.say(rollback(new_xid(), branch_of("capacity")), commit(new_xid()))
            assert [a.decision for a in answers if isinstance(a, Outcome)] == [Decision.ROLLED_BACK, Decision.COMMITTED]
            assert capacity.heard == []


async def test_a_lost_nudge_is_told_again_until_confirmed(tc: Caller) -> None:
    """A resource that was away hears of it later, with growing pauses."""
    async with resource_at("capacity", tc) as capacity:
        capacity.failing = True
        committed, rolled_back = new_xid(), new_xid()
        await tc.say(commit(committed, branch_of("capacity")))
        await tc.say(rollback(rolled_back, branch_of("capacity")))

        async def nudged_again() -> bool:
            return bool((await tc.get(f"/v1/transactions/{committed}"))[1]["nudges"] >= 1)

        await eventually(nudged_again)
        capacity.failing = False

        async def settled() -> bool:
            return [await tc.settlement(xid) for xid in (committed, rolled_back)] == ["SETTLED", "SETTLED"]

        await eventually(settled)


async def test_a_branch_registered_after_the_rollback_is_settled_all_the_same(tc: Caller) -> None:
    """A hint that comes too late leads to its resource, which refuses the branch from then on."""
    async with resource_at("capacity", tc) as capacity:
        xid, late = new_xid(), branch_of("capacity")
        await tc.say(rollback(xid))
        assert await tc.settlement(xid) == "SETTLED"
        await tc.say(register(xid, late))

        async def settled() -> bool:
            return await tc.states(xid) == {late.branch: "TOMBSTONE"} and await tc.settlement(xid) == "SETTLED"

        await eventually(settled)
        assert xid in capacity.xids()


async def test_a_resource_that_comes_back_after_all_attempts_hears_what_it_missed(database: str) -> None:
    """Attempts end; a new announcement after silence starts them again."""
    limits = replace(QUICK, renudge=Backoff(first_s=0.05, cap_s=0.05, attempts_max=2))
    async with running(settings_for(database, limits)) as tc:
        xid = new_xid()
        await tc.say(commit(xid, branch_of("capacity")))

        async def attempts() -> int:
            return int((await tc.get(f"/v1/transactions/{xid}"))[1]["nudges"])

        async def all_made() -> bool:
            return await attempts() == 2

        await eventually(all_made)
        await asyncio.sleep(0.3)
        assert await attempts() == 2
        async with resource_at("capacity", tc) as capacity:

            async def settled() -> bool:
                return await tc.settlement(xid) == "SETTLED"

            await eventually(settled)
            assert capacity.xids() == [xid]


async def test_a_failing_resource_is_warned_of_once_a_minute(tc: Caller) -> None:
    """A service that is down for a night does not fill the disk."""
    with structlog.testing.capture_logs() as logs:
        async with resource_at("capacity", tc) as capacity:
            capacity.failing = True
            for _ in range(5):
                await tc.decide(rollback(new_xid(), branch_of("capacity")))
    warnings = [line for line in logs if line["event"] == "nudge.failed"]
    assert [(line["resource"], line["log_level"]) for line in warnings] == [("capacity", "warning")]


async def test_the_next_address_is_tried_when_one_is_dead(tc: Caller) -> None:
    """Each replica of a service announces its own address; any of them will do."""
    async with resource_at("capacity", tc) as capacity:
        assert await tc.announce("capacity", "http://127.0.0.1:9/dead") == 204
        xid = new_xid()
        await tc.decide(rollback(xid, branch_of("capacity")))
        assert capacity.xids() == [xid]


async def test_a_resource_belongs_to_who_announced_it(tc: Caller) -> None:
    """Nobody else can draw its nudges to another address."""
    assert await tc.named("capacity").announce("capacity", "http://127.0.0.1:9/nudge") == 204
    assert await tc.named("capacity").announce("capacity", "http://127.0.0.1:9/nudge") == 204
    assert await tc.named("order").announce("capacity", "http://127.0.0.1:10/nudge") == 409


async def test_an_address_that_is_none_is_refused(tc: Caller) -> None:
    """Only absolute http and https URLs can be nudged."""
    never = ("http://[::1", "http://host/\0", "http://a host/", "http://host:99999/", "http://host:x/")
    for wrong in ("", "nudge", "file:///etc/passwd", "ftp://host/x", "http:///x", *never):
        assert await tc.announce("capacity", wrong) == 400
    assert await tc.announce("", "http://127.0.0.1:9/nudge") == 400
