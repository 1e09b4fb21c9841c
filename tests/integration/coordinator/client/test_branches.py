"""Branches: on what they can be opened, what they keep, and what they refuse."""

# ruff: noqa: PT012 - what a block does when it is left by an error is what is tested here

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import asyncpg
import msgspec
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from coordinator.client import (
    BranchAborted,
    BranchConnection,
    BranchRefused,
    BranchRepeated,
    DeadlinePassed,
    Deadlock,
    LockConflict,
    NoGlobalTransaction,
    TransactionRolledBack,
    UnmanagedTable,
    branch_connect_args,
)
from coordinator.client.context import Participant, bound
from coordinator.protocol.ids import BranchId, Xid, uuid7
from coordinator.resource import Entering
from tests.integration.coordinator.client.proxies import postgres_proxy
from tests.integration.coordinator.client.world import Bank, add_east, add_west

UPDATE = "UPDATE account SET balance = balance - 1 WHERE id = 1"


class Receipt(msgspec.Struct):
    """What a branch keeps."""

    balance: int
    note: str


def now_ms(bank: Bank) -> int:
    return int(bank.coordinator._clock() * 1000)


async def test_a_branch_is_opened_on_a_session_an_engine_a_pool_a_connection_and_a_resource(bank: Bank) -> None:
    """All forms become branches of the same transaction and commit locally at the end of their block."""
    async with bank.coordinator.global_transaction("forms") as tx:
        async with AsyncSession(bank.engine) as session, bank.coordinator.branch(session) as branch:
            assert branch.target is session
            await session.execute(text(UPDATE))
        async with bank.coordinator.branch(bank.engine) as branch:
            await branch.target.execute(text(UPDATE))
        async with bank.coordinator.branch(bank.pool) as branch:
            await branch.target.execute(UPDATE)
        async with bank.pool.acquire() as connection, bank.coordinator.branch(connection):
            await connection.execute(UPDATE)
        async with bank.coordinator.branch(bank.west) as branch:
            await branch.target.execute(UPDATE)
        plain = await asyncpg.connect(bank.west_dsn)
        async with bank.coordinator.branch(plain, resource=bank.west):
            await plain.execute(UPDATE)
        await plain.close()
        assert len(tx.branches) == 6
        assert await bank.open_branches(bank.east_dsn) == 2
        assert await bank.open_branches(bank.west_dsn) == 4
    await bank.quiet()
    assert await bank.balance(bank.east_dsn) == 98
    assert await bank.balance(bank.west_dsn) == 96


async def test_an_engine_without_folding_makes_branches_too(bank: Bank) -> None:
    """Without branch_connect_args the branch is entered, and its answer kept, by statements of their own."""
    engine = create_async_engine(bank.east_dsn.replace("postgresql://", "postgresql+asyncpg://"))
    with pytest.raises(ZeroDivisionError):
        async with bank.coordinator.global_transaction("plain"):
            async with bank.coordinator.branch(engine, resource=bank.east) as branch:
                await branch.target.execute(text(UPDATE))
                branch.keep("it's :kept")
            assert await bank.balance(bank.east_dsn) == 99
            raise ZeroDivisionError
    assert await bank.balance(bank.east_dsn) == 100
    await engine.dispose()


async def test_a_branch_without_a_statement_is_no_branch(bank: Bank) -> None:
    """Nothing is entered, nothing is named, nothing has to be settled."""
    async with bank.coordinator.global_transaction("idle") as tx:
        async with bank.coordinator.branch(bank.engine):
            pass
        assert tx.branches == ()


async def test_a_branch_needs_a_transaction_and_a_resource(bank: Bank) -> None:
    """Outside a transaction, and for a connection that belongs to nothing, the error says what to do."""
    with pytest.raises(NoGlobalTransaction, match="global_transaction"):
        await bank.coordinator.run_branch(bank.east, add_east(1))
    connection = await asyncpg.connect(bank.west_dsn)
    async with bank.coordinator.global_transaction("foreign"):
        with pytest.raises(ValueError, match="resource="):
            async with bank.coordinator.branch(connection):
                pass
        with pytest.raises(TypeError):
            async with bank.coordinator.branch(object(), resource=bank.east):
                pass
    await connection.close()


