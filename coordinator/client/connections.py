"""Connections that enter a branch inside BEGIN and keep its answer inside COMMIT: no round trip of their own.

asyncpg sends ``BEGIN;`` as a simple query, which may hold several statements. `BranchConnection` adds the
branch's statements to it. Use it through SQLAlchemy::

    engine = create_async_engine(url, connect_args=branch_connect_args())

or through asyncpg::

    pool = await asyncpg.create_pool(dsn, connection_class=BranchConnection)

Any other connection works as well and pays one statement more for each, and one before COMMIT that looks whether the
branch is still whole.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import asyncpg
from asyncpg.exceptions import InFailedSQLTransactionError, InterfaceError, PostgresError

from coordinator.protocol.errors import BranchRefused

ENDED_INSIDE = "the branch's local transaction was ended inside the branch; what comes later is not part of it"

FAILED_INSIDE = (
    "a statement of the branch failed and its error was passed over, so PostgreSQL rolled back all of it at COMMIT;"
    " put a statement that may fail into a savepoint"
)

STILL_INSIDE = "SELECT coalesce(current_setting('at.branch', true), '') <> ''"
"""Whether a local transaction is still the branch that it was entered as. Fails where a statement of it has failed."""

ABANDON_TIMEOUT_S = 2.0
"""How long a failed BEGIN or COMMIT may take to roll back before its connection is dropped."""


class BranchConnection(asyncpg.Connection):
    """An asyncpg connection that can fold a branch's first and last statement into BEGIN and COMMIT."""

    __slots__ = ("_at_enter", "_at_entered", "_at_keep", "_at_rolled_back")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._at_enter: str | None = None
        self._at_keep: str | None = None
        self._at_entered = False
        self._at_rolled_back = False

    def fold_enter(self, statement: str) -> None:
        """The next BEGIN carries `statement`. Until `unfold`, a further BEGIN raises BranchRefused."""
        self._at_enter = statement
        self._at_entered = self._at_rolled_back = False
        self._at_keep = None

    def fold_keep(self, statement: str) -> None:
        """The next COMMIT carries `statement` before it."""
        self._at_keep = statement

    def unfold(self) -> bool:
        """Ends the folding; True when a BEGIN carried the statement of `fold_enter` and no ROLLBACK came after it."""
        entered = self._at_entered and not self._at_rolled_back
        self._at_enter = self._at_keep = None
        self._at_entered = False
        return entered

    def execute(self, query: str, *args: Any, timeout: float | None = None) -> Coroutine[Any, Any, str]:
        """As asyncpg's, with the folded statements added to a plain BEGIN or COMMIT."""
        if args or not (self._at_entered or self._at_enter is not None or self._at_keep is not None):
            return super().execute(query, *args, timeout=timeout)
        return self._execute_folded(query, timeout)

    async def _execute_folded(self, query: str, timeout: float | None) -> str:
        if query.startswith("BEGIN"):
            if self._at_enter is None:
                self._top_xact = None
                raise BranchRefused(ENDED_INSIDE)
            folded = f"{query.rstrip('; ')};{self._at_enter};"
            self._at_enter = None
            done = await self._execute_or_abandon(folded, timeout)
            self._at_entered = True
            return done
        if query == "COMMIT;" and self._at_keep is not None:
            folded = f"{self._at_keep};{query}"
            self._at_keep = None
            return await self._execute_or_abandon(folded, timeout)
        if query == "ROLLBACK;":
            self._at_rolled_back = True
        status = str(await super().execute(query, timeout=timeout))
        if query == "COMMIT;" and status == "ROLLBACK":
            # The server's quiet answer to the COMMIT of a transaction that has failed: not the end of a branch.
            raise InFailedSQLTransactionError(FAILED_INSIDE)
        return status

    async def _execute_or_abandon(self, folded: str, timeout: float | None) -> str:
        try:
            return str(await super().execute(folded, timeout=timeout))
        except BaseException as error:
            # asyncpg and SQLAlchemy take a BEGIN that failed for one that never was, but here the server did
            # open the transaction before the folded statement failed: close it, or the next user inherits it.
            self._top_xact = None
            await self._abandon(answered=isinstance(error, PostgresError))
            raise

    async def _abandon(self, *, answered: bool) -> None:
        """Closes the transaction. Where the server has not `answered` yet, the driver does not know of it so far."""
        plain: Any = super()
        try:
            async with asyncio.timeout(ABANDON_TIMEOUT_S):
                if not plain.is_closed() and (plain.is_in_transaction() or not answered):
                    await plain.execute("ROLLBACK;")
        except asyncio.CancelledError:
            plain.terminate()
            raise
        except (PostgresError, InterfaceError, OSError, TimeoutError):
            plain.terminate()


def branch_connect_args(**others: Any) -> dict[str, Any]:
    """The `connect_args` for create_async_engine that fold branches into BEGIN; `others` are passed on."""
    return {**others, "connection_class": BranchConnection}
