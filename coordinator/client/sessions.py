"""Local transactions on SQLAlchemy sessions and engines. Imported only where SQLAlchemy is used."""

from __future__ import annotations

from typing import Any

import asyncpg
from sqlalchemy import CursorResult
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from coordinator.client.connections import ENDED_INSIDE, STILL_INSIDE
from coordinator.client.local import WRITTEN_BEFORE, folds, sheltered
from coordinator.protocol.errors import BranchRefused

_HAS_WRITTEN = "SELECT pg_current_xact_id_if_assigned() IS NOT NULL"


def open_session(target: Any) -> SessionTransaction:
    """A local transaction on an AsyncSession (which stays open) or on an AsyncEngine (with a session of its own).

    Raises TypeError for anything else.
    """
    if isinstance(target, AsyncEngine):
        return SessionTransaction(AsyncSession(target, expire_on_commit=False), owned=True)
    if isinstance(target, AsyncSession):
        return SessionTransaction(target, owned=False)
    raise TypeError(f"a branch needs an AsyncSession or an AsyncEngine, not {type(target).__name__}")


class SessionTransaction:
    """A local transaction on an AsyncSession. BEGIN leaves with the session's first statement, as always."""

    def __init__(self, session: AsyncSession, *, owned: bool) -> None:
        self._session = session
        self._owned = owned
        self._driver: Any = None
        self._folds = False
        self._entered = False
        self._left = False

    @property
    def target(self) -> AsyncSession:
        """The session."""
        return self._session

    async def begin(self, enter: str | None) -> None:
        """Prepares the session's connection to enter the branch with BEGIN.

        A session that has only read before may go on; one that has written is refused with BranchRefused.
        """
        if enter is None:
            return
        self._driver = driver = await self._session.run_sync(_driver_connection)
        if driver.is_in_transaction():
            if await driver.fetchval(_HAS_WRITTEN):
                raise BranchRefused(WRITTEN_BEFORE)
            await self._run(enter)
            self._entered = True
        elif folds(driver):
            driver.fold_enter(enter)
            self._folds = True
        else:
            await self._run(enter)
            self._entered = True

    async def prepare(self, keep: str | None) -> None:
        """Flushes the session; folds `keep` into COMMIT or runs it at once."""
        pending = self._session.sync_session
        if pending.new or pending.dirty or pending.deleted:
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


def _driver_connection(session: Session) -> Any:
    """The asyncpg connection below a session: checked out of the pool, nothing sent yet. Raises BranchRefused."""
    pooled = session.connection().connection
    if getattr(pooled.dbapi_connection, "autocommit", False):
        raise BranchRefused("the engine is in AUTOCOMMIT: a branch needs a local transaction")
    driver = pooled.driver_connection
    if not isinstance(driver, asyncpg.Connection):
        raise BranchRefused(f"a branch needs the asyncpg driver (postgresql+asyncpg://), not {type(driver).__name__}")
    return driver