async def test_a_session_that_has_written_cannot_become_a_branch(bank: Bank) -> None:
    """Its writes could not be undone; one that has only read may go on."""
    async with bank.coordinator.global_transaction("late"):
        async with AsyncSession(bank.engine) as session:
            await session.execute(text("SELECT balance FROM account"))
            async with bank.coordinator.branch(session):
                await session.execute(text(UPDATE))
        async with AsyncSession(bank.engine) as session:
            await session.execute(text("UPDATE account SET balance = 7 WHERE id = 2"))
            with pytest.raises(BranchRefused, match="has written before"):
                async with bank.coordinator.branch(session):
                    pass
    assert await bank.balance(bank.east_dsn, 2) == 100
    await bank.quiet()


async def test_an_autocommit_engine_cannot_hold_a_branch(bank: Bank) -> None:
    """There would be no local transaction to be the branch."""
    engine = bank.engine.execution_options(isolation_level="AUTOCOMMIT")
    async with bank.coordinator.global_transaction("auto"):
        with pytest.raises(BranchRefused, match="AUTOCOMMIT"):
            async with bank.coordinator.branch(engine) as branch:
                await branch.target.execute(text(UPDATE))
    assert await bank.balance(bank.east_dsn) == 100


async def test_work_cannot_slip_out_of_its_branch_by_committing_inside(bank: Bank) -> None:
    """What comes after a commit inside would not be undone: it is refused, and all is rolled back."""
    with pytest.raises(TransactionRolledBack, match="ended by its own work"):
        async with bank.coordinator.global_transaction("slip"):
            with pytest.raises(BranchRefused, match="ended inside"):
                async with bank.coordinator.branch(bank.engine) as branch:
                    await branch.target.execute(text(UPDATE))
                    await branch.target.commit()
                    await branch.target.execute(text(UPDATE))
    assert await bank.balance(bank.east_dsn) == 100
    await bank.quiet()


@pytest.mark.parametrize("folding", [True, False])
async def test_a_failed_statement_that_was_passed_over_is_no_end_of_a_branch(bank: Bank, folding: bool) -> None:
    """PostgreSQL answers such a COMMIT with a quiet rollback: the work hears of it, and nothing is named or written."""
    arguments = branch_connect_args() if folding else {}
    url = bank.east_dsn.replace("postgresql://", "postgresql+asyncpg://")
    engine = create_async_engine(url, connect_args=arguments)
    connection = await asyncpg.connect(bank.west_dsn, **arguments)
    async with bank.coordinator.global_transaction("passed over") as tx:
        with pytest.raises(DBAPIError) as caught:
            async with bank.coordinator.branch(engine, resource=bank.east) as branch:
                await branch.target.execute(text(UPDATE))
                with contextlib.suppress(IntegrityError):
                    await branch.target.execute(text("INSERT INTO account VALUES (1, 1)"))
        assert getattr(caught.value.orig, "sqlstate", None) == "25P02"
        with pytest.raises(asyncpg.InFailedSQLTransactionError):
            async with bank.coordinator.branch(connection, resource=bank.west):
                await connection.execute(UPDATE)
                with contextlib.suppress(asyncpg.UniqueViolationError):
                    await connection.execute("INSERT INTO account VALUES (1, 1)")
        assert tx.branches == ()
        assert tx.rollback_only is None
    await engine.dispose()
    await connection.close()
    assert [await bank.balance(dsn) for dsn in (bank.east_dsn, bank.west_dsn)] == [100, 100]


async def test_work_on_any_connection_cannot_slip_out_of_its_branch(bank: Bank) -> None:
    """Where nothing is folded into BEGIN, the end of the work looks whether it still is in the branch."""
    engine = create_async_engine(bank.east_dsn.replace("postgresql://", "postgresql+asyncpg://"))
    connection = await asyncpg.connect(bank.west_dsn)
    for target, resource in ((engine, bank.east), (connection, bank.west)):
        with pytest.raises(TransactionRolledBack, match="ended by its own work"):
            async with bank.coordinator.global_transaction("slip"):
                with pytest.raises(BranchRefused, match="ended inside"):
                    async with bank.coordinator.branch(target, resource=resource) as branch:
                        if target is engine:
                            await branch.target.execute(text(UPDATE))
                            await branch.target.commit()
                            await branch.target.execute(text("UPDATE account SET balance = 0 WHERE id = 2"))
                        else:
                            await connection.execute(UPDATE)
                            await connection.execute("COMMIT")
                            await connection.execute("BEGIN; UPDATE account SET balance = 0 WHERE id = 2")
    await engine.dispose()
    await connection.close()
    await bank.quiet()
    assert {await bank.balance(dsn, n) for dsn in (bank.east_dsn, bank.west_dsn) for n in (1, 2)} == {100}


