"""Phase two in one resource: does what was decided, and says in which state every branch ended.

Every call may be repeated, reordered, or run twice at once: the functions in the database see to that.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from uuid import UUID

import asyncpg
import structlog

from coordinator import resource as at
from coordinator.protocol.ids import ResourceName
from coordinator.protocol.messages import Confirm, Settle
from coordinator.protocol.statuses import BranchState, Decision

SETTLE_CONNECTIONS_MAX = 3
"""Connections of its own that settling takes, so that it never queues behind the branches it is to free."""

SETTLE_COMMAND_TIMEOUT_S = 30.0
"""How long one statement of phase two may take."""

FORGOTTEN = int(BranchState.FORGOTTEN)

NO_BRANCH = UUID(int=0)
"""The branch id of a tombstone: it stands for the whole transaction in the resource."""

NamedBranches = Callable[[UUID], Awaitable[Mapping[UUID, str]]]
"""Asks the coordinator which branches the commit of an xid named, over all resources: each with its resource."""

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


class _SettleConnection(asyncpg.Connection):
    """A connection that is used for phase two only: nothing is left behind in it that a reset would have to clear."""

    __slots__ = ()

    def get_reset_query(self) -> str:
        return ""


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
            **{**self._arguments(), "connection_class": _SettleConnection},
            min_size=0,
            max_size=SETTLE_CONNECTIONS_MAX,
            command_timeout=SETTLE_COMMAND_TIMEOUT_S,
        )

    async def close(self) -> None:
        """Closes the small pool."""
        if self._pool is not None:
            self._pool.terminate()
            self._pool = None


@dataclass(frozen=True)
class Followed:
    """What following some commits led to: a confirmation for each, and those for branches of other names."""

    confirms: list[Confirm]
    elsewhere: list[Confirm]


async def follow_commits(
    connection: Any,
    resource: ResourceName,
    settles: Sequence[Settle],
    named: NamedBranches,
    thorough: Collection[int] = (),
) -> Followed:
    """Forgets the named branches of committed transactions, all at once. Raises asyncpg's errors.

    That is one statement when all of them were open. For those in `thorough` (numbers of xids), and where a branch was
    settled before, it also looks at every branch that is here, undoes orphans and says how each ended.

    An orphan is a branch that its commit did not name: somebody gave it up, so it must leave no trace. Before one is
    undone, `named` is asked for all branches of its transaction: a database that goes by two names, or was renamed,
    would otherwise undo what is committed under the other one. Raises what `named` raises, with nothing undone.
    """
    elsewhere: list[Confirm] = []
    branches = [branch for settle in settles for branch in settle.branches]
    forgotten = await at.forget(connection, [settle.xid for settle in settles], branches)
    unclear = [settle.xid for settle in settles if forgotten < len(branches) or settle.xid.int in thorough]
    if not unclear:
        return Followed([Confirm(one.xid, resource, [(b, FORGOTTEN) for b in one.branches]) for one in settles], [])
    states = await _states(connection, unclear)
    for settle in settles:
        here = states.get(settle.xid, {})
        orphans = {branch for branch, state in here.items() if state == BranchState.OPEN} - set(settle.branches)
        if orphans:
            committed = await named(settle.xid)
            for branch in orphans & committed.keys():
                _log.error(
                    "resource.named_otherwise", xid=str(settle.xid), resource=resource, committed_as=committed[branch]
                )
                await at.forget(connection, [settle.xid], [branch])
                elsewhere.append(Confirm(settle.xid, committed[branch], [(branch, FORGOTTEN)]))
                here.pop(branch)
            here.update(await _undo_orphans(connection, resource, settle.xid, orphans - committed.keys()))
    confirms = [
        Confirm(settle.xid, resource, sorted(_ended(settle, states.get(settle.xid, {})).items())) for settle in settles
    ]
    return Followed(confirms, elsewhere)


async def _undo_orphans(connection: Any, resource: ResourceName, xid: UUID, orphans: set[UUID]) -> dict[UUID, int]:
    if not orphans:
        return {}
    _log.warning("branch.orphan", xid=str(xid), resource=resource, branches=[str(branch) for branch in orphans])
    return dict.fromkeys(orphans, await _undo(connection, resource, xid, sorted(orphans)))


async def follow_rollback(connection: Any, resource: ResourceName, xid: UUID) -> Confirm:
    """Undoes one transaction here and leaves its tombstone. Raises asyncpg's errors; nothing is half done then."""
    await _undo(connection, resource, xid, None)
    return Confirm(xid, resource, sorted((await _states(connection, [xid]))[xid].items()))


async def _undo(connection: Any, resource: ResourceName, xid: UUID, branches: Sequence[UUID] | None) -> int:
    report = await at.undo(connection, xid, branches)
    if report.state == BranchState.QUARANTINED:
        _log.error("branch.quarantined", xid=str(xid), resource=resource, problems=len(report.problems))
    return int(report.state)


async def _states(connection: Any, xids: Sequence[UUID]) -> dict[UUID, dict[UUID, int]]:
    states: dict[UUID, dict[UUID, int]] = {xid: {} for xid in xids}
    for row in await connection.fetch(_STATES, xids):
        # asyncpg's UUID is a subclass; the wire form and the dictionaries want the plain one.
        states[UUID(int=row["xid"].int)][UUID(int=row["branch_id"].int)] = row["state"]
    return states


def _ended(settle: Settle, here: Mapping[UUID, int]) -> dict[UUID, int]:
    """How the branches of a commit ended: the named ones FORGOTTEN, also when their rows were purged since."""
    ended = {branch: state for branch, state in here.items() if state != BranchState.OPEN}
    return {**dict.fromkeys(settle.branches, FORGOTTEN), **ended}


def is_decided(decision: int) -> bool:
    """Whether a Decision number off the wire says that phase two may start."""
    return decision in (Decision.COMMITTED, Decision.ROLLED_BACK)
