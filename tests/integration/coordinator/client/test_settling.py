"""Phase two: repeated, late, after crashes of everybody, and for branches that nobody named."""

# ruff: noqa: PT012 - what a block does when it is left by an error is what is tested here

from __future__ import annotations

import asyncio
import sys
from contextlib import nullcontext
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from coordinator.client import Coordinator, CoordinatorUnavailable, LockConflict, TransactionRolledBack
from coordinator.client.context import Participant, bound
from coordinator.client.phase_two import NO_BRANCH, follow_commits, follow_rollback
from coordinator.client.settle import DATABASE_AWAY
from coordinator.protocol.ids import BranchId, ResourceName, uuid7
from coordinator.protocol.messages import Nudge, Settle
from coordinator.protocol.statuses import BranchState, Decision
from tests.integration.coordinator.client.world import ROOT, Bank, TcProcess, add_east, add_west, open_bank, until
from tests.support.servers import TestPostgres

EAST = ResourceName("east")

ABANDONED = """
import asyncio, sys
import asyncpg
from coordinator.client import BranchConnection, Coordinator, SigningKey, TokenMaker

async def main(url, dsn, name, key):
    pool = await asyncpg.create_pool(dsn, connection_class=BranchConnection, min_size=1)
    coordinator = Coordinator([url], TokenMaker("bank", SigningKey.from_jwk(key)))
    west = coordinator.resource(name, pool)
    async with coordinator:
        async with coordinator.global_transaction("abandoned", timeout_s=1.5):
            await coordinator.run_branch(west, lambda c: c.execute("UPDATE account SET balance = 0 WHERE id = 1"))
            print("open", flush=True)
            await asyncio.sleep(60)

asyncio.run(main(*sys.argv[1:]))
"""


async def nothing_named(xid: UUID) -> dict[UUID, str]:
    return {}


async def settle_by_hand(bank: Bank, settle: Settle) -> dict[UUID, int]:
    connection = await asyncpg.connect(bank.east_dsn)
    try:
        if settle.decision == Decision.COMMITTED:
            [confirm] = (await follow_commits(connection, EAST, [settle], nothing_named)).confirms
        else:
            confirm = await follow_rollback(connection, EAST, settle.xid)
        return dict(confirm.states)
    finally:
        await connection.close()


def participant(bank: Bank, timeout_s: float = 30) -> Participant:
    now_ms = int(bank.coordinator._clock() * 1000)
    return Participant(uuid7(now_ms), BranchId(uuid7(now_ms)), now_ms + int(timeout_s * 1000))  # type: ignore[arg-type]


async def test_following_a_decision_twice_and_at_once_changes_nothing_more(bank: Bank) -> None:
    """Forget and undo give the same states every time, also when they run at the same time."""
    committed, rolled_back = participant(bank), participant(bank)
    with bound(committed):
        await bank.coordinator.run_branch(bank.east, add_east(-10, 1))
    with bound(rolled_back):
        await bank.coordinator.run_branch(bank.east, add_east(-10, 2))
    branch = committed.branches[0].branch
    forget = Settle(committed.xid, Decision.COMMITTED, [branch])
    undo = Settle(rolled_back.xid, Decision.ROLLED_BACK, [])
    answers = await asyncio.gather(*(settle_by_hand(bank, settle) for settle in (forget, undo) * 3))
    answers += [await settle_by_hand(bank, settle) for settle in (forget, undo)]
    assert all(answer == {branch: BranchState.FORGOTTEN} for answer in answers[0::2])
    for answer in answers[1::2]:
        assert answer[rolled_back.branches[0].branch] == BranchState.UNDONE
        assert answer[NO_BRANCH] == BranchState.TOMBSTONE
    assert await bank.balance(bank.east_dsn, 1) == 90
    assert await bank.balance(bank.east_dsn, 2) == 100
    assert await bank.locks(bank.east_dsn) == 0


async def test_a_branch_that_its_commit_did_not_name_is_undone(bank: Bank) -> None:
    """An orphan leaves no trace, the named branches stay."""
    async with bank.coordinator.global_transaction("parent") as tx:
        await bank.coordinator.run_branch(bank.east, add_east(-10, 1))
        orphan = Participant(tx.xid, BranchId(uuid7(0)), tx.deadline_ms)
        with bound(orphan):  # its answer never reaches the parent
            await bank.coordinator.run_branch(bank.east, add_east(-10, 2))
            await bank.coordinator.run_branch(bank.west, add_west(10))
    await bank.quiet()
    assert await bank.balance(bank.east_dsn, 1) == 90
    assert await bank.balance(bank.east_dsn, 2) == 100
    assert await bank.balance(bank.west_dsn) == 100


