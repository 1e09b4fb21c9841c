"""Global transactions from the side that begins and decides them."""

# ruff: noqa: PT012 - what a block does when it is left by an error is what is tested here

from __future__ import annotations

import asyncio

import pytest

from coordinator.client import (
    Coordinator,
    CoordinatorUnavailable,
    DeadlinePassed,
    NoGlobalTransaction,
    OutcomeUnknown,
    Propagation,
    TransactionRolledBack,
    current,
)
from tests.integration.coordinator.client.proxies import Fate, http_proxy
from tests.integration.coordinator.client.world import Bank, TcProcess, add_east, add_west, open_bank
from tests.support.servers import TestPostgres, free_port

STEPS = ("before", "in east", "between", "in west", "after")


class Planned(Exception):
    """The failure that a test makes."""


async def failing_transfer(bank: Bank, fails_at: str) -> None:
    """A transfer that fails at one of STEPS."""

    def step(name: str) -> None:
        if name == fails_at:
            raise Planned

    async def east(session: object) -> None:
        await add_east(-10)(session)  # type: ignore[arg-type]
        step("in east")

    async def west(connection: object) -> None:
        await add_west(10)(connection)
        step("in west")

    async with bank.coordinator.global_transaction("transfer"):
        step("before")
        await bank.coordinator.run_branch(bank.east, east)
        step("between")
        await bank.coordinator.run_branch(bank.west, west)
        step("after")


async def balances(bank: Bank) -> tuple[int, int]:
    return await bank.balance(bank.east_dsn), await bank.balance(bank.west_dsn)


async def test_a_committed_transaction_keeps_all_of_its_branches(bank: Bank) -> None:
    """After the block both databases have changed, and soon no lock is left."""
    await bank.transfer(10)
    assert await balances(bank) == (90, 110)
    await bank.quiet()


@pytest.mark.parametrize("step", STEPS)
async def test_a_failure_at_any_step_leaves_all_undone_when_the_caller_hears_of_it(bank: Bank, step: str) -> None:
    """The undo is done before the exception leaves the block, and the exception is the original one."""
    with pytest.raises(Planned):
        await failing_transfer(bank, step)
    assert await balances(bank) == (100, 100)
    assert await bank.locks(bank.east_dsn) == await bank.locks(bank.west_dsn) == 0
    await bank.quiet()


async def test_a_transaction_without_branches_says_nothing_to_anybody() -> None:
    """It works with no coordinator there at all."""
    coordinator = Coordinator([f"http://127.0.0.1:{free_port()}"])
    async with coordinator, coordinator.global_transaction("nothing") as tx:
        assert tx.branches == ()
        assert current() is not None
    assert current() is None


async def test_the_end_of_each_transaction_is_told_with_its_outcome(postgres: TestPostgres, tc: TcProcess) -> None:
    """Committed, rolled back by an error, rolled back by its own mark; one without branches is nobody's news."""
    heard: list[tuple[str, str]] = []
    async with open_bank(postgres, tc, entered=False) as bank:
        coordinator = Coordinator([tc.url], tc.tokens(), on_end=lambda name, outcome: heard.append((name, outcome)))
        east = coordinator.resource(bank.east.name, bank.engine)
        async with coordinator:
            async with coordinator.global_transaction("good"):
                await coordinator.run_branch(east, add_east(1))
            with pytest.raises(Planned):
                async with coordinator.global_transaction("bad"):
                    await coordinator.run_branch(east, add_east(1))
                    raise Planned
            with pytest.raises(TransactionRolledBack):
                async with coordinator.global_transaction("marked") as tx:
                    await coordinator.run_branch(east, add_east(1))
                    tx.mark_rollback_only("no")
            async with coordinator.global_transaction("empty"):
                pass
    assert heard == [("good", "committed"), ("bad", "rolled_back"), ("marked", "rolled_back")]


