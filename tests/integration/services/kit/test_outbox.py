"""Messages leave after the change that they tell of, and never for a change that was undone."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any
from uuid import UUID, uuid4

import pytest
import structlog
from redis.exceptions import RedisError
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from services.kit import outbox
from services.kit.broker import make_broker
from services.kit.outbox import TAKEN_KEPT_DAYS, Relay, forget_taken, taken_once
from services.kit.runtime import Runtime
from tests.support.servers import free_port
from tests.support.services import eventually, queued
from tests.support.system import System

pytestmark = pytest.mark.asyncio(loop_scope="module")


class Undone(Exception):
    """Makes a global transaction roll back."""


@pytest.fixture
def queue() -> str:
    """A queue of the test's own."""
    return f"test-{uuid4()}"


@pytest.fixture
def relay(runtime: Runtime, system: System) -> Iterator[Relay]:
    """The only relay of the database."""
    broker = make_broker(system.redis_url, processing=False)
    yield Relay(runtime.store, broker, runtime.cache)
    broker.close()


async def send(session: AsyncSession, runtime: Runtime, queue: str, **options: Any) -> UUID:
    return await outbox.send(session, runtime.clock, queue=queue, actor="a.b", args={"n": 1}, **options)


async def drain(relay: Relay) -> None:
    while await relay.relay_once():
        pass


async def left(runtime: Runtime, system: System, queue: str, relay: Relay) -> list[dict[str, Any]]:
    await drain(relay)
    return await queued(system.redis_url, queue)


async def test_a_message_of_a_local_change_leaves_with_its_own_id_and_trace(
    runtime: Runtime, system: System, relay: Relay, queue: str
) -> None:
    """The consumer gets the arguments, the id by which repeats are known, and the trace that it belongs to."""
    with structlog.contextvars.bound_contextvars(trace_id="ab" * 16):
        message_id = await runtime.store.local(lambda session: send(session, runtime, queue))
    [message] = await left(runtime, system, queue, relay)
    assert message["kwargs"] == {"n": 1, "message_id": str(message_id)}
    assert (message["actor_name"], message["message_id"]) == ("a.b", str(message_id))
    assert message["options"]["trace_id"] == "ab" * 16


async def test_a_message_waits_as_long_as_its_transaction_is_undecided(
    runtime: Runtime, system: System, relay: Relay, queue: str
) -> None:
    """It is in the table and does not leave; after the commit it does."""
    async with runtime.coordinator.global_transaction("book", timeout_s=30.0):
        await runtime.store.branch(lambda session: send(session, runtime, queue))
        other = f"{queue}-other"
        await runtime.store.local(lambda session: send(session, runtime, other))
        assert len(await left(runtime, system, other, relay)) == 1
        assert await left(runtime, system, queue, relay) == []

    async def sent() -> bool:
        return len(await left(runtime, system, queue, relay)) == 1

    await eventually(sent)


async def test_a_message_of_a_transaction_that_is_rolled_back_never_leaves(
    runtime: Runtime, system: System, relay: Relay, queue: str
) -> None:
    """Its row is gone with the rest of the branch, whenever the relay looks."""

    async def relaying() -> None:
        while True:
            await relay.relay_once()
            await asyncio.sleep(0)

    async def undone() -> None:
        async with runtime.coordinator.global_transaction("book", timeout_s=30.0):
            await runtime.store.branch(lambda session: send(session, runtime, queue))
            await asyncio.sleep(0.1)
            raise Undone

    task = asyncio.create_task(relaying())
    with pytest.raises(Undone):
        await undone()

    async def gone() -> bool:
        rows = await runtime.store.read(outbox_rows(queue))
        return rows == 0

    await eventually(gone)
    task.cancel()
    assert await left(runtime, system, queue, relay) == []


def outbox_rows(queue: str) -> Any:
    async def count(session: AsyncSession) -> int:
        return int(
            await session.scalar(text("SELECT count(*) FROM outbox WHERE queue = :queue"), {"queue": queue}) or 0
        )

    return count


