"""The same key and request get the same answer, once done, and never the answer of what was undone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, cast
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from coordinator.protocol.ids import BranchId, Xid
from services.kit.database import Store
from services.kit.idempotency import KEPT_H, LEASE_S, Keyed, Reply, keyed, once, sweep
from services.kit.problems import Problem, conflict
from services.kit.runtime import Runtime
from tests.support.services import eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")

BODY = {"amount_cents": 100}
EFFECT = text("INSERT INTO outbox (id, queue, actor, args) VALUES (gen_random_uuid(), :actor, 'effect', '{}')")
Work = Callable[[Keyed], Awaitable[Reply]]


def asked(actor: UUID, body: Any = BODY, *, key: str = "k-1", path: str = "/api/orders") -> Keyed:
    return keyed(actor, key, "POST", path, body)


def effect_of(request: Keyed, answer: Any = "done") -> Callable[[AsyncSession], Awaitable[Reply]]:
    async def work(session: AsyncSession) -> Reply:
        await session.execute(EFFECT, {"actor": str(request.actor)})
        return await request.keep(session, 201, {"answer": answer})

    return work


async def effects(runtime: Runtime, actor: UUID) -> int:
    async def count(session: AsyncSession) -> int:
        found = text("SELECT count(*) FROM outbox WHERE queue = :actor")
        return int(await session.scalar(found, {"actor": str(actor)}) or 0)

    return await runtime.store.read(count)


def locally(runtime: Runtime) -> Work:
    return lambda request: runtime.store.local(effect_of(request))


async def test_the_same_key_and_request_get_the_same_answer_and_one_effect(runtime: Runtime) -> None:
    """A repeat is answered from what was kept, and says so."""
    actor = uuid4()
    first = await once(runtime.store, asked(actor), locally(runtime))
    again = await once(runtime.store, asked(actor), locally(runtime))
    assert (first.status, first.body, first.replayed) == (201, {"answer": "done"}, False)
    assert (again.status, again.body, again.replayed) == (201, {"answer": "done"}, True)
    assert await effects(runtime, actor) == 1


async def test_a_key_belongs_to_one_person(runtime: Runtime) -> None:
    """Two people with the same key do not meet."""
    for actor in (uuid4(), uuid4()):
        assert not (await once(runtime.store, asked(actor), locally(runtime))).replayed


@pytest.mark.parametrize("other", [{"body": {"amount_cents": 101}}, {"path": "/api/payments"}])
async def test_a_key_that_was_used_for_another_request_is_a_422(runtime: Runtime, other: dict[str, Any]) -> None:
    """Another body or path with the same key does nothing."""
    actor = uuid4()
    await once(runtime.store, asked(actor), locally(runtime))
    with pytest.raises(Problem) as refused:
        await once(runtime.store, asked(actor, **other), locally(runtime))
    assert (refused.value.status, refused.value.code) == (422, "idempotency-conflict")
    assert await effects(runtime, actor) == 1


async def test_a_trailing_slash_and_the_order_of_members_make_no_other_request() -> None:
    """What the server treats alike has one hash."""
    actor = uuid4()
    one = keyed(actor, "k", "POST", "/api/orders", {"a": 1, "b": 2})
    assert keyed(actor, "k", "POST", "/api/orders/", {"b": 2, "a": 1}).request_hash == one.request_hash


async def test_while_the_first_is_running_the_repeat_is_a_409(runtime: Runtime) -> None:
    """It is told when to come again, and then gets the answer."""
    actor, inside, go_on = uuid4(), asyncio.Event(), asyncio.Event()

    async def slow(request: Keyed) -> Reply:
        inside.set()
        await go_on.wait()
        return await runtime.store.local(effect_of(request))

    first = asyncio.create_task(once(runtime.store, asked(actor), slow))
    await inside.wait()
    with pytest.raises(Problem) as refused:
        await once(runtime.store, asked(actor), locally(runtime))
    go_on.set()
    assert (refused.value.status, refused.value.code) == (409, "idempotency-in-flight")
    assert refused.value.headers["Retry-After"] == "1"
    assert not (await first).replayed
    assert (await once(runtime.store, asked(actor), locally(runtime))).replayed
    assert await effects(runtime, actor) == 1


async def test_many_at_once_with_one_key_have_one_effect(runtime: Runtime) -> None:
    """Whoever does not get the answer is told to come again."""
    actor = uuid4()
    outcomes = await asyncio.gather(
        *(once(runtime.store, asked(actor), locally(runtime)) for _ in range(10)), return_exceptions=True
    )
    assert await effects(runtime, actor) == 1
    refused = [found for found in outcomes if not isinstance(found, Reply)]
    assert all(isinstance(found, Problem) and found.code == "idempotency-in-flight" for found in refused)
    assert len([found for found in outcomes if isinstance(found, Reply) and not found.replayed]) == 1


async def test_a_repeat_waits_for_the_decision_of_the_transaction_that_kept_the_answer(runtime: Runtime) -> None:
    """The answer of an undecided transaction is not given away; once it is committed, it is."""
    actor, kept, go_on = uuid4(), asyncio.Event(), asyncio.Event()

    async def booking(request: Keyed) -> Reply:
        async with runtime.coordinator.global_transaction("book", timeout_s=30.0):
            reply = await runtime.store.branch(effect_of(request))
            kept.set()
            await go_on.wait()
        return reply

    first = asyncio.create_task(once(runtime.store, asked(actor), booking))
    await kept.wait()
    repeat = asyncio.create_task(once(runtime.store, asked(actor), locally(runtime)))
    done, _ = await asyncio.wait({repeat}, timeout=0.3)
    assert not done
    go_on.set()
    assert not (await first).replayed
    assert (await repeat).replayed
    assert await effects(runtime, actor) == 1


async def test_the_answer_of_a_transaction_that_was_rolled_back_is_not_replayed(runtime: Runtime) -> None:
    """The key is free again, and the repeat does the work."""
    actor = uuid4()

    async def failing(request: Keyed) -> Reply:
        async with runtime.coordinator.global_transaction("book", timeout_s=30.0):
            await runtime.store.branch(effect_of(request, "undone"))
            raise conflict("capacity-exhausted", "no place")

    with pytest.raises(Problem, match="capacity-exhausted"):
        await once(runtime.store, asked(actor), failing)
    assert await effects(runtime, actor) == 0
    reply = await once(runtime.store, asked(actor), locally(runtime))
    assert (reply.replayed, reply.body) == (False, {"answer": "done"})


async def age(runtime: Runtime, actor: UUID, seconds: float) -> None:
    older = text(
        "UPDATE idempotency_keys SET started_at = started_at - make_interval(secs => :seconds) WHERE actor = :actor"
    )

    async def work(session: AsyncSession) -> None:
        await session.execute(older, {"actor": actor, "seconds": seconds})

    await runtime.store.local(work)


async def crashed(runtime: Runtime, request: Keyed) -> None:
    """Leaves the key as a process does that dies between taking it and its effect."""
    taken = text("INSERT INTO idempotency_keys (bucket, actor, key, request_hash) VALUES (0, :actor, :key, :hash)")
    row = {"actor": request.actor, "key": request.key, "hash": request.request_hash}
    await runtime.store.local(lambda session: session.execute(taken, row))


async def test_the_key_of_a_process_that_died_can_be_taken_again_after_its_lease_by_one(runtime: Runtime) -> None:
    """Before the lease ends it counts as running; afterwards one of many repeats does the work."""
    actor = uuid4()
    await crashed(runtime, asked(actor))
    with pytest.raises(Problem, match="idempotency-in-flight"):
        await once(runtime.store, asked(actor), locally(runtime))
    await age(runtime, actor, LEASE_S + 1)
    inside, go_on, most = 0, asyncio.Event(), 0

    async def slow(request: Keyed) -> Reply:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        await go_on.wait()
        inside -= 1
        return await runtime.store.local(effect_of(request))

    repeats = [asyncio.create_task(once(runtime.store, asked(actor), slow)) for _ in range(6)]

    async def all_but_one_refused() -> bool:
        return sum(task.done() for task in repeats) == len(repeats) - 1 or most > 1

    await eventually(all_but_one_refused)
    go_on.set()
    outcomes = await asyncio.gather(*repeats, return_exceptions=True)
    assert most == 1
    assert sum(isinstance(found, Reply) for found in outcomes) == 1
    assert await effects(runtime, actor) == 1


@pytest.mark.parametrize("fails", [False, True])
async def test_who_was_slower_than_the_lease_neither_does_the_work_again_nor_frees_the_key(
    runtime: Runtime, fails: bool
) -> None:
    """The repeat that took the key has the effect, whatever the first one does when it wakes up: goes on, or fails."""
    actor, inside, wake, second_inside, go_on = (
        uuid4(),
        asyncio.Event(),
        asyncio.Event(),
        asyncio.Event(),
        asyncio.Event(),
    )

    async def asleep(request: Keyed) -> Reply:
        inside.set()
        await wake.wait()
        if fails:
            raise conflict("capacity-exhausted", "no place")
        return await runtime.store.local(effect_of(request, "first"))

    async def second(request: Keyed) -> Reply:
        second_inside.set()
        await go_on.wait()
        return await runtime.store.local(effect_of(request, "second"))

    first = asyncio.create_task(once(runtime.store, asked(actor), asleep))
    await inside.wait()
    await age(runtime, actor, LEASE_S + 1)
    repeat = asyncio.create_task(once(runtime.store, asked(actor), second))
    await second_inside.wait()
    wake.set()
    with pytest.raises(Problem, match="capacity-exhausted" if fails else "idempotency-in-flight"):
        await first
    with pytest.raises(Problem, match="idempotency-in-flight"):
        await once(runtime.store, asked(actor), locally(runtime))
    go_on.set()
    assert (await repeat).body == {"answer": "second"}
    assert (await once(runtime.store, asked(actor), locally(runtime))).body == {"answer": "second"}
    assert await effects(runtime, actor) == 1


class Leaving:
    """A store whose database goes away while the work is done."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self.away = False

    async def local(self, work: Callable[[AsyncSession], Awaitable[Any]]) -> Any:
        if self.away:
            raise ConnectionRefusedError
        return await self._runtime.store.local(work)


