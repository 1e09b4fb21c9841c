"""Locking and committed reads from the client, over two databases: no lost update, no write skew, no wait."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg
import pytest
from sqlalchemy import ForeignKey, func, select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, aliased, mapped_column, relationship, selectinload

from coordinator.client import (
    BranchRefused,
    LockConflict,
    NoGlobalTransaction,
    UnmanagedTable,
    committed,
    current,
    lock,
)
from coordinator.client.context import bound
from tests.integration.coordinator.client.world import OPENING, Bank, add_east, add_west


class Base(DeclarativeBase):
    """The mapped classes of these tests."""


class Account(Base):
    """An account whose column goes by another name here."""

    __tablename__ = "account"
    id: Mapped[int] = mapped_column(primary_key=True)
    money: Mapped[int] = mapped_column("balance")
    secrets: Mapped[list[Secret]] = relationship()


class Secret(Base):
    """A row of the table that is not managed."""

    __tablename__ = "secret"
    id: Mapped[int] = mapped_column(ForeignKey("account.id"), primary_key=True)


async def test_a_locking_read_gives_objects_as_they_are_and_holds_them(bank: Bank) -> None:
    """In the select's order, read anew over what the session remembers; nobody else changes them until the decision."""

    async def work(session: AsyncSession) -> list[int]:
        stale = await session.get(Account, 1)
        await session.execute(text("UPDATE account SET balance = 50 WHERE id = 1"))
        rows = await lock(
            session,
            select(Account)
            .where(Account.id < 4)
            .order_by(Account.id.desc())
            .limit(3)
            .options(selectinload(Account.secrets)),
        )
        assert rows[2] is stale
        assert [row.secrets for row in rows] == [[], [], []]
        found = [row.money for row in rows]
        rows[1].money = 7
        return found

    async with bank.coordinator.global_transaction("read"):
        assert await bank.coordinator.run_branch(bank.east, work) == [100, 100, 50]
        assert await bank.locks(bank.east_dsn) == 3
        with bound(None), pytest.raises(LockConflict):
            await bank.coordinator.run_local(bank.east, add_east(1, account=3), wait_s=0.01)
    await bank.quiet()
    await bank.coordinator.run_local(bank.east, add_east(1, account=3))
    assert [await bank.balance(bank.east_dsn, i) for i in (1, 2, 3)] == [50, 7, 101]


async def test_a_locking_read_works_on_a_bare_connection(bank: Bank) -> None:
    """Rows of a table by a condition with arguments, as records, in one round trip."""

    async def work(connection: asyncpg.Connection) -> list[Any]:
        return await lock(connection, "account", "id = ANY($1) ORDER BY id DESC", [1, 2, 99])

    async with bank.coordinator.global_transaction("read"):
        rows = await bank.coordinator.run_branch(bank.west, work)
        assert [dict(row) for row in rows] == [{"id": 2, "balance": OPENING}, {"id": 1, "balance": OPENING}]
        assert await bank.locks(bank.west_dsn) == 2
    await bank.quiet()


@pytest.mark.parametrize("resource", ["east", "west"])
async def test_no_update_is_lost_between_a_locking_read_and_the_write_of_another_branch(
    bank: Bank, resource: str
) -> None:
    """Everybody reads in one branch, thinks, and writes what it read plus one in another: all of it counts."""
    read: Callable[[Any], Awaitable[int]]

    if resource == "east":

        async def read(session: AsyncSession) -> int:
            return (await lock(session, select(Account).where(Account.id == 1)))[0].money

        async def write(session: AsyncSession, money: int) -> None:
            await session.execute(text(f"UPDATE account SET balance = {money} WHERE id = 1"))

    else:

        async def read(connection: Any) -> int:
            return int((await lock(connection, "account", "id = 1"))[0]["balance"])

        async def write(connection: Any, money: int) -> None:
            await connection.execute(f"UPDATE account SET balance = {money} WHERE id = 1")

    target: Any = getattr(bank, resource)

    async def deposit() -> None:
        async with bank.coordinator.global_transaction("deposit"):
            money = await bank.coordinator.run_branch(target, read)
            await bank.coordinator.run_branch(target, lambda session: write(session, money + 1))

    await asyncio.gather(*(deposit() for _ in range(8)))
    await bank.quiet()
    assert await bank.balance(getattr(bank, f"{resource}_dsn")) == OPENING + 8


async def test_no_write_skew_over_two_databases(bank: Bank) -> None:
    """Two accounts may not both be emptied: each owner looks at both before it takes from one of them."""
    full = 2 * OPENING

    async def in_east(session: AsyncSession) -> int:
        return (await lock(session, select(Account).where(Account.id == 1)))[0].money

    async def in_west(connection: Any) -> int:
        return int((await lock(connection, "account", "id = 1"))[0]["balance"])

    async def empty(take: Callable[[], Awaitable[int]]) -> None:
        async with bank.coordinator.global_transaction("empty"):
            # Both look in the same order: skew is the question here, not deadlock.
            total = await bank.coordinator.run_branch(bank.east, in_east)
            total += await bank.coordinator.run_branch(bank.west, in_west)
            if total == full:
                await take()

    await asyncio.gather(
        empty(lambda: bank.coordinator.run_branch(bank.east, add_east(-OPENING))),
        empty(lambda: bank.coordinator.run_branch(bank.west, add_west(-OPENING))),
    )
    await bank.quiet()
    assert await bank.balance(bank.east_dsn) + await bank.balance(bank.west_dsn) == OPENING


