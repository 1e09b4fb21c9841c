"""Reads that know about global locks: a locking read, and a committed read. Both are functions in the database.

SQLAlchemy is imported only when an object of it is seen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, overload

from coordinator import resource as at
from coordinator.client.context import required
from coordinator.client.local import is_sqlalchemy
from coordinator.protocol.errors import BranchRefused

if TYPE_CHECKING:
    from sqlalchemy import Select
    from sqlalchemy.ext.asyncio import AsyncSession

NO_ACTIVE_BRANCH = "25001"
"""SQLSTATE of at.lock outside a branch."""

EntityT = TypeVar("EntityT")


@overload
async def lock(target: AsyncSession, what: Select[tuple[EntityT]], /) -> list[EntityT]:
    """Objects, through SQLAlchemy."""


@overload
async def lock(target: Any, what: str, where: str = "true", /, *arguments: object) -> list[Any]:
    """Records, through asyncpg."""


async def lock(target: Any, what: Any, where: str = "true", /, *arguments: object) -> list[Any]:
    """Reads rows inside a branch and holds their global locks until the decision: nobody else can change them.

    With an AsyncSession `what` is a select of one mapped class; its objects come in the select's order, read anew. With
    an asyncpg connection `what` is a managed table as SQL writes it and `where` all that may follow WHERE, with its
    `arguments`; the rows come as records. Costs one statement. Rows that do not match yet, or that an undecided
    transaction has deleted, are not locked: another may still add them.

    Raises NoGlobalTransaction, BranchRefused outside a branch, TypeError for a select of anything else. What the
    database refuses (a locked row, an unmanaged table, a statement that cannot lock) is its own error here, and becomes
    LockConflict (retried by run_branch), UnmanagedTable and so on when it leaves the branch.
    """
    required()
    try:
        if is_sqlalchemy(target):
            from coordinator.client.statements import locking

            # What the session remembers of these rows may be older; what it has changed goes first, autoflush or not.
            await target.flush()
            found = await target.execute(locking(what), execution_options={"populate_existing": True})
            return list(found.scalars())
        picked = f"SELECT at__row FROM {what} AS at__row WHERE {where} FOR NO KEY UPDATE"  # noqa: S608 - SQL is asked for
        return list(await target.fetch(f"SELECT * FROM at.lock(ARRAY({picked}))", *arguments))  # noqa: S608
    except Exception as error:
        if getattr(at.find_postgres_error(error), "sqlstate", None) == NO_ACTIVE_BRANCH:
            raise BranchRefused("lock() outside a branch: nobody would ever free the rows") from error
        raise


def committed(entity: type[EntityT], *, own: bool = False) -> type[EntityT]:
    """The mapped class as of the last decisions, for a select: what undecided transactions touched is as before.

    ``c = committed(Account); select(c).where(c.id == 7)`` waits for nobody. Everything that one statement reads so in
    one database is of one instant: each transaction as a whole, or not at all. With `own`, rows that the current
    branch's transaction touched are as they are. Use a session that does not hold the same objects: it would take the
    two for one. Raises TypeError for what is no mapped class of one table.
    """
    from coordinator.client.statements import committed_entity

    aliased: type[EntityT] = committed_entity(entity, own=own)
    return aliased
