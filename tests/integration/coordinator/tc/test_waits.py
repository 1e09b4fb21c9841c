"""Waiting for a decision, and the end of circles."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from uuid import UUID

import asyncpg
import msgspec
import pytest

from coordinator.protocol.messages import Wait, WaitAnswer
from coordinator.protocol.statuses import Decision
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

NEVER_POLLS = replace(QUICK, wait_poll_s=3600.0)
"""Whoever wakes here was woken, not found by the slow poll."""


def waits_for(holder: UUID, waiter: UUID | None, wait_ms: int = 20_000, later_s: float = 30.0) -> Wait:
    """`waiter` meets a row of `holder`; both have a deadline `later_s` from now."""
    return Wait(holder, now_ms(later_s), waiter, now_ms(30) if waiter else None, "capacity", wait_ms)


async def _waiting(caller: Caller, count: int) -> None:
    async def there() -> bool:
        return bool((await caller.get("/v1/statistics"))[1]["waits"] == count)

    await eventually(there)


async def test_a_wait_ends_with_the_holders_commit_and_names_its_branches(tc: Caller) -> None:
    """The blocked one learns what it needs to clear the holder's rows itself."""
    holder, waiter, branch = new_xid(), new_xid(1), branch_of("capacity")
    waiting = asyncio.create_task(tc.wait(waits_for(holder, waiter)))
    await _waiting(tc, 1)
    await tc.say(commit(holder, branch))
    assert await waiting == WaitAnswer(Decision.COMMITTED, Decision.UNDECIDED, "asked", [branch.branch])
    await _waiting(tc, 0)


async def test_a_wait_for_who_is_decided_already_is_answered_at_once(tc: Caller) -> None:
    """Nobody waits for what has happened."""
    holder = new_xid()
    await tc.say(rollback(holder))
    assert await tc.wait(waits_for(holder, None)) == WaitAnswer(Decision.ROLLED_BACK, Decision.UNDECIDED, "asked")


async def test_a_wait_ends_undecided_when_its_time_is_over(tc: Caller) -> None:
    """A long poll that saw nothing says so; the caller asks again."""
    answer = await tc.wait(waits_for(new_xid(), new_xid(), wait_ms=50))
    assert answer == WaitAnswer(Decision.UNDECIDED, Decision.UNDECIDED)


async def test_a_wait_ends_when_the_waiter_itself_is_decided(tc: Caller) -> None:
    """A transaction that is rolled back by somebody else stops waiting."""
    holder, waiter = new_xid(), new_xid()
    waiting = asyncio.create_task(tc.wait(waits_for(holder, waiter)))
    await _waiting(tc, 1)
    await tc.say(rollback(waiter))
    assert await waiting == WaitAnswer(Decision.UNDECIDED, Decision.ROLLED_BACK, "asked")


async def test_a_decision_at_another_replica_wakes_by_notification(database: str) -> None:
    """NOTIFY reaches the waiters of other replicas; the slow poll is off here."""
    settings = settings_for(database, NEVER_POLLS)
    async with running(settings) as one, running(settings) as two:
        for _ in range(3):
            holder = new_xid()
            waiting = asyncio.create_task(one.wait(waits_for(holder, new_xid())))
            await _waiting(two, 1)
            await two.say(commit(holder))
            assert (await waiting).holder == Decision.COMMITTED


async def test_the_slow_poll_wakes_where_notifications_are_lost(tcs: tuple[Caller, Caller], database: str) -> None:
    """A replica that lost its listening connection still hears of decisions elsewhere."""
    holder = new_xid()
    waiting = asyncio.create_task(tcs[0].wait(waits_for(holder, new_xid())))
    await _waiting(tcs[1], 1)
    connection = await asyncpg.connect(database)
    try:
        # A decision that no coordinator notified of, as after a lost notification.
        await connection.execute(
            "INSERT INTO tc.global_transaction (xid, name, caller, deadline, decision, reason, decided_at, settlement)"
            " VALUES ($1, '', '', now(), 1, 'asked', now(), 2)",
            holder,
        )
    finally:
        await connection.close()
    assert (await waiting).holder == Decision.COMMITTED


