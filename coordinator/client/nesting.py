"""Work that runs while a branch around it is open: it may wait in PostgreSQL for that branch, which waits for it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from coordinator import resource as at
from coordinator.client.context import branch_open_around
from coordinator.client.local import is_sqlalchemy
from coordinator.protocol.errors import BranchRefused

NESTED_LOCK_WAIT_S = 2.0
"""How long a statement may wait for a row's local lock while a branch around it is open. Global locks do not count."""

T = TypeVar("T")


def bounded(work: Callable[[Any], Awaitable[T]]) -> Callable[[Any], Awaitable[T]]:
    """`work`, or where a branch around it is open, one that raises BranchRefused after NESTED_LOCK_WAIT_S of waiting.

    That costs one statement more; nobody could end such a wait otherwise, as neither database nor coordinator see it.
    """
    if not branch_open_around():
        return work

    async def limited(target: Any) -> T:
        await limit_lock_wait(target)
        try:
            return await work(target)
        except Exception as error:
            if getattr(at.find_postgres_error(error), "sqlstate", None) == at.LOCK_NOT_AVAILABLE:
                raise BranchRefused(
                    f"a row was locked by another local transaction for {NESTED_LOCK_WAIT_S:g} s while a branch around"
                    " this code is open, most likely by that one: end the branch before another transaction starts"
                ) from error
            raise

    return limited


async def limit_lock_wait(target: Any) -> None:
    """Sets the limit for the local transaction on `target`, an AsyncSession or asyncpg connection."""
    statement = f"SELECT set_config('lock_timeout', '{int(NESTED_LOCK_WAIT_S * 1000)}', true)"
    if is_sqlalchemy(target):
        await (await target.connection()).exec_driver_sql(statement)
    else:
        await target.execute(statement)