async def test_an_unmanaged_table_is_refused_inside_a_branch(bank: Bank) -> None:
    """UnmanagedTable says how to mend it; the rest of the transaction may go on."""
    async with bank.coordinator.global_transaction("unmanaged"):
        with pytest.raises(UnmanagedTable, match="secret"):
            async with bank.coordinator.branch(bank.pool) as branch:
                await branch.target.execute("INSERT INTO secret VALUES (1)")
        await bank.coordinator.run_branch(bank.west, add_west(5))
    await bank.quiet()
    assert await bank.balance(bank.west_dsn) == 105


async def test_errors_of_the_application_come_through_unchanged(bank: Bank) -> None:
    """A violated constraint is SQLAlchemy's IntegrityError, and its branch is no branch."""
    async with bank.coordinator.global_transaction("broke") as tx:
        with pytest.raises(IntegrityError):
            await bank.coordinator.run_branch(bank.east, add_east(-1000))
        with pytest.raises(asyncpg.CheckViolationError):
            await bank.coordinator.run_branch(bank.west, add_west(-1000))
        assert tx.branches == ()
    await bank.quiet()


async def test_a_block_meets_a_conflict_as_an_error_with_the_holder(bank: Bank) -> None:
    """branch() does not wait: LockConflict names who holds the row."""
    async with bank.coordinator.global_transaction("holder") as holder:
        await bank.coordinator.run_branch(bank.east, add_east(-10))
        with bound(None):
            async with bank.coordinator.global_transaction("other"):
                with pytest.raises(LockConflict) as caught:
                    async with bank.coordinator.branch(bank.engine) as branch:
                        await branch.target.execute(text(UPDATE))
        assert caught.value.holder == holder.xid
        assert not isinstance(caught.value, Deadlock)


async def test_a_repeated_call_gets_its_first_answer_and_does_nothing_again(bank: Bank) -> None:
    """With result_type the kept answer comes back, in SQLAlchemy and asyncpg; quotes in it survive."""
    xid, call = Xid(uuid7(now_ms(bank))), BranchId(uuid7(now_ms(bank)))
    deadline_ms = now_ms(bank) + 10_000
    runs = []

    async def east(session: Any) -> Receipt:
        balance = await add_east(-10)(session)
        runs.append("east")
        return Receipt(balance, 'it\'s \\ "kept" :name %s')

    async def west(connection: Any) -> Receipt:
        balance = await add_west(10)(connection)
        runs.append("west")
        return Receipt(balance, "it's kept")

    for _ in range(3):
        with bound(Participant(xid, call, deadline_ms)):
            first = await bank.coordinator.run_branch(bank.east, east, result_type=Receipt)
            second = await bank.coordinator.run_branch(bank.west, west, result_type=Receipt)
            assert first == Receipt(90, 'it\'s \\ "kept" :name %s')
            assert second == Receipt(110, "it's kept")
    assert runs == ["east", "west"]


async def test_a_repeated_branch_without_an_answer_is_an_error_but_still_a_branch(bank: Bank) -> None:
    """BranchRepeated is raised; the transaction knows the branch, so that the decision names it."""
    participant = Participant(Xid(uuid7(now_ms(bank))), BranchId(uuid7(now_ms(bank))), now_ms(bank) + 10_000)
    with bound(participant):
        await bank.coordinator.run_branch(bank.east, add_east(-10))
    again = Participant(participant.xid, participant.call, participant.deadline_ms)
    with bound(again), pytest.raises(BranchRepeated):
        await bank.coordinator.run_branch(bank.east, add_east(-10))
    assert again.branches == participant.branches
    assert await bank.balance(bank.east_dsn) == 90


async def test_phase_one_after_phase_two_is_refused(bank: Bank) -> None:
    """A late call of a transaction that was rolled back gets BranchAborted, repeated or not."""
    call = BranchId(uuid7(now_ms(bank)))
    with pytest.raises(TransactionRolledBack):
        async with bank.coordinator.global_transaction("first") as tx:
            xid, deadline_ms = tx.xid, tx.deadline_ms
            await bank.coordinator.run_branch(bank.east, add_east(-10))
            with bound(Participant(xid, call, deadline_ms)):
                await bank.coordinator.run_branch(bank.east, add_east(-10))
            tx.mark_rollback_only("test")
    for late in (call, BranchId(uuid7(now_ms(bank)))):
        scope = Participant(xid, late, deadline_ms)
        with bound(scope), pytest.raises(BranchAborted):
            await bank.coordinator.run_branch(bank.east, add_east(-10))
        assert scope.rollback_only is not None
    assert await bank.balance(bank.east_dsn) == 100
    await bank.quiet()


