"""Local transactions on SQLAlchemy sessions and engines. Imported only where SQLAlchemy is used."""

from __future__ import annotations

from typing import Any

import asyncpg
from sqlalchemy import Connection, CursorResult, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session
from sqlalchemy.orm import SessionTransaction as OrmTransaction

from coordinator.client.connections import ENDED_INSIDE, STILL_INSIDE
from coordinator.client.local import WRITTEN_BEFORE, folds, sheltered
from coordinator.protocol.errors import BranchRefused
from coordinator.resource import Entering

_HAS_WRITTEN = "SELECT pg_current_xact_id_if_assigned() IS NOT NULL"


def open_session(target: Any) -> SessionTransaction:
    """A local transaction on an AsyncSession (which stays open) or on an AsyncEngine (with a session of its own).

    Raises TypeError for anything else.
    """
    if isinstance(target, AsyncEngine):
        session = AsyncSession(target, expire_on_commit=False, sync_session_class=_BranchSession)
        return SessionTransaction(session, owned=True)
    if isinstance(target, AsyncSession):
        return SessionTransaction(target, owned=False)
    raise TypeError(f"a branch needs an AsyncSession or an AsyncEngine, not {type(target).__name__}")


class SessionTransaction:
    """A local transaction on an AsyncSession. BEGIN leaves with the session's first statement, as always."""

    def __init__(self, session: AsyncSession, *, owned: bool) -> None:
        self._session = session
        self._owned = owned
        self._enter: Entering | None = None
        self._driver: Any = None
        self._folds = False
        self._entered = False
        self._left = False

    @property
    def target(self) -> AsyncSession:
        """The session."""
        return self._session

    async def begin(self, enter: Entering | None, *, later: bool) -> None:
        """Prepares the session's connection to enter the branch with BEGIN.

        A session that has only read before may go on; one that has written is refused with BranchRefused.
        """
        if enter is None:
            return
        if self._owned:
            # Its connection comes with its first statement: see `enter_on`.
            self._enter = enter
            self._session.sync_session.at_local = self  # type: ignore[attr-defined]
            return
        self._driver = driver = await self._session.run_sync(lambda session: _driver_of(session.connection()))
        if driver.is_in_transaction():
            if await driver.fetchval(_HAS_WRITTEN):
                raise BranchRefused(WRITTEN_BEFORE)
            await self._run(enter.sql)
            self._entered = True
        elif folds(driver):
            driver.fold_enter(enter, later=True)
            self._folds = True
        else:
            await self._run(enter.sql)
            self._entered = True

    def enter_on(self, connection: Connection) -> None:
        """Enters the branch on the connection that a session of our own has just begun to use. Raises BranchRefused."""
        assert self._enter is not None  # noqa: S101 - begin set it
        if self._driver is not None:
            raise BranchRefused(ENDED_INSIDE)
        self._driver = driver = _driver_of(connection)
        if folds(driver):
            driver.fold_enter(self._enter, later=True)
            self._folds = True
        else:
            connection.exec_driver_sql(self._enter.sql)
            self._entered = True

    async def prepare(self, keep: str | None) -> None:
        """Flushes the session; folds `keep` into COMMIT or runs it at once."""
        pending = self._session.sync_session
        if pending.new or pending.deleted or (pending.identity_map and pending.dirty):
            await self._session.flush()
        driver: Any = self._driver
        if driver is not None and self._entered and not driver.is_in_transaction():
            raise BranchRefused(ENDED_INSIDE)
        if self._entered:
            self._left = not (await self._run(STILL_INSIDE)).scalar()
            if self._left:
                raise BranchRefused(ENDED_INSIDE)
        if keep is None:
            return
        if self._folds and driver.is_in_transaction():
            driver.fold_keep(keep)
        else:
            await self._run(keep)

    async def commit(self) -> bool:
        """Commits."""
        await self._session.commit()
        if self._folds:
            self._entered = self._driver.unfold()
        return self._entered

    async def rollback(self) -> bool:
        """Rolls back what is open; a connection that is gone is left to the pool."""
        driver = self._driver
        if self._folds:
            self._entered = driver.unfold()
        ended = driver is not None and not driver.is_closed() and not driver.is_in_transaction()
        await sheltered(self._undo())
        return not (self._left or (self._entered and ended))

    async def close(self) -> None:
        """Closes a session of its own."""
        if not self._owned:
            return
        if self._session.in_transaction():
            await sheltered(self._session.close())
        else:
            # The connection is back in its pool: what is left to close needs no input or output.
            self._session.sync_session.close()

    async def _run(self, statement: str) -> CursorResult[Any]:
        return await (await self._session.connection()).exec_driver_sql(statement)

    async def _undo(self) -> None:
        try:
            await self._session.rollback()
        except (DBAPIError, OSError):
            await self._session.invalidate()


class _BranchSession(Session):
    """A session of our own, for one local transaction; `at_local` is that transaction where it is a branch."""

    at_local: SessionTransaction | None = None


@event.listens_for(_BranchSession, "after_begin")
def _session_began(session: _BranchSession, transaction: OrmTransaction, connection: Connection) -> None:
    """The session has its connection, and nothing was sent on it: here entering costs no turn of its own."""
    if session.at_local is not None and not transaction.nested:
        session.at_local.enter_on(connection)


def _driver_of(connection: Connection) -> Any:
    """The asyncpg connection below one of SQLAlchemy's. Raises BranchRefused."""
    pooled = connection.connection
    if getattr(pooled.dbapi_connection, "autocommit", False):
        raise BranchRefused("the engine is in AUTOCOMMIT: a branch needs a local transaction")
    driver = pooled.driver_connection
    if not isinstance(driver, asyncpg.Connection):
        raise BranchRefused(f"a branch needs the asyncpg driver (postgresql+asyncpg://), not {type(driver).__name__}")
    return driver