async def test_what_cannot_be_locked_is_refused_with_the_reason(bank: Bank) -> None:
    """Columns, aggregates, aliases, unmanaged tables, groups, and any read outside a branch."""
    async with AsyncSession(bank.engine) as session:
        with pytest.raises(NoGlobalTransaction):
            await lock(session, select(Account))
        async with bank.coordinator.global_transaction("refused"):
            with pytest.raises(BranchRefused, match="outside a branch"):
                await lock(session, select(Account))
    wrong: list[Any] = [select(Account.id), select(func.count(Account.id)), select(aliased(Account)), text("SELECT 1")]
    wrong += [select(Account, Secret), select(Account.__table__)]
    async with bank.coordinator.global_transaction("refused"):
        for statement in wrong:
            with pytest.raises(TypeError, match="lock"):
                await bank.coordinator.run_branch(bank.east, lambda session, s=statement: lock(session, s))
        with pytest.raises(UnmanagedTable, match="secret"):
            await bank.coordinator.run_branch(bank.east, lambda session: lock(session, select(Secret)))
        with pytest.raises(UnmanagedTable, match="secret"):
            await bank.coordinator.run_branch(bank.west, lambda connection: lock(connection, "secret"))
        with pytest.raises(asyncpg.FeatureNotSupportedError, match="GROUP BY"):
            await bank.coordinator.run_branch(bank.west, lambda c: lock(c, "account", "true GROUP BY at__row"))
        with pytest.raises(TypeError, match="mapped to one table"):
            committed(int)


async def test_a_committed_read_sees_what_was_decided_and_waits_for_nobody(bank: Bank) -> None:
    """As a class in a select with conditions and joins; with `own`, a branch sees its own rows."""
    was = committed(Account)

    async def read(session: AsyncSession, mine: Any) -> list[int]:
        found = await session.scalars(select(mine).where(mine.id <= 2).order_by(mine.id))
        return [account.money for account in found]

    async def total(session: AsyncSession) -> int:
        other = committed(Account)
        joined = select(func.sum(was.money)).join(other, other.id == was.id).where(other.money == OPENING)
        return int(await session.scalar(joined) or 0)

    async with AsyncSession(bank.engine) as session, bank.coordinator.global_transaction("writes"):
        await bank.coordinator.run_branch(bank.east, add_east(-10))
        assert await read(session, was) == [OPENING, OPENING]
        assert await total(session) == 6 * OPENING
        await session.rollback()
        assert await bank.coordinator.run_branch(bank.east, lambda s: read(s, committed(Account, own=True))) == [
            90,
            100,
        ]
        assert current() is not None
    await bank.quiet()
    async with AsyncSession(bank.engine) as session:
        assert await read(session, was) == [OPENING - 10, OPENING]


async def test_a_ledger_is_balanced_at_every_instant_of_a_committed_read(bank: Bank) -> None:
    """Transfers of two branches each in one database, some rolled back, many at once: the sum never moves."""
    was = committed(Account)
    seen: set[int] = set()

    async def transfer(number: int) -> None:
        async with bank.coordinator.global_transaction("transfer"):
            await bank.coordinator.run_branch(bank.east, add_east(-1, number % 3 + 1))
            await bank.coordinator.run_branch(bank.east, add_east(1, number % 3 + 4))
            if number % 4 == 0:
                raise LookupError

    async def watch() -> None:
        async with AsyncSession(bank.engine) as session:
            while True:
                seen.add(int(await session.scalar(select(func.sum(was.money))) or 0))
                await session.rollback()

    watching = asyncio.create_task(watch())
    ends = await asyncio.gather(*(transfer(number) for number in range(24)), return_exceptions=True)
    await bank.quiet()
    watching.cancel()
    await asyncio.wait({watching})
    assert [type(end) for end in ends] == [LookupError if number % 4 == 0 else type(None) for number in range(24)]
    assert seen == {6 * OPENING}


async def test_a_select_with_a_join_locks_the_rows_of_its_class_alone(bank: Bank) -> None:
    """The other table only helps to find them; it need not be managed."""
    async with AsyncSession(bank.engine) as session, session.begin():
        await session.execute(text("INSERT INTO secret VALUES (2), (3)"))

    async def work(session: AsyncSession) -> list[int]:
        return [
            row.id
            for row in await lock(session, select(Account).join(Secret).where(Secret.id > 1).order_by(Account.id))
        ]

    async with bank.coordinator.global_transaction("joined"):
        assert await bank.coordinator.run_branch(bank.east, work) == [2, 3]
        assert await bank.locks(bank.east_dsn) == 2
    await bank.quiet()
