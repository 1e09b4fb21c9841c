"""Phase two in one resource: does what was decided, and says in which state every branch ended.

Every call may be repeated, reordered, or run twice at once: the functions in the database see to that.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Protocol
from uuid import UUID

import asyncpg
import structlog

from coordinator import resource as at
from coordinator.protocol.ids import BranchId, ResourceName, Xid
from coordinator.protocol.messages import Confirm, Settle
from coordinator.protocol.statuses import BranchState, Decision

SETTLE_CONNECTIONS_MAX = 3
"""Connections of its own that settling takes, so that it never queues behind the branches it is to free."""

SETTLE_COMMAND_TIMEOUT_S = 30.0
"""How long one statement of phase two may take."""

NO_BRANCH = UUID(int=0)
"""The branch id of a tombstone: it stands for the whole transaction in the resource."""

_STATES = """
SELECT x.xid, s.branch_id, s.state
FROM unnest($1::uuid[]) AS x (xid), LATERAL at.states(x.xid) AS s
"""

_log = structlog.get_logger("coordinator.client.phase_two")


class SettleConnections(Protocol):
    """Where phase two gets its connections from."""

    def acquire(self) -> contextlib.AbstractAsyncContextManager[asyncpg.Connection]:
        """A connection for the block, outside any transaction."""
        ...

    async def close(self) -> None:
        """Gives up what was opened for settling; a pool of the application stays open."""
        ...


class PoolConnections:
    """Phase two on the application's own asyncpg pool."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool

    @contextlib.asynccontextmanager
    async def acquire(self) -> AsyncIterator[asyncpg.Connection]:
        """A connection of the pool."""
        async with self._pool.acquire() as connection:
            yield connection

    async def close(self) -> None:
        """Nothing: the pool is the application's."""


class OwnConnections:
    """Phase two on a small pool of its own, opened with the first use. `arguments` are those of asyncpg.connect."""

    def __init__(self, arguments: Callable[[], Mapping[str, Any]]) -> None:
        self._arguments = arguments
        self._pool: Any = None
        self._opening = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def acquire(self) -> AsyncIterator[asyncpg.Connection]:
        """A connection of the small pool. Raises what asyncpg.connect raises."""
        async with self._opening:
            if self._pool is None:
                self._pool = await self._open()
        async with self._pool.acquire() as connection:
            yield connection

    async def _open(self) -> Any:
        create: Any = asyncpg.create_pool
        return await create(
            **self._arguments(),
            min_size=0,
            max_size=SETTLE_CONNECTIONS_MAX,
            command_timeout=SETTLE_COMMAND_TIMEOUT_S,
        )

    async def close(self) -> None:
        """Closes the small pool."""
        if self._pool is not None:
            self._pool.terminate()
            self._pool = None


async def follow_commits(connection: Any, resource: ResourceName, settles: Sequence[Settle]) -> list[Confirm]:
    """Forgets the named branches of committed transactions, all at once, and undoes orphans. Raises asyncpg's errors.

    An orphan is a branch that its commit did not name: somebody gave it up, so it must leave no trace.
    """
    xids = [settle.xid for settle in settles]
    named = {settle.xid: set(settle.branches) for settle in settles}
    states = await _states(connection, xids)
    for xid in xids:
        orphans = [
            branch for branch, state in states[xid].items() if state == BranchState.OPEN and branch not in named[xid]
        ]
        if orphans:
            _log.warning("branch.orphan", xid=str(xid), resource=resource, branches=[str(branch) for branch in orphans])
            undone = await _undo(connection, resource, xid, orphans)
            states[xid].update(dict.fromkeys(orphans, undone))
    branches = [branch for settle in settles for branch in settle.branches]
    await at.forget(connection, [Xid(xid) for xid in xids], [BranchId(branch) for branch in branches])
    return [_confirm(resource, xid, {**states[xid], **_forgotten(states[xid], named[xid])}) for xid in xids]


async def follow_rollback(connection: Any, resource: ResourceName, xid: UUID) -> Confirm:
    """Undoes one transaction here and leaves its tombstone. Raises asyncpg's errors; nothing is half done then."""
    await _undo(connection, resource, xid, None)
    return _confirm(resource, xid, (await _states(connection, [xid]))[xid])


async def _undo(connection: Any, resource: ResourceName, xid: UUID, branches: Sequence[UUID] | None) -> int:
    named = None if branches is None else [BranchId(branch) for branch in branches]
    report = await at.undo(connection, Xid(xid), named)
    if report.state == BranchState.QUARANTINED:
        _log.error("branch.quarantined", xid=str(xid), resource=resource, problems=len(report.problems))
    return int(report.state)


async def _states(connection: Any, xids: Sequence[UUID]) -> dict[UUID, dict[UUID, int]]:
    states: dict[UUID, dict[UUID, int]] = {xid: {} for xid in xids}
    for row in await connection.fetch(_STATES, xids):
        # asyncpg's UUID is a subclass; the wire form and the dictionaries want the plain one.
        states[UUID(int=row["xid"].int)][UUID(int=row["branch_id"].int)] = row["state"]
    return states


def _forgotten(states: Mapping[UUID, int], named: set[UUID]) -> dict[UUID, int]:
    """Named branches end FORGOTTEN, also when their rows were purged since; what is settled otherwise stays so."""
    return {
        branch: int(BranchState.FORGOTTEN)
        for branch in named
        if states.get(branch, BranchState.OPEN) == BranchState.OPEN
    }


def _confirm(resource: ResourceName, xid: UUID, states: Mapping[UUID, int]) -> Confirm:
    return Confirm(xid, resource, sorted(states.items()))


def is_decided(decision: int) -> bool:
    """Whether a Decision number off the wire says that phase two may start."""
    return decision in (Decision.COMMITTED, Decision.ROLLED_BACK)
