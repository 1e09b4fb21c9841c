"""Blocks and decorated functions inside one another: who joins, who stands alone, and what ends with what."""

# ruff: noqa: PT012 - what a block does when it is left by an error is what is tested here

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy.exc import DBAPIError

from coordinator.client import (
    BranchRefused,
    LockConflict,
    NoGlobalTransaction,
    Propagation,
    TransactionRolledBack,
    Xid,
    current,
    nesting,
)
from coordinator.protocol.ids import BranchId, uuid7
from tests.integration.coordinator.client.world import OPENING, Bank, add_east, add_west

JOINS, ALONE, WITHOUT, REFUSES = "joins", "alone", "without", "refuses"
TABLE = {
    Propagation.REQUIRED: (JOINS, ALONE),
    Propagation.REQUIRES_NEW: (ALONE, ALONE),
    Propagation.SUPPORTS: (JOINS, WITHOUT),
    Propagation.NOT_SUPPORTED: (WITHOUT, WITHOUT),
    Propagation.NEVER: (REFUSES, WITHOUT),
    Propagation.MANDATORY: (JOINS, REFUSES),
}
"""What each does inside a transaction, and outside."""


class Planned(Exception):
    """The failure that a test makes."""


class Minor(Planned):
    """One that need not undo anything."""


def running() -> Xid | None:
    scope = current()
    return None if scope is None else scope.xid


async def outcome(call: Callable[[], Awaitable[Xid | None]]) -> str:
    """What a call did, seen from where it was called."""
    around = running()
    try:
        xid = await call()
    except NoGlobalTransaction:
        return REFUSES
    finally:
        assert running() == around
    return WITHOUT if xid is None else JOINS if xid == around else ALONE


def callers(bank: Bank, propagation: Propagation) -> list[Callable[[], Awaitable[Xid | None]]]:
    """The same as a decorated function and as a block."""

    @bank.coordinator.global_transaction("decorated", propagation=propagation)
    async def decorated() -> Xid | None:
        return running()

    async def block() -> Xid | None:
        async with bank.coordinator.global_transaction("block", propagation=propagation) as tx:
            assert tx.running == (running() is not None)
            return running()

    return [decorated, block]


@pytest.mark.parametrize("propagation", Propagation)
async def test_each_propagation_inside_and_outside_as_block_and_decorator(bank: Bank, propagation: Propagation) -> None:
    """In a block, in a decorated function, in a task of gather, and as a participant of somebody else's transaction."""
    inside, outside = TABLE[propagation]
    participation = Xid(uuid7(1_900_000_000_000)), BranchId(uuid7(1_900_000_000_001)), 4_000_000_000_000
    for call in callers(bank, propagation):
        assert await outcome(call) == outside
        async with bank.coordinator.global_transaction("outer"):
            assert await outcome(call) == inside
            assert await asyncio.gather(*(outcome(call) for _ in range(3))) == [inside] * 3
        assert await bank.coordinator.global_transaction("outer")(outcome)(call) == inside
        with bank.coordinator.participant(*participation):
            assert await outcome(call) == inside


async def test_tasks_of_one_block_do_not_see_each_others_transactions(bank: Bank) -> None:
    """Gathered calls of three kinds work at the same time, each with its own, and each ends as it should."""
    required, alone, without = (
        bank.coordinator.global_transaction("inner", propagation=propagation)
        for propagation in (Propagation.REQUIRED, Propagation.REQUIRES_NEW, Propagation.NOT_SUPPORTED)
    )

    async def work(account: int, branch: bool = True) -> Xid | None:
        await asyncio.sleep(0)
        run: Any = bank.coordinator.run_branch if branch else bank.coordinator.run_local
        await run(bank.east, add_east(-1, account))
        return running()

    with pytest.raises(Planned):
        async with bank.coordinator.global_transaction("outer") as outer:
            seen = await asyncio.gather(required(work)(1), alone(work)(2), without(work)(3, branch=False))
            assert seen[0] == outer.xid
            assert seen[1] not in (None, outer.xid)
            assert seen[2] is None
            raise Planned
    await bank.quiet()
    assert [await bank.balance(bank.east_dsn, account) for account in (1, 2, 3)] == [100, 99, 99]


