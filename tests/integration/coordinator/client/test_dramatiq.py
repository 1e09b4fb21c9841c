"""A transaction that travels by message: the sender waits for the worker's branches, or they are undone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import asyncpg
import dramatiq
import pytest
from dramatiq.asyncio import get_event_loop_thread
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import AsyncIO
from dramatiq.results import Results
from dramatiq.results.backends import StubBackend

from coordinator.client import BranchConnection, Coordinator, current
from coordinator.client.contrib.dramatiq import OPTION, TransactionMiddleware, absorb_branches, made_branches
from tests.integration.coordinator.client.world import Bank, add_east, add_west

RESULT_TIMEOUT_MS = 10_000
RESULTS = StubBackend()


@dataclass
class Post:
    """A broker with one worker, whose actor adds to a balance in the west."""

    broker: StubBroker
    deposit: Any
    peek: Any


@pytest.fixture
def broker() -> Iterator[StubBroker]:
    broker = StubBroker(middleware=[])
    for middleware in (AsyncIO(), Results(backend=RESULTS), TransactionMiddleware()):
        broker.add_middleware(middleware)
    yield broker
    broker.close()


@pytest.fixture
async def post(bank: Bank, broker: StubBroker) -> AsyncIterator[Post]:
    """The worker has a Coordinator of its own, entered in the loop in which its actors run."""
    coordinator = Coordinator([bank.tc.url], bank.tc.tokens())
    worker_side: dict[str, Any] = {}

    async def open_worker_side() -> None:
        pool = await asyncpg.create_pool(bank.west_dsn, connection_class=BranchConnection, min_size=1, max_size=4)
        worker_side["pool"], worker_side["west"] = pool, coordinator.resource(bank.west.name, pool)
        await coordinator.__aenter__()

    async def close_worker_side() -> None:
        await coordinator.__aexit__(None, None, None)
        worker_side["pool"].terminate()

    @dramatiq.actor(broker=broker, store_results=True)
    async def deposit(amount: int) -> str:
        await coordinator.run_branch(worker_side["west"], add_west(amount), result_type=int)
        return made_branches()

    @dramatiq.actor(broker=broker, store_results=True)
    async def peek() -> bool:
        return current() is not None

    worker = dramatiq.Worker(broker, worker_timeout=50, worker_threads=2)
    await asyncio.to_thread(worker.start)
    loop_thread = get_event_loop_thread()
    assert loop_thread is not None
    await asyncio.to_thread(loop_thread.run_coroutine, open_worker_side())
    try:
        yield Post(broker, deposit, peek)
    finally:
        await asyncio.to_thread(loop_thread.run_coroutine, close_worker_side())
        await asyncio.to_thread(worker.stop)


async def result_of(message: Any) -> Any:
    return await asyncio.to_thread(message.get_result, backend=RESULTS, block=True, timeout=RESULT_TIMEOUT_MS)


async def test_a_message_that_is_waited_for_is_part_of_the_transaction(bank: Bank, post: Post) -> None:
    """Its branch is absorbed, named by the decision, and stays."""
    async with bank.coordinator.global_transaction("deposit") as tx:
        await bank.coordinator.run_branch(bank.east, add_east(-10))
        absorb_branches(await result_of(post.deposit.send(10)))
        assert len(tx.branches) == 2
    await bank.quiet()
    assert (await bank.balance(bank.east_dsn), await bank.balance(bank.west_dsn)) == (90, 110)


async def test_a_message_that_comes_twice_takes_effect_once(bank: Bank, post: Post) -> None:
    """The second delivery has the same call id and gets the first answer."""
    async with bank.coordinator.global_transaction("deposit") as tx:
        message = post.deposit.send(10)
        first = await result_of(message)
        post.broker.enqueue(message.copy())
        await asyncio.to_thread(post.broker.join, "default", timeout=RESULT_TIMEOUT_MS)
        absorb_branches(first)
        assert len(tx.branches) == 1
    await bank.quiet()
    assert await bank.balance(bank.west_dsn) == 110


async def test_a_message_that_nobody_waits_for_is_undone(bank: Bank, post: Post) -> None:
    """The decision does not name its branch, so it is an orphan."""
    async with bank.coordinator.global_transaction("careless"):
        await bank.coordinator.run_branch(bank.east, add_east(-10))
        message = post.deposit.send(10)
    await result_of(message)
    await bank.quiet()
    assert (await bank.balance(bank.east_dsn), await bank.balance(bank.west_dsn)) == (90, 100)


async def test_a_message_outside_a_transaction_is_a_plain_one_and_nothing_leaks(bank: Bank, post: Post) -> None:
    """No option is added, and the worker's context is clean after a transactional message."""
    async with bank.coordinator.global_transaction("look"):
        inside = post.peek.send()
        assert OPTION in inside.options
        assert await result_of(inside) is True
    for _ in range(4):  # every worker thread gets its turn
        outside = post.peek.send()
        assert OPTION not in outside.options
        assert await result_of(outside) is False