async def test_a_key_that_cannot_be_freed_does_not_hide_why_the_request_failed(runtime: Runtime) -> None:
    """Whoever asked hears of their own failure; the key is free when its lease ends."""
    actor, store = uuid4(), Leaving(runtime)

    async def failing(request: Keyed) -> Reply:
        store.away = True
        raise conflict("capacity-exhausted", "no place")

    with pytest.raises(Problem, match="capacity-exhausted"):
        await once(cast(Store, store), asked(actor), failing)
    await age(runtime, actor, LEASE_S + 1)
    assert not (await once(runtime.store, asked(actor), locally(runtime))).replayed


async def test_a_key_is_free_at_once_although_its_undone_answer_still_stands(runtime: Runtime) -> None:
    """The row looks done until the undo has come: whoever frees the key waits for that instead of leaving it taken."""
    actor = uuid4()

    async def half_done(request: Keyed) -> Reply:
        # What a process leaves whose transaction is rolled back while nobody has undone its branch yet.
        deadline_ms = int((time.time() + 1.0) * 1000)
        with runtime.coordinator.participant(Xid(uuid4()), BranchId(uuid4()), deadline_ms):
            await runtime.store.branch(effect_of(request, "undone"))
        raise conflict("capacity-exhausted", "no place")

    with pytest.raises(Problem, match="capacity-exhausted"):
        await once(runtime.store, asked(actor), half_done)
    assert (await once(runtime.store, asked(actor), locally(runtime))).body == {"answer": "done"}
    assert await effects(runtime, actor) == 1


@pytest.mark.parametrize("key", [None, "", "x" * 201, "a\nb"])
async def test_a_key_that_is_missing_or_unusable_is_a_400(key: str | None) -> None:
    """The answer says what to send."""
    with pytest.raises(Problem) as refused:
        keyed(uuid4(), key, "POST", "/api/orders", BODY)
    assert refused.value.status == 400
    assert "Idempotency-Key" in refused.value.detail


async def test_old_keys_are_swept_and_new_ones_kept(runtime: Runtime) -> None:
    """After KEPT_H hours a key is forgotten and may be used anew."""
    old, new = uuid4(), uuid4()
    for actor in (old, new):
        await once(runtime.store, asked(actor), locally(runtime))
    await age(runtime, old, KEPT_H * 3600 + 1)
    await sweep(runtime.store)
    assert not (await once(runtime.store, asked(old), locally(runtime))).replayed
    assert (await once(runtime.store, asked(new), locally(runtime))).replayed