async def test_a_holder_past_its_deadline_is_rolled_back_for_who_waits(tc: Caller) -> None:
    """A holder that the coordinator never heard of times out for its waiters too."""
    answer = await tc.wait(waits_for(new_xid(), new_xid(), later_s=0.2))
    assert (answer.holder, answer.reason) == (Decision.ROLLED_BACK, "timed_out")


async def test_who_does_not_know_the_holders_deadline_does_not_time_it_out(tc: Caller) -> None:
    """Without a deadline an unknown holder stays undecided."""
    answer = await tc.wait(Wait(new_xid(), None, None, None, "capacity", 50))
    assert answer.holder == Decision.UNDECIDED


@pytest.mark.parametrize("size", [2, 3])
async def test_a_circle_over_two_replicas_loses_its_youngest(tcs: tuple[Caller, Caller], size: int) -> None:
    """A cycle is broken at once: the youngest is rolled back as a deadlock, the others go on waiting."""
    xids = sorted(new_xid(age_s=size - place) for place in range(size))
    youngest = xids[-1]
    circle = [(xids[place], xids[(place + 1) % size]) for place in range(size)]
    waiting = {
        waiter: asyncio.create_task(tcs[place % 2].wait(waits_for(holder, waiter)))
        for place, (waiter, holder) in enumerate(circle)
    }
    answer = await waiting.pop(youngest)
    assert (answer.waiter, answer.reason) == (Decision.ROLLED_BACK, "deadlock")
    behind = next(waiter for waiter, holder in circle if holder == youngest)
    assert (await waiting.pop(behind)).holder == Decision.ROLLED_BACK
    for waiter, rest in waiting.items():
        assert not rest.done()
        await tcs[0].say(rollback(waiter))
        assert (await rest).waiter == Decision.ROLLED_BACK
    assert [await tcs[0].decide(commit(xid)) for xid in xids[:1]] == [
        (Decision.COMMITTED, "asked") if size == 2 else (Decision.ROLLED_BACK, "asked")
    ]


async def test_circles_that_close_at_the_same_moment_are_all_seen(tcs: tuple[Caller, Caller]) -> None:
    """Of many pairs that wait for each other at once at two replicas, exactly the younger of each pair loses."""
    pairs = [(new_xid(age_s=5), new_xid()) for _ in range(20)]
    answers = await asyncio.gather(
        *(tcs[0].wait(waits_for(young, old)) for old, young in pairs),
        *(tcs[1].wait(waits_for(old, young)) for old, young in pairs),
    )
    assert {(answer.holder, answer.waiter) for answer in answers[:20]} == {(Decision.ROLLED_BACK, Decision.UNDECIDED)}
    assert {(answer.holder, answer.waiter) for answer in answers[20:]} == {(Decision.UNDECIDED, Decision.ROLLED_BACK)}


async def test_who_closes_a_circle_waits_for_a_wait_that_is_being_written(tc: Caller, database: str) -> None:
    """Of two waits written in one another's blind spot, the second sees the first: detection is serialised."""
    one, two = new_xid(1), new_xid()
    statement = (
        "SELECT waiter FROM tc.wait_for(gen_random_uuid(), gen_random_uuid(), $1, $2, NULL, 'capacity', '1 min')"
    )
    first, second, watcher = [await asyncpg.connect(database) for _ in range(3)]
    try:
        async with first.transaction():
            await first.fetch(statement, two, one)
            closing = asyncio.create_task(second.fetch(statement, one, two))
            blocked = "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND pid = $1)"

            async def waits_or_is_done() -> bool:
                return closing.done() or bool(await watcher.fetchval(blocked, second.get_server_pid()))

            await eventually(waits_or_is_done)
        assert {row["waiter"] for row in await closing} == {one, two}
    finally:
        for connection in (first, second, watcher):
            await connection.close()


