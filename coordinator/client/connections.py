"""Connections that enter a branch with BEGIN and keep its answer inside COMMIT: no round trip of their own.

asyncpg sends ``BEGIN;`` and ``COMMIT;`` as simple queries, which may hold several statements. `BranchConnection` adds
the branch's to them, and lets BEGIN travel with the first statement of the work (see opening.py), so that a branch
takes a round trip less than a plain transaction. Use it through SQLAlchemy::

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

from coordinator.client.opening import Opening, Prepared
from coordinator.protocol.errors import BranchRefused
from coordinator.resource import Entering

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

    __slots__ = ("_at_enter", "_at_entered", "_at_keep", "_at_later", "_at_opening", "_at_prepared", "_at_rolled_back")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._at_enter: Entering | None = None
        self._at_keep: str | None = None
        self._at_later = False
        self._at_opening: Opening | None = None
        self._at_prepared = Prepared()
        self._at_entered = False
        self._at_rolled_back = False

    def fold_enter(self, enter: Entering, *, later: bool = False) -> None:
        """The next BEGIN carries `enter`. Until `unfold`, a further BEGIN raises BranchRefused.

        With `later`, both are sent with the first statement after BEGIN, which then raises what is wrong with them; a
        COMMIT or ROLLBACK before that sends nothing.
        """
        self._at_enter = enter
        self._at_later = later
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
        if args or not (
            self._at_entered or self._at_enter is not None or self._at_keep is not None or self._at_opening is not None
        ):
            return super().execute(query, *args, timeout=timeout)
        return self._execute_folded(query, timeout)

    async def _execute_folded(self, query: str, timeout: float | None) -> str:
        if query.startswith("BEGIN"):
            if self._at_enter is None:
                self._top_xact = None
                raise BranchRefused(ENDED_INSIDE)
            begin, enter, self._at_enter = query.rstrip("; "), self._at_enter, None
            if self._at_later:
                self._at_opening = Opening(
                    self._protocol, self._transport, self._at_prepared, self._opened, begin, enter
                )
                self._protocol = self._at_opening
                return "BEGIN"
            done = await self._execute_or_abandon(f"{begin};{enter.sql};", timeout)
            self._at_entered = True
            return done
        if self._at_opening is not None and (
            query.startswith("ROLLBACK") or (query == "COMMIT;" and self._at_keep is None)
        ):
            # Nothing was sent yet, so there is nothing to end; the next BEGIN may enter the branch still.
            opening = self._at_opening
            self._put_back()
            if self._at_enter is None and query == "COMMIT;":
                self._at_enter = opening.enter
            if query in ("COMMIT;", "ROLLBACK;"):
                return query.rstrip(";")
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

    def _opened(self) -> None:
        """BEGIN is on its way."""
        self._put_back()
        self._at_entered = True

    def _put_back(self) -> None:
        opening, self._at_opening = self._at_opening, None
        if opening is not None and self._protocol is opening:
            self._protocol = opening.protocol

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