async def test_the_happy_path_adds_one_message_the_decision(postgres: TestPostgres, tc: TcProcess) -> None:
    """One list with one message in it is what the block waits for; nothing is said about the branch before it works."""
    async with http_proxy(tc.url) as proxy, open_bank(postgres, tc, entered=False) as bank:
        coordinator = Coordinator([proxy.url], tc.tokens())
        east = coordinator.resource(bank.east.name, bank.engine)
        async with coordinator:
            async with coordinator.global_transaction("one") as tx:
                await coordinator.run_branch(east, add_east(1))
                xid = str(tx.xid).encode()
            # On a slow machine the hints may have gone out in a list of their own, which nobody waits for.
            [said] = [body for path, body in proxy.seen if xid in body and b'"decide"' in body]
            assert said.count(b'"type":') == 1


async def test_a_cancelled_block_is_rolled_back(bank: Bank) -> None:
    """Cancelling rolls back to the end before CancelledError goes on."""
    reached = asyncio.Event()

    async def work() -> None:
        async with bank.coordinator.global_transaction("slow"):
            await bank.coordinator.run_branch(bank.east, add_east(-10))
            reached.set()
            await asyncio.sleep(60)

    task = asyncio.create_task(work())
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await balances(bank) == (100, 100)
    await bank.quiet()


async def test_a_branch_cancelled_in_its_statement_leaves_nothing_and_a_usable_pool(bank: Bank) -> None:
    """The connection of a cancelled branch serves the next one."""

    async def work(connection: object) -> None:
        await add_west(10)(connection)
        await connection.execute("SELECT pg_sleep(60)")  # type: ignore[attr-defined]

    async def whole() -> None:
        async with bank.coordinator.global_transaction("slow"):
            await bank.coordinator.run_branch(bank.west, work)

    for _ in range(3):
        task = asyncio.create_task(whole())
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await bank.transfer(1)
    await bank.quiet()
    assert await balances(bank) == (99, 101)


async def test_a_transaction_marked_rollback_only_rolls_back_and_says_why(bank: Bank) -> None:
    """The block's end raises TransactionRolledBack with the reason that was given."""
    with pytest.raises(TransactionRolledBack, match="second thoughts"):
        async with bank.coordinator.global_transaction("marked") as tx:
            await bank.coordinator.run_branch(bank.east, add_east(-10))
            tx.mark_rollback_only("second thoughts")
    assert await balances(bank) == (100, 100)


async def test_a_commit_past_the_deadline_is_refused_and_undone(bank: Bank) -> None:
    """A block that takes longer than its time-out ends rolled back as timed_out."""
    with pytest.raises(TransactionRolledBack) as caught:
        async with bank.coordinator.global_transaction("slow", timeout_s=0.5):
            await bank.coordinator.run_branch(bank.east, add_east(-10))
            await asyncio.sleep(0.8)
    assert caught.value.reason == "timed_out"
    await bank.quiet()
    assert await balances(bank) == (100, 100)


async def test_no_branch_starts_after_the_deadline(bank: Bank) -> None:
    """The client refuses it before anything is sent."""
    with pytest.raises(DeadlinePassed):
        async with bank.coordinator.global_transaction("slow", timeout_s=0.1):
            await asyncio.sleep(0.2)
            await bank.coordinator.run_branch(bank.east, add_east(-10))


async def test_a_name_that_the_coordinator_would_refuse_is_refused_at_once(bank: Bank) -> None:
    """Not when the commit is sent, with rows locked until the deadline."""
    for name in ("x" * 201, "two\nlines", "\udcff"):
        with pytest.raises(ValueError, match="printable"):
            bank.coordinator.global_transaction(name)
        with pytest.raises(ValueError, match="no resource name"):
            bank.coordinator.resource(name, bank.pool)


async def test_branches_may_run_at_the_same_time(bank: Bank) -> None:
    """asyncio.gather inside a block makes branches of one transaction."""
    async with bank.coordinator.global_transaction("both") as tx:
        await asyncio.gather(
            bank.coordinator.run_branch(bank.east, add_east(-10)),
            bank.coordinator.run_branch(bank.west, add_west(10)),
            bank.coordinator.run_branch(bank.west, add_west(10, account=2)),
        )
        assert len(tx.branches) == 3
    await bank.quiet()
    assert await balances(bank) == (90, 110)


