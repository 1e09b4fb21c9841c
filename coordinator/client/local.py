"""Local transactions on whatever the application has: a SQLAlchemy session or engine, an asyncpg connection or pool.

All of them look the same to the branch: begin (entering the branch on the way), the thing to work with, keep an
answer, commit, roll back. SQLAlchemy is imported only when an object of it is seen.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any, Protocol, TypeVar

import asyncpg
from asyncpg.exceptions import InterfaceError, PostgresError
from asyncpg.pool import PoolConnectionProxy

from coordinator.client.connections import ENDED_INSIDE, STILL_INSIDE
from coordinator.protocol.errors import BranchRefused
from coordinator.resource import Entering

CLEAN_UP_TIMEOUT_S = 5.0
"""How long a local rollback may take before its connection is left to its pool to drop."""

WRITTEN_BEFORE = "this local transaction has written before the branch was opened; those writes could not be undone"

T = TypeVar("T")


class LocalTransaction(Protocol):
    """One local transaction. Made by `open_local`, used once."""

    @property
    def target(self) -> Any:
        """What the application works with: the AsyncSession or the asyncpg connection."""
        ...

    async def begin(self, enter: Entering | None, *, later: bool) -> None:
        """Starts it; `enter` is the statement that enters a branch, sent with BEGIN or as a statement of its own.

        A session sends BEGIN only with its first statement, a connection where `later` says so. Raises BranchRefused.
        """
        ...

    async def prepare(self, keep: str | None) -> None:
        """Sends what is not sent yet; `keep` is the statement that keeps an answer, folded into COMMIT where possible.

        Raises BranchRefused when the transaction was ended inside the branch, and PostgreSQL's error 25P02 when it has
        failed there; where BEGIN was folded, COMMIT raises that.
        """
        ...

    async def commit(self) -> bool:
        """Commits; True when the branch was entered. False: no statement ran, so there is no branch."""
        ...

    async def rollback(self) -> bool:
        """Rolls back; False when the application had ended the branch's transaction itself, so it may be committed.

        Never raises for a connection that is gone.
        """
        ...

    async def close(self) -> None:
        """Gives back what was taken from an engine or pool."""
        ...


async def open_local(target: Any) -> LocalTransaction:
    """A local transaction on `target`, to be closed by who asked: a connection from a pool is given back then.

    Raises TypeError for a target of another kind.
    """
    if is_sqlalchemy(target):
        opened: LocalTransaction = _sessions().open_session(target)
        return opened
    if isinstance(target, asyncpg.Pool):
        return AsyncpgTransaction(await target.acquire(), target)
    if isinstance(target, asyncpg.Connection | PoolConnectionProxy):
        return AsyncpgTransaction(target)
    raise TypeError(
        f"a branch needs an AsyncSession, an AsyncEngine, an asyncpg connection or pool, or a Resource, "
        f"not {type(target).__name__}"
    )


def is_sqlalchemy(target: object) -> bool:
    """Whether `target` is an AsyncSession or AsyncEngine, or of a class made of one."""
    return any(base.__module__.startswith("sqlalchemy.ext.asyncio") for base in type(target).__mro__)


@cache
def _sessions() -> ModuleType:
    return import_module("coordinator.client.sessions")


class AsyncpgTransaction:
    """A local transaction on a bare asyncpg connection, BranchConnection or not."""

    def __init__(self, connection: Any, pool: Any = None) -> None:
        self._connection = connection
        self._pool = pool
        self._folds = folds(connection)
        self._transaction: Any = None
        self._entered = False
        self._left = False

    @property
    def target(self) -> Any:
        """The connection."""
        return self._connection

    async def begin(self, enter: Entering | None, *, later: bool) -> None:
        """Sends BEGIN at once or with the first statement, with `enter` folded in where the connection can."""
        if self._connection.is_in_transaction():
            raise BranchRefused("the connection is in a transaction already; a branch is a whole local transaction")
        self._transaction = self._connection.transaction()
        if enter is None:
            await self._transaction.start()
            return
        if self._folds:
            self._connection.fold_enter(enter, later=later)
            await self._transaction.start()
        else:
            await self._transaction.start()
            await self._connection.execute(enter.sql)
            self._entered = True

    async def prepare(self, keep: str | None) -> None:
        """Folds `keep` into COMMIT or runs it at once."""
        if not self._connection.is_in_transaction():
            raise BranchRefused(ENDED_INSIDE)
        if self._entered and not self._folds:
            self._left = not await self._connection.fetchval(STILL_INSIDE)
            if self._left:
                raise BranchRefused(ENDED_INSIDE)
        if keep is None:
            return
        if self._folds:
            self._connection.fold_keep(keep)
        else:
            await self._connection.execute(keep)

    async def commit(self) -> bool:
        """Commits."""
        await self._transaction.commit()
        if self._folds:
            self._entered = self._connection.unfold()
        return self._entered

    async def rollback(self) -> bool:
        """Rolls back what is open."""
        if self._folds:
            self._entered = self._connection.unfold()
        if self._connection.is_closed():
            return True
        if not self._connection.is_in_transaction():
            return not self._entered
        await sheltered(self._undo())
        return not self._left

    async def close(self) -> None:
        """Gives a pool its connection back."""
        if self._pool is not None:
            await sheltered(self._pool.release(self._connection, timeout=CLEAN_UP_TIMEOUT_S))

    async def _undo(self) -> None:
        try:
            await self._transaction.rollback()
        except (PostgresError, InterfaceError, OSError):
            self._connection.terminate()


def folds(connection: Any) -> bool:
    """Whether a connection (or the one behind a pool's proxy) is a BranchConnection.

    Not by isinstance: asyncpg's metaclass calls every connection an instance of every class of connections.
    """
    return hasattr(connection, "fold_enter")


async def sheltered(work: Awaitable[T]) -> T | None:
    """Runs clean-up to its end before a cancellation of the caller goes on; bounded by CLEAN_UP_TIMEOUT_S.

    It is waited for however often the caller is cancelled: what comes next works on the same session or connection.
    """
    task = asyncio.ensure_future(work)
    loop = asyncio.get_running_loop()
    until_s = loop.time() + CLEAN_UP_TIMEOUT_S
    cancelled: asyncio.CancelledError | None = None
    while not task.done() and (left_s := until_s - loop.time()) > 0:
        try:
            await asyncio.wait({task}, timeout=left_s)
        except asyncio.CancelledError as error:
            cancelled = error
    if not task.done():
        task.cancel()
    if cancelled is not None:
        task.add_done_callback(_retrieve)
        raise cancelled
    return task.result() if task.done() else None


def _retrieve(task: asyncio.Future[Any]) -> None:
    if not task.cancelled():
        task.exception()