async def test_an_orphan_that_comes_after_its_transaction_was_settled_is_undone_too(bank: Bank) -> None:
    """What is remembered of a settled transaction does not hide a late branch from the sweep."""
    async with bank.coordinator.global_transaction("parent") as tx:
        await bank.coordinator.run_branch(bank.east, add_east(-10, 1))
    await bank.quiet()
    with bound(Participant(tx.xid, BranchId(uuid7(0)), tx.deadline_ms)):
        await bank.coordinator.run_branch(bank.east, add_east(-10, 2))
    assert await bank.balance(bank.east_dsn, 2) == 90
    await bank.quiet()
    assert await bank.balance(bank.east_dsn, 1) == 90
    assert await bank.balance(bank.east_dsn, 2) == 100


async def test_a_database_with_two_names_undoes_nothing_that_is_committed(bank: Bank) -> None:
    """Before an orphan is undone the coordinator is asked under which name it may have been committed."""
    settler = bank.coordinator._settlers[bank.west.name]
    settler.follow_soon, kept = lambda settle: asyncio.get_running_loop().create_future(), settler.follow_soon  # type: ignore[method-assign]
    other = Coordinator([bank.tc.url], bank.tc.tokens())
    other.resource(f"alias-{bank.west.name}", bank.pool)
    async with bank.coordinator.global_transaction("named") as tx:
        await bank.coordinator.run_branch(bank.west, add_west(10))
        with bound(Participant(tx.xid, BranchId(uuid7(0)), tx.deadline_ms)):  # an orphan all the same
            await bank.coordinator.run_branch(bank.west, add_west(10, 2))
    async with other:
        await bank.quiet()
    settler.follow_soon = kept  # type: ignore[method-assign]
    assert await bank.balance(bank.west_dsn, 1) == 110
    assert await bank.balance(bank.west_dsn, 2) == 100