async def test_a_branch_that_outlives_its_block_makes_it_roll_back(bank: Bank) -> None:
    """Nothing is decided over the head of a running branch."""
    inside, go_on = asyncio.Event(), asyncio.Event()

    async def late(connection: object) -> None:
        await add_west(10)(connection)
        inside.set()
        await go_on.wait()

    with pytest.raises(TransactionRolledBack, match="still running"):
        async with bank.coordinator.global_transaction("leaky"):
            task = asyncio.create_task(bank.coordinator.run_branch(bank.west, late))
            await inside.wait()
            asyncio.get_running_loop().call_later(0.2, go_on.set)
    await task
    with pytest.raises(NoGlobalTransaction):
        await bank.coordinator.run_branch(bank.west, add_west(1))
    await bank.quiet()
    assert await balances(bank) == (100, 100)


async def test_a_decorated_function_is_a_transaction_of_its_own_for_each_caller(bank: Bank) -> None:
    """Concurrent calls have different xids; an exception rolls only its own call back."""

    @bank.coordinator.global_transaction("decorated")
    async def move(amount: int, account: int) -> object:
        await bank.coordinator.run_branch(bank.east, add_east(-amount, account))
        if account == 3:
            raise Planned
        scope = current()
        return None if scope is None else scope.xid

    results = await asyncio.gather(*(move(10, account) for account in (1, 2, 3)), return_exceptions=True)
    assert isinstance(results[2], Planned)
    assert results[0] != results[1]
    await bank.quiet()
    assert [await bank.balance(bank.east_dsn, account) for account in (1, 2, 3)] == [90, 90, 100]


async def test_one_object_is_one_block_at_a_time(bank: Bank) -> None:
    """Entering it again while it is entered is refused."""
    block = bank.coordinator.global_transaction("twice")
    async with block:
        with pytest.raises(RuntimeError, match="entered already"):
            await block.__aenter__()


async def test_a_nested_block_joins_and_its_failure_marks_the_whole(bank: Bank) -> None:
    """REQUIRED joins; an exception that leaves the inner block dooms the outer one, even if it is caught."""
    with pytest.raises(TransactionRolledBack):
        async with bank.coordinator.global_transaction("outer") as outer:
            try:
                async with bank.coordinator.global_transaction("inner") as inner:
                    assert inner.xid == outer.xid
                    await bank.coordinator.run_branch(bank.east, add_east(-10))
                    raise Planned
            except Planned:
                pass
    assert await balances(bank) == (100, 100)


async def test_a_requires_new_block_is_decided_apart(bank: Bank) -> None:
    """The inner one stays although the outer one rolls back."""
    with pytest.raises(Planned):
        async with bank.coordinator.global_transaction("outer") as outer:
            await bank.coordinator.run_branch(bank.east, add_east(-10))
            async with bank.coordinator.global_transaction("own", propagation=Propagation.REQUIRES_NEW) as inner:
                assert inner.xid != outer.xid
                await bank.coordinator.run_branch(bank.west, add_west(5))
            assert current() is not None
            raise Planned
    await bank.quiet()
    assert await balances(bank) == (100, 105)


async def test_the_other_propagations_do_what_they_say(bank: Bank) -> None:
    """SUPPORTS, NOT_SUPPORTED, NEVER and MANDATORY, inside a transaction and outside."""
    block = bank.coordinator.global_transaction
    for propagation in (Propagation.SUPPORTS, Propagation.NOT_SUPPORTED, Propagation.NEVER):
        async with block("outside", propagation=propagation) as tx:
            assert not tx.running
            with pytest.raises(NoGlobalTransaction):
                _ = tx.xid
    with pytest.raises(NoGlobalTransaction):
        async with block("outside", propagation=Propagation.MANDATORY):
            pass
    async with block("outer") as outer:
        for propagation in (Propagation.SUPPORTS, Propagation.MANDATORY):
            async with block("inside", propagation=propagation) as inner:
                assert inner.xid == outer.xid
        async with block("inside", propagation=Propagation.NOT_SUPPORTED) as inner:
            assert not inner.running
            assert current() is None
        with pytest.raises(NoGlobalTransaction):
            async with block("inside", propagation=Propagation.NEVER):
                pass


