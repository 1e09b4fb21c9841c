"""Transactions that want the same rows: waiting, taking over, deadlock, and plain writers."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from coordinator.client import Deadlock, LockConflict, TransactionRolledBack
from coordinator.client.context import bound
from tests.integration.coordinator.client.world import Bank, TcProcess, add_east, add_west, open_bank
from tests.support.servers import TestPostgres


class Planned(Exception):
    """The failure that a test makes."""


async def hold(bank: Bank, held: asyncio.Event, let_go: asyncio.Event, fails: bool) -> None:
    """A transaction that locks account 1 in both databases until it is told to end."""
    async with bank.coordinator.global_transaction("holder"):
        await bank.coordinator.run_branch(bank.east, add_east(-10))
        await bank.coordinator.run_branch(bank.west, add_west(10))
        held.set()
        await let_go.wait()
        if fails:
            raise Planned


@pytest.mark.parametrize("fails", [False, True])
async def test_a_blocked_branch_goes_on_after_the_holders_decision(bank: Bank, fails: bool) -> None:
    """It waits, sees what the holder left (or restored), and commits on top of it."""
    held, let_go = asyncio.Event(), asyncio.Event()
    holder = asyncio.create_task(hold(bank, held, let_go, fails))
    await held.wait()
    blocked = [asyncio.create_task(bank.transfer(1)) for _ in range(3)]
    plain = asyncio.create_task(bank.coordinator.run_local(bank.east, add_east(-5)))
    await asyncio.sleep(0.3)
    assert not any(task.done() for task in (*blocked, plain))
    let_go.set()
    await asyncio.gather(*blocked, plain)
    if fails:
        with pytest.raises(Planned):
            await holder
    else:
        await holder
    moved = 3 if fails else 13
    assert await bank.balance(bank.east_dsn) == 95 - moved
    assert await bank.balance(bank.west_dsn) == 100 + moved
    await bank.quiet()


async def test_a_blocked_branch_settles_the_rows_of_a_decided_holder_itself(
    postgres: TestPostgres, tc: TcProcess
) -> None:
    """Where nobody follows the decision, whoever meets the rows does it and goes on."""
    async with open_bank(postgres, tc) as bank:
        # The holder belongs to another process, which is gone right after its decision.
        settler = bank.coordinator._settlers[bank.east.name]
        settler.follow_soon, kept = lambda settle: asyncio.get_running_loop().create_future(), settler.follow_soon  # type: ignore[method-assign]
        async with bank.coordinator.global_transaction("holder"):
            await bank.coordinator.run_branch(bank.east, add_east(-10))
        settler.follow_soon = kept  # type: ignore[method-assign]
        assert await bank.locks(bank.east_dsn) == 1
        await bank.transfer(1)
        assert await bank.balance(bank.east_dsn) == 89
        await bank.quiet()


async def test_crossing_lock_orders_end_with_one_deadlock_and_one_commit(bank: Bank) -> None:
    """The younger gets Deadlock at once; the other commits; nothing of the loser is left."""
    first_has, second_has = asyncio.Event(), asyncio.Event()

    async def east_then_west() -> None:
        async with bank.coordinator.global_transaction("older"):
            await bank.coordinator.run_branch(bank.east, add_east(-10))
            first_has.set()
            await second_has.wait()
            await bank.coordinator.run_branch(bank.west, add_west(10))

    async def west_then_east() -> None:
        await first_has.wait()
        async with bank.coordinator.global_transaction("younger"):
            await bank.coordinator.run_branch(bank.west, add_west(-20))
            second_has.set()
            await bank.coordinator.run_branch(bank.east, add_east(20))

    older, younger = await asyncio.gather(east_then_west(), west_then_east(), return_exceptions=True)
    assert older is None
    assert isinstance(younger, Deadlock)
    assert await bank.balance(bank.east_dsn) == 90
    assert await bank.balance(bank.west_dsn) == 110
    await bank.quiet()


async def test_a_branch_that_waits_past_its_deadline_gets_the_conflict(bank: Bank) -> None:
    """The error names the holder, and comes about when the deadline comes."""
    async with bank.coordinator.global_transaction("holder") as holder:
        await bank.coordinator.run_branch(bank.east, add_east(-10))
        with bound(None), pytest.raises((LockConflict, TransactionRolledBack)) as caught:
            async with bank.coordinator.global_transaction("waiter", timeout_s=0.4):
                await bank.coordinator.run_branch(bank.east, add_east(-1))
        if isinstance(caught.value, LockConflict):
            assert caught.value.holder == holder.xid
    await bank.quiet()
    assert await bank.balance(bank.east_dsn) == 90


async def test_a_plain_transaction_waits_no_longer_than_it_was_told(bank: Bank) -> None:
    """run_local gives up with a LockConflict that names the holder."""
    async with bank.coordinator.global_transaction("holder") as holder:
        await bank.coordinator.run_branch(bank.west, add_west(-10))
        with bound(None), pytest.raises(LockConflict) as caught:
            await bank.coordinator.run_local(bank.west, add_west(1), wait_s=0.3)
        assert caught.value.holder == holder.xid


async def test_a_plain_transaction_does_not_wait_for_the_transaction_around_it(bank: Bank) -> None:
    """It would wait for itself: the conflict comes at once."""
    async with bank.coordinator.global_transaction("holder") as holder:
        await bank.coordinator.run_branch(bank.west, add_west(-10))
        async with asyncio.timeout(5):
            with pytest.raises(LockConflict) as caught:
                await bank.coordinator.run_local(bank.west, add_west(1), wait_s=60)
        assert caught.value.holder == holder.xid


async def test_fifty_increments_of_one_row_are_fifty_with_plain_writers_alongside(bank: Bank) -> None:
    """Global transactions and plain ones, all at once on one row: none is lost, none is applied twice."""

    async def increment() -> None:
        async with bank.coordinator.global_transaction("increment", timeout_s=60):
            await bank.coordinator.run_branch(bank.east, add_east(1))

    work: list[Any] = [increment() for _ in range(50)]
    work += [bank.coordinator.run_local(bank.east, add_east(1), wait_s=60) for _ in range(10)]
    await asyncio.gather(*work)
    assert await bank.balance(bank.east_dsn) == 160
    await bank.quiet()


async def test_work_that_postgresql_breaks_off_is_run_again(bank: Bank) -> None:
    """A deadlock of local row locks (40P01) and a plain 40001 need no holder to be retried."""
    runs = []

    def crossing(first: int, second: int) -> Any:
        async def work(connection: Any) -> None:
            runs.append(first)
            await add_west(1, first)(connection)
            await asyncio.sleep(0.2)
            await add_west(1, second)(connection)

        return work

    await asyncio.gather(
        bank.coordinator.run_local(bank.west, crossing(1, 2)),
        bank.coordinator.run_local(bank.west, crossing(2, 1)),
    )
    assert len(runs) > 2
    assert await bank.balance(bank.west_dsn, 1) == 102
    assert await bank.balance(bank.west_dsn, 2) == 102


async def test_blocked_branches_survive_a_restart_of_the_coordinator(postgres: TestPostgres, own_tc: TcProcess) -> None:
    """While it is away they keep trying; when it is back they hear the decision."""
    own_tc.start()
    async with open_bank(postgres, own_tc) as bank:
        held, let_go = asyncio.Event(), asyncio.Event()
        holder = asyncio.create_task(hold(bank, held, let_go, fails=False))
        await held.wait()
        blocked = asyncio.create_task(bank.transfer(1))
        await asyncio.sleep(0.2)
        own_tc.kill()
        let_go.set()
        await asyncio.sleep(0.3)
        own_tc.start()
        await asyncio.gather(holder, blocked)
        assert await bank.balance(bank.east_dsn) == 89
        await bank.quiet()