async def test_a_new_transaction_that_fails_leaves_the_outer_one_free_to_commit(bank: Bank) -> None:
    """Unlike one that had joined: caught, it changes nothing for the outer one."""

    @bank.coordinator.global_transaction("inner", propagation=Propagation.REQUIRES_NEW)
    async def inner() -> None:
        await bank.coordinator.run_branch(bank.west, add_west(5))
        raise Planned

    async with bank.coordinator.global_transaction("outer"):
        await bank.coordinator.run_branch(bank.east, add_east(-5))
        with pytest.raises(Planned):
            await inner()
        assert await bank.balance(bank.west_dsn) == OPENING
    await bank.quiet()
    assert await bank.balance(bank.east_dsn) == OPENING - 5


@pytest.mark.parametrize("propagation", [Propagation.REQUIRED, Propagation.SUPPORTS, Propagation.MANDATORY])
async def test_a_joined_block_that_fails_dooms_the_whole(bank: Bank, propagation: Propagation) -> None:
    """Also when the failure is caught, and when it came out of a gathered task."""
    joined = bank.coordinator.global_transaction("joined", propagation=propagation)

    async def fail() -> None:
        raise Planned

    with pytest.raises(TransactionRolledBack, match="Planned"):
        async with bank.coordinator.global_transaction("outer"):
            await bank.coordinator.run_branch(bank.east, add_east(-5))
            await asyncio.gather(joined(fail)(), return_exceptions=True)
    assert await bank.balance(bank.east_dsn) == OPENING


@pytest.mark.parametrize("levels", [1, 2])
async def test_a_new_transaction_on_the_outer_ones_row_is_refused_at_once(bank: Bank, levels: int) -> None:
    """It would wait for what waits for it: the error says so, at any depth, in a task too. The outer one goes on."""

    async def nested(depth: int) -> None:
        async with bank.coordinator.global_transaction("inner", propagation=Propagation.REQUIRES_NEW, timeout_s=30):
            if depth == 1:
                await bank.coordinator.run_branch(bank.east, add_east(1))
            else:
                await nested(depth - 1)

    async with bank.coordinator.global_transaction("outer", timeout_s=30) as outer:
        await bank.coordinator.run_branch(bank.east, add_east(-5))
        for refused in (nested(levels), asyncio.gather(nested(levels))):
            with pytest.raises(LockConflict, match="encloses this code") as caught:
                await refused
            assert caught.value.holder == outer.xid
    await bank.quiet()
    await nested(1)
    await bank.quiet()
    assert await bank.balance(bank.east_dsn) == OPENING - 4


async def test_a_plain_write_on_the_outer_ones_row_is_refused_at_once(bank: Bank) -> None:
    """Inside NOT_SUPPORTED as well, where no transaction is running but one is waiting."""
    async with bank.coordinator.global_transaction("outer", timeout_s=30):
        await bank.coordinator.run_branch(bank.east, add_east(-5))
        async with bank.coordinator.global_transaction("plain", propagation=Propagation.NOT_SUPPORTED):
            with pytest.raises(LockConflict, match="encloses this code"):
                await bank.coordinator.run_local(bank.east, add_east(1), wait_s=30)
    await bank.quiet()