async def test_the_resource_refuses_a_branch_past_its_deadline(bank: Bank) -> None:
    """A clock that is wrong in the client does not help: the database looks too."""
    bank.coordinator._runner._clock = lambda: 0.0
    scope = Participant(Xid(uuid7(now_ms(bank))), BranchId(uuid7(now_ms(bank))), now_ms(bank) - 1000)
    with bound(scope), pytest.raises(DeadlinePassed):
        await bank.coordinator.run_branch(bank.east, add_east(-10))


async def test_a_commit_cut_off_in_the_middle_dooms_the_transaction(bank: Bank) -> None:
    """Nobody knows whether that branch is there, so the only end is a rollback, which finds it."""
    async with postgres_proxy(bank.west_dsn) as proxy:
        connection = await asyncpg.connect(proxy.dsn(bank.west_dsn), **branch_connect_args())
        with pytest.raises(TransactionRolledBack, match="committed locally"):
            async with bank.coordinator.global_transaction("cut"):
                with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
                    async with bank.coordinator.branch(connection, resource=bank.west):
                        await connection.execute(UPDATE)
                        proxy.swallow_answers = True
        connection.terminate()
    await bank.quiet()
    assert await bank.balance(bank.west_dsn) == 100


async def test_a_connection_cancelled_in_its_begin_is_free_or_closed(bank: Bank) -> None:
    """The server had opened the transaction before the folded statement was cancelled; nobody inherits it."""
    for turns in (0, 1, 5, 20):
        connection = await asyncpg.connect(bank.west_dsn, connection_class=BranchConnection)
        connection.fold_enter(Entering("SELECT pg_sleep(60)"))
        beginning = asyncio.create_task(connection.transaction().start())
        await asyncio.sleep(0.05)
        for _ in range(2 if turns else 1):
            beginning.cancel()
            for _ in range(turns):
                await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await beginning
        connection.unfold()
        assert connection.is_closed() or await connection.fetchval("SELECT pg_current_xact_id_if_assigned() IS NULL")
        assert connection.is_closed() or not connection.is_in_transaction()
        if not turns:
            async with bank.coordinator.global_transaction("next"):
                async with bank.coordinator.branch(connection, resource=bank.west):
                    await connection.execute(UPDATE)
        connection.terminate()
    await bank.quiet()
    assert await bank.balance(bank.west_dsn) == 99


async def test_a_branch_costs_a_round_trip_less_than_a_plain_transaction(bank: Bank) -> None:
    """Counted at the wire, with SQLAlchemy and with asyncpg; keeping an answer costs none either."""
    async with postgres_proxy(bank.east_dsn) as proxy:
        engine = create_async_engine(
            proxy.dsn(bank.east_dsn).replace("postgresql://", "postgresql+asyncpg://"),
            connect_args=branch_connect_args(),
            pool_size=1,
        )
        pool = await asyncpg.create_pool(proxy.dsn(bank.east_dsn), min_size=1, max_size=1, **branch_connect_args())
        counted: dict[str, list[int]] = {"plain": [], "branch": [], "kept": []}
        async with AsyncSession(engine) as session:
            for kind in ("plain", "branch", "kept") * 3:
                before = proxy.round_trips
                if kind == "plain":
                    await session.execute(text(UPDATE))
                    await session.commit()
                    counted[kind].append(proxy.round_trips - before)
                    continue
                async with bank.coordinator.global_transaction("counted"):
                    async with bank.coordinator.branch(session, resource=bank.east) as branch:
                        await session.execute(text(UPDATE))
                        if kind == "kept":
                            branch.keep({"kept": True})
                    counted[kind].append(proxy.round_trips - before)
                await bank.quiet()
        assert counted["plain"][1:] == [3, 3]
        assert counted["branch"][1:] == counted["kept"][1:] == [2, 2]
        async with pool.acquire() as connection:
            before = proxy.round_trips
            async with connection.transaction():
                await connection.execute(UPDATE)
            plain = proxy.round_trips - before
            async with bank.coordinator.global_transaction("counted"):
                before = proxy.round_trips
                async with bank.coordinator.branch(connection, resource=bank.east):
                    await connection.execute(UPDATE)
                assert (plain, proxy.round_trips - before) == (3, 2)
        await bank.quiet()
        await engine.dispose()
        pool.terminate()