async def test_a_plain_writer_closes_no_circle(tc: Caller) -> None:
    """Who is in no global transaction holds nothing that others wait for."""
    one, two = new_xid(1), new_xid()
    waiting = asyncio.create_task(tc.wait(waits_for(one, two, wait_ms=1000)))
    plain = [asyncio.create_task(tc.wait(waits_for(two, None, wait_ms=200))) for _ in range(3)]
    assert {(await answer).holder for answer in plain} == {Decision.UNDECIDED}
    assert (await waiting).waiter == Decision.UNDECIDED


async def test_a_decided_transaction_is_in_no_circle(tc: Caller) -> None:
    """The wait of one that is rolled back already does not cost another its life."""
    one, two = new_xid(1), new_xid()
    first = asyncio.create_task(tc.wait(waits_for(two, one)))
    await _waiting(tc, 1)
    await tc.say(rollback(one))
    await first
    assert (await tc.wait(waits_for(one, two))).waiter == Decision.UNDECIDED


async def test_the_wait_of_a_caller_who_hangs_up_is_gone(tc: Caller) -> None:
    """Its edge must not be taken for a wait by anybody's circle."""
    waiting = asyncio.create_task(tc.wait(waits_for(new_xid(), new_xid())))
    await _waiting(tc, 1)
    waiting.cancel()

    async def ended() -> bool:
        return bool((await tc.get("/v1/statistics"))[1]["replica"]["waits_open"] == 0)

    await eventually(ended)
    await _waiting(tc, 0)


async def test_the_waits_of_a_replica_that_vanished_expire(tc: Caller, database: str) -> None:
    """Rows of a dead replica count for one lease and are cleaned by the living."""
    one, two = new_xid(1), new_xid()
    connection = await asyncpg.connect(database)
    try:
        insert = (
            "INSERT INTO tc.wait (wait_id, replica, holder, waiter, resource, expires_at)"
            " VALUES (gen_random_uuid(), gen_random_uuid(), $1, $2, 'capacity', now() + $3::interval)"
        )
        await connection.execute(insert.replace("$3::interval", "interval '-1 s'"), two, one)
        assert (await tc.wait(waits_for(one, two, wait_ms=1000))).waiter == Decision.UNDECIDED
        waiting = asyncio.create_task(tc.wait(waits_for(one, two)))

        async def cleaned() -> bool:
            return bool(await connection.fetchval("SELECT count(*) = 1 FROM tc.wait"))

        await eventually(cleaned)
        await tc.say(commit(one))
        await waiting
    finally:
        await connection.close()


async def test_the_victim_of_a_deadlock_is_undone_in_its_resources(tc: Caller) -> None:
    """Losing a deadlock is a rollback like any other: the resources hear of it."""
    old, young, branch = new_xid(1), new_xid(), branch_of("capacity")
    async with resource_at("capacity", tc) as capacity:
        await tc.say(begin(old), begin(young))
        await tc.say(register(young, branch))
        first = asyncio.create_task(tc.wait(waits_for(young, old)))
        assert (await tc.wait(waits_for(old, young))).waiter == Decision.ROLLED_BACK
        assert (await first).holder == Decision.ROLLED_BACK
        await eventually(lambda: young in capacity.xids())


async def test_a_wait_for_itself_is_refused_with_the_reason(tc: Caller) -> None:
    """A transaction is never blocked by its own rows."""
    xid = new_xid()
    body = msgspec.json.encode(waits_for(xid, xid))
    async with tc.http.post(f"{tc.url}/v1/wait", data=body, headers=tc.headers) as response:
        assert response.status == 400
        assert "does not wait for itself" in (await response.json(content_type=None))["detail"]