async def test_branches_of_a_killed_process_are_undone_after_the_deadline(bank: Bank) -> None:
    """Whoever shares the resource finds them and asks; past the deadline the answer is rollback."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", ABANDONED, bank.tc.url, bank.west_dsn, bank.west.name, bank.tc.keys["bank"].private_jwk(),
        stdout=asyncio.subprocess.PIPE, cwd=ROOT,
    )  # fmt: skip
    assert process.stdout is not None
    assert await process.stdout.readline() == b"open\n"
    assert await bank.balance(bank.west_dsn) == 0
    process.kill()
    await process.wait()
    await bank.quiet()
    assert await bank.balance(bank.west_dsn) == 100


async def test_a_coordinator_killed_between_branch_and_decision_leaves_nothing_stuck(
    postgres: TestPostgres, own_tc: TcProcess
) -> None:
    """Started again, it takes the decision that was waiting for it, and both databases follow."""
    own_tc.start()
    async with open_bank(postgres, own_tc) as bank:
        async with bank.coordinator.global_transaction("survivor", timeout_s=30):
            await bank.coordinator.run_branch(bank.east, add_east(-10))
            own_tc.kill()
            await bank.coordinator.run_branch(bank.west, add_west(10))
            asyncio.get_running_loop().run_in_executor(None, own_tc.start)
        assert await bank.balance(bank.east_dsn) == 90
        assert await bank.balance(bank.west_dsn) == 110
        await bank.quiet()


async def test_the_settle_loop_survives_its_database_being_cut_off(bank: Bank, postgres: TestPostgres) -> None:
    """All of its connections are killed; it opens new ones and goes on."""
    kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{}' AND pid <> pg_backend_pid()"
    for dsn in (bank.east_dsn, bank.west_dsn):
        await asyncio.to_thread(postgres.execute, kill.format(dsn.rsplit("/", 1)[1]))
    scope = participant(bank, timeout_s=0.5)
    with bound(scope):
        for _ in range(3):
            try:
                await bank.coordinator.run_branch(bank.west, add_west(10))
                break
            except DATABASE_AWAY:
                continue
    await bank.quiet()
    assert await bank.balance(bank.west_dsn) == 100


async def test_a_nudge_settles_now_and_again_and_answers_with_the_states(bank: Bank) -> None:
    """Told twice, it answers the same twice; for a resource elsewhere it says so."""
    scope = participant(bank)
    with bound(scope):
        await bank.coordinator.run_branch(bank.east, add_east(-10))
    branch = scope.branches[0].branch
    nudge = Nudge(bank.east.name, [Settle(scope.xid, Decision.ROLLED_BACK, [])])
    for _ in range(2):
        [confirm] = await bank.coordinator.nudged(nudge)
        assert (branch, int(BranchState.UNDONE)) in confirm.states
    assert await bank.balance(bank.east_dsn) == 100
    assert await bank.coordinator.nudged(Nudge(bank.east.name, [])) == []
    with pytest.raises(ValueError, match="does not live here"):
        await bank.coordinator.nudged(Nudge("mars", []))


async def test_a_rollback_waits_for_a_branch_that_is_still_running_and_undoes_it(bank: Bank) -> None:
    """Undo comes while phase one is in its local transaction: it waits, then restores."""
    inside, go_on = asyncio.Event(), asyncio.Event()
    scope = participant(bank)

    async def slow(connection: Any) -> None:
        await add_west(10)(connection)
        inside.set()
        await go_on.wait()

    async def phase_one() -> None:
        with bound(scope):
            await bank.coordinator.run_branch(bank.west, slow)

    running = asyncio.create_task(phase_one())
    await inside.wait()
    undoing = asyncio.create_task(
        bank.coordinator.nudged(Nudge(bank.west.name, [Settle(scope.xid, Decision.ROLLED_BACK, [])]))
    )
    await asyncio.sleep(0.2)
    assert not undoing.done()
    go_on.set()
    await running
    [confirm] = await undoing
    assert (scope.branches[0].branch, int(BranchState.UNDONE)) in confirm.states
    assert await bank.balance(bank.west_dsn) == 100


async def test_a_row_changed_behind_the_triggers_is_quarantined_not_overwritten(bank: Bank) -> None:
    """The block ends with its rollback; the row keeps what somebody wrote, and stays locked: who wants it hears why."""
    with pytest.raises(TransactionRolledBack):
        async with bank.coordinator.global_transaction("dirty") as tx:
            await bank.coordinator.run_branch(bank.west, add_west(10))
            connection = await asyncpg.connect(bank.west_dsn)
            await connection.execute("SET session_replication_role = replica")
            await connection.execute("UPDATE account SET balance = 777 WHERE id = 1")
            await connection.close()
            tx.mark_rollback_only("test")
    assert await bank.balance(bank.west_dsn) == 777
    assert await bank.locks(bank.west_dsn) == 1
    tries = []

    async def take(connection: Any) -> int:
        tries.append(connection)
        return await add_west(-1)(connection)

    for attempt in (bank.coordinator.run_branch, bank.coordinator.run_local):
        tries.clear()
        with pytest.raises(LockConflict, match="quarantined") as caught:
            async with bank.coordinator.global_transaction("next"):
                with bound(None) if attempt == bank.coordinator.run_local else nullcontext():
                    await attempt(bank.west, take)
        assert caught.value.holder == tx.xid
        assert len(tries) == 2, "it neither waits in vain nor tries without a pause"


async def test_every_branch_is_confirmed_to_the_coordinator(bank: Bank) -> None:
    """After quiet the coordinator knows the transaction as settled."""
    import aiohttp

    async with bank.coordinator.global_transaction("confirmed") as tx:
        await bank.coordinator.run_branch(bank.east, add_east(-1))
        await bank.coordinator.run_branch(bank.west, add_west(1))
    headers = {"Authorization": f"Bearer {bank.tc.tokens().token_for('coordinator')}"}

    async with aiohttp.ClientSession(headers=headers) as http:

        async def settled() -> bool:
            async with http.get(f"{bank.tc.url}/v1/transactions/{tx.xid}") as response:
                return (await response.json())["settlement"] in (2, "SETTLED")

        await until(settled, "the coordinator never heard that all is settled")


async def test_a_closed_coordinator_takes_no_more_work(bank: Bank) -> None:
    """After leaving the block everything has stopped, and using it says so."""
    await bank.coordinator.__aexit__(None, None, None)
    with pytest.raises(CoordinatorUnavailable):
        await bank.transfer(1)
    await bank.coordinator.__aenter__()
    await bank.transfer(1)
    await bank.quiet()