async def test_a_transaction_inside_an_open_branch_on_its_row_is_refused(
    bank: Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL would let it wait for ever: a new transaction, a plain write, and a block of its own."""
    monkeypatch.setattr(nesting, "NESTED_LOCK_WAIT_S", 0.1)
    new = bank.coordinator.global_transaction("inner", propagation=Propagation.REQUIRES_NEW)
    plain = bank.coordinator.global_transaction("plain", propagation=Propagation.NOT_SUPPORTED)

    async def block() -> None:
        async with bank.coordinator.branch(bank.engine) as inner:
            await add_east(1)(inner.target)

    async with bank.coordinator.global_transaction("outer"):
        async with bank.coordinator.branch(bank.engine) as branch:
            await add_east(-5)(branch.target)
            with pytest.raises(BranchRefused, match="a branch around this code is open, most likely"):
                await new(bank.coordinator.run_branch)(bank.east, add_east(1))
            with pytest.raises(BranchRefused, match="a branch around this code is open, most likely"):
                await plain(bank.coordinator.run_local)(bank.east, add_east(1))
            with pytest.raises(DBAPIError, match="lock timeout"):
                await new(block)()
            await new(bank.coordinator.run_branch)(bank.east, add_east(1, account=2))
            await new(bank.coordinator.run_branch)(bank.west, add_west(1))
    await bank.quiet()
    assert [await bank.balance(bank.east_dsn, account) for account in (1, 2)] == [OPENING - 5, OPENING + 1]


async def test_the_outer_one_waits_for_rows_of_a_new_transaction_that_has_ended(bank: Bank) -> None:
    """The inner one is decided: its rows are settled and written, not refused."""
    async with bank.coordinator.global_transaction("outer"):
        async with bank.coordinator.global_transaction("inner", propagation=Propagation.REQUIRES_NEW):
            await bank.coordinator.run_branch(bank.east, add_east(-5))
        await bank.coordinator.run_branch(bank.east, add_east(-5))
    await bank.quiet()
    assert await bank.balance(bank.east_dsn) == OPENING - 10


async def test_an_exception_that_need_not_roll_back_commits_and_goes_on(bank: Bank) -> None:
    """As block and as decorator; another exception, and a more specific one, roll back."""
    rules: Any = {"no_rollback_for": (Planned,), "rollback_for": (Minor,)}

    @bank.coordinator.global_transaction("decorated", **rules)
    async def spend(error: BaseException) -> None:
        await bank.coordinator.run_branch(bank.east, add_east(-1))
        raise error

    for error in (Planned(), Minor(), ValueError(), asyncio.CancelledError()):
        with pytest.raises(type(error)):
            await spend(error)
    with pytest.raises(Planned):
        async with bank.coordinator.global_transaction("block", **rules):
            await bank.coordinator.run_branch(bank.east, add_east(-1))
            raise Planned
    await bank.quiet()
    assert await bank.balance(bank.east_dsn) == OPENING - 2


async def test_a_joined_blocks_own_rules_say_whether_its_failure_dooms_the_whole(bank: Bank) -> None:
    """The inner one lets it pass: whether all is committed or nothing is then the outer one's rule."""
    for outer_rules, expected in (({"no_rollback_for": [Planned]}, OPENING - 1), ({}, OPENING - 1)):
        with pytest.raises(Planned):
            async with bank.coordinator.global_transaction("outer", **outer_rules):  # type: ignore[arg-type]
                await bank.coordinator.run_branch(bank.east, add_east(-1))
                async with bank.coordinator.global_transaction("inner", no_rollback_for=[Planned]):
                    raise Planned
        await bank.quiet()
        assert await bank.balance(bank.east_dsn) == expected


async def test_a_rule_does_not_save_what_can_only_roll_back(bank: Bank) -> None:
    """The caller hears that nothing was committed, and of its own exception as the context."""
    with pytest.raises(TransactionRolledBack) as caught:
        async with bank.coordinator.global_transaction("doomed", no_rollback_for=[Planned]) as tx:
            await bank.coordinator.run_branch(bank.east, add_east(-1))
            tx.mark_rollback_only("no")
            raise Planned
    assert isinstance(caught.value.__context__, Planned)
    assert await bank.balance(bank.east_dsn) == OPENING