@pytest.mark.parametrize("fate", [Fate.LOSE_ANSWER, Fate.LOSE_REQUEST, Fate.TWICE])
async def test_a_commit_survives_lost_and_repeated_messages(postgres: TestPostgres, tc: TcProcess, fate: Fate) -> None:
    """The decision is repeated until it is answered, and the first one wins."""
    async with http_proxy(tc.url) as proxy, open_bank(postgres, tc, entered=False) as bank:
        faults = 2 if fate is not Fate.TWICE else 10**6
        hit: list[bytes] = []

        def fates(path: str, body: bytes) -> Fate:
            if (b'"decide"' in body or fate is Fate.TWICE) and len(hit) < faults:
                hit.append(body)
                return fate
            return Fate.PASS

        proxy.fate = fates
        coordinator = Coordinator([proxy.url], tc.tokens())
        bank.coordinator = coordinator
        bank.east = coordinator.resource(bank.east.name, bank.engine)
        bank.west = coordinator.resource(bank.west.name, bank.pool)
        async with coordinator:
            await bank.transfer(10)
            assert await balances(bank) == (90, 110)
            with pytest.raises(Planned):
                await failing_transfer(bank, "after")
            assert await balances(bank) == (90, 110)
            await bank.quiet()
        assert hit


async def test_a_commit_that_nobody_answers_ends_as_unknown_and_the_rows_stay_locked(
    postgres: TestPostgres, tc: TcProcess
) -> None:
    """OutcomeUnknown comes after deadline and grace; nothing is undone by the client on its own."""
    async with http_proxy(tc.url) as proxy, open_bank(postgres, tc, entered=False) as bank:
        coordinator = Coordinator([proxy.url], tc.tokens())
        east = coordinator.resource(bank.east.name, bank.engine)
        proxy.fate = lambda path, body: Fate.LOSE_REQUEST
        async with coordinator:
            with pytest.raises(OutcomeUnknown):
                async with coordinator.global_transaction("unheard", timeout_s=0.3):
                    await coordinator.run_branch(east, add_east(-10))
            assert await bank.locks(bank.east_dsn) == 1
            proxy.fate = lambda path, body: Fate.PASS
            await bank.quiet()
        assert await balances(bank) == (100, 100)


async def test_a_second_replica_takes_over_when_the_first_is_gone(postgres: TestPostgres, tc: TcProcess) -> None:
    """With several URLs one that answers is enough."""
    async with open_bank(postgres, tc, entered=False) as bank:
        coordinator = Coordinator([f"http://127.0.0.1:{free_port()}", tc.url], tc.tokens())
        bank.coordinator = coordinator
        bank.east = coordinator.resource(bank.east.name, bank.engine)
        bank.west = coordinator.resource(bank.west.name, bank.pool)
        async with coordinator:
            await bank.transfer(10)
            await bank.quiet()
        assert await balances(bank) == (90, 110)


async def test_a_rollback_with_the_coordinator_away_is_finished_by_the_settle_loop(
    postgres: TestPostgres, own_tc: TcProcess
) -> None:
    """The caller gets its own exception; presumed abort does the rest when the coordinator is back."""
    own_tc.start()
    async with open_bank(postgres, own_tc) as bank:
        with pytest.raises(Planned):
            async with bank.coordinator.global_transaction("alone", timeout_s=1.0):
                await bank.coordinator.run_branch(bank.east, add_east(-10))
                own_tc.kill()
                raise Planned
        own_tc.start()
        await bank.quiet()
        assert await balances(bank) == (100, 100)


async def test_a_coordinator_that_is_not_entered_says_so() -> None:
    """Opening a transaction before `async with coordinator` is a clear error."""
    coordinator = Coordinator(["http://127.0.0.1:1"])
    with pytest.raises(CoordinatorUnavailable, match="async with coordinator"):
        async with coordinator.global_transaction("early"):
            pass
