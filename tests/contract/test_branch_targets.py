"""One suite for everything that a branch can run on: a SQLAlchemy engine and an asyncpg pool keep the same promises."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest

from coordinator.client import BranchRepeated, NoGlobalTransaction, Resource
from coordinator.protocol.ids import BranchId, Xid, uuid7
from tests.integration.coordinator.client.world import OPENING, Bank, add_east, add_west


@dataclass
class Target:
    """One implementation, and how work is written for it."""

    bank: Bank
    resource: Resource[Any]
    dsn: str
    add: Callable[..., Callable[[Any], Awaitable[int]]]

    async def balance(self) -> int:
        """The first account's balance, read past all locks."""
        return await self.bank.balance(self.dsn)


@pytest.fixture(params=["sqlalchemy", "asyncpg"])
def target(request: pytest.FixtureRequest, bank: Bank) -> Target:
    """Each implementation in turn."""
    if request.param == "sqlalchemy":
        return Target(bank, bank.east, bank.east_dsn, add_east)
    return Target(bank, bank.west, bank.west_dsn, add_west)


async def test_a_committed_branch_stays_and_its_lock_goes(target: Target) -> None:
    """After the commit the change is there and nothing is locked."""
    async with target.bank.coordinator.global_transaction("deposit"):
        assert await target.bank.coordinator.run_branch(target.resource, target.add(5)) == OPENING + 5
    await target.bank.quiet()
    assert await target.balance() == OPENING + 5


async def test_an_exception_in_the_block_undoes_the_branch(target: Target) -> None:
    """The caller gets its own exception, and the row as it was."""

    async def deposit_and_fail() -> None:
        async with target.bank.coordinator.global_transaction("deposit"):
            await target.bank.coordinator.run_branch(target.resource, target.add(5))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await deposit_and_fail()
    await target.bank.quiet()
    assert await target.balance() == OPENING


async def test_a_branch_outside_any_global_transaction_is_refused(target: Target) -> None:
    """Nothing is written."""
    with pytest.raises(NoGlobalTransaction):
        await target.bank.coordinator.run_branch(target.resource, target.add(5))
    assert await target.balance() == OPENING


async def test_a_repeated_call_takes_no_effect_twice(target: Target) -> None:
    """The same call meets its own branch: refused, or answered as before where the answer was kept."""
    xid, call = Xid(uuid7(1_900_000_000_000)), BranchId(uuid7(1_900_000_000_001))
    coordinator, deadline_ms = target.bank.coordinator, 4_000_000_000_000
    answers = []
    for _ in range(2):
        with coordinator.participant(xid, call, deadline_ms):
            answers.append(await coordinator.run_branch(target.resource, target.add(5), result_type=int))
    assert answers == [OPENING + 5, OPENING + 5]
    with coordinator.participant(xid, call, deadline_ms), pytest.raises(BranchRepeated):
        await coordinator.run_branch(target.resource, target.add(5))
    assert await target.balance() == OPENING + 5


async def test_plain_and_global_writers_of_one_row_lose_nothing(target: Target) -> None:
    """Ten of each at once: every one waits for its turn, and every change is there."""
    coordinator = target.bank.coordinator

    async def global_one() -> None:
        async with coordinator.global_transaction("deposit"):
            await coordinator.run_branch(target.resource, target.add(1))

    plain = (coordinator.run_local(target.resource, target.add(1)) for _ in range(10))
    await asyncio.gather(*plain, *(global_one() for _ in range(10)))
    await target.bank.quiet()
    assert await target.balance() == OPENING + 20