async def test_relays_that_run_at_once_send_every_message_once(
    runtime: Runtime, system: System, relay: Relay, queue: str
) -> None:
    """A row that one relay has taken is skipped by the others."""
    how_many = 300

    async def work(session: AsyncSession) -> None:
        for _ in range(how_many):
            await send(session, runtime, queue)

    await runtime.store.local(work)
    await asyncio.gather(*(drain(relay) for _ in range(4)))
    messages = await left(runtime, system, queue, relay)
    assert len(messages) == len({message["message_id"] for message in messages}) == how_many


async def test_a_message_stays_while_the_broker_is_away(
    runtime: Runtime, system: System, relay: Relay, queue: str
) -> None:
    """What could not be handed over is still there for the next try."""
    await runtime.store.local(lambda session: send(session, runtime, queue))
    away = make_broker(f"redis://127.0.0.1:{free_port()}/0", processing=False)
    with pytest.raises(RedisError):
        await Relay(runtime.store, away, runtime.cache).relay_once()
    assert await runtime.store.read(outbox_rows(queue)) == 1
    assert len(await left(runtime, system, queue, relay)) == 1


async def test_a_delayed_message_goes_to_the_queue_of_delayed_ones(
    runtime: Runtime, system: System, relay: Relay, queue: str
) -> None:
    """With the instant before which no worker takes it."""
    await runtime.store.local(lambda session: send(session, runtime, queue, delay_ms=60_000))
    assert await left(runtime, system, queue, relay) == []
    [message] = await queued(system.redis_url, f"{queue}.DQ")
    assert message["options"]["eta"] - message["message_timestamp"] >= 60_000


async def test_a_cached_value_is_dropped_when_the_change_is_decided(runtime: Runtime, relay: Relay) -> None:
    """Not before: until then the old value is the right one for everybody else."""
    key = f"service:{uuid4()}"

    async def load() -> int:
        return 1

    async def reload() -> int:
        return 2

    await runtime.cache.get_or_load(key, int, load)
    async with runtime.coordinator.global_transaction("change", timeout_s=30.0):
        await runtime.store.branch(lambda session: outbox.cache_drop(session, runtime.clock, key))
        await drain(relay)
        assert await runtime.cache.get_or_load(key, int, reload) == 1

    async def dropped() -> bool:
        await drain(relay)
        return await runtime.cache.get_or_load(key, int, reload) == 2

    await eventually(dropped)


async def test_a_repeated_message_is_taken_once_by_each_consumer(runtime: Runtime) -> None:
    """Also when it comes several times at once; a failed attempt does not count."""
    message_id = uuid4()

    async def failing(session: AsyncSession) -> None:
        assert await taken_once(session, message_id, "a")
        raise Undone

    with pytest.raises(Undone):
        await runtime.store.local(failing)
    takes = (runtime.store.local(lambda session: taken_once(session, message_id, "a")) for _ in range(5))
    assert sorted(await asyncio.gather(*takes)) == [False] * 4 + [True]
    assert await runtime.store.local(lambda session: taken_once(session, message_id, "b"))


async def test_what_was_taken_long_ago_is_forgotten_and_nothing_else(runtime: Runtime) -> None:
    """The inbox does not grow for ever, and remembers for as long as a message can come again."""
    old, new = uuid4(), uuid4()
    for message_id in (old, new):
        await runtime.store.local(lambda session, taken=message_id: taken_once(session, taken, "a"))  # type: ignore[misc]
    older = text("UPDATE inbox SET taken_at = taken_at - make_interval(days => :days) WHERE message_id = :id")
    past = {"days": TAKEN_KEPT_DAYS + 1, "id": old}
    await runtime.store.local(lambda session: session.execute(older, past))
    await forget_taken(runtime.store)
    known = text("SELECT message_id FROM inbox WHERE message_id IN (:old, :new)")
    found = await runtime.store.read(lambda session: session.execute(known, {"old": old, "new": new}))
    assert list(found.scalars()) == [new]
