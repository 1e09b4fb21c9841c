"""The running global transaction as this process sees it, and how it travels with the flow of the program.

An `Initiator` began the transaction here and will decide it. A `Participant` was called by somebody else's
transaction: it adds branches and never decides. Which one is current lives in a ContextVar, so tasks that
are started inside (asyncio.gather) inherit it and everything else does not see it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from uuid import UUID

import structlog

from coordinator.protocol.errors import NoGlobalTransaction
from coordinator.protocol.ids import BranchId, ResourceName, Xid, derived_branch
from coordinator.protocol.messages import BRANCHES_MAX, BranchRef

HEADER_ROLLBACK_ONLY = "X-Tx-Rollback-Only"
"""Answer header of a participant that wants the transaction rolled back though its answer is no error."""

_CALLS = ResourceName("call")
"""The name under which ids of outgoing calls are derived; no resource is ever written under them."""

_current: ContextVar[Scope | None] = ContextVar("coordinator_scope", default=None)
_around: ContextVar[tuple[Scope, ...]] = ContextVar("coordinator_around", default=())


class Scope(ABC):
    """What a running global transaction has done so far: its branches, those in doubt, and whether it may commit."""

    def __init__(self, xid: Xid, name: str, deadline_ms: int) -> None:
        self.xid = xid
        self.name = name
        self.deadline_ms = deadline_ms
        self.deadline = datetime.fromtimestamp(deadline_ms / 1000, UTC)
        self.rollback_only: str | None = None
        self.decided = False
        self.answered = False
        self.touched = False
        self.called = False
        # By the number of the branch's id: a UUID is hashed by Python code, and this happens in every branch.
        self._noted: dict[int, BranchRef] = {}
        self._doubtful: dict[int, BranchRef] = {}
        self._open = 0

    @property
    def branches(self) -> tuple[BranchRef, ...]:
        """The branches that belong to the transaction: their local transactions have committed."""
        return tuple(self._noted.values())

    @property
    def known_branches(self) -> tuple[BranchRef, ...]:
        """`branches` and those whose local commit ended in doubt: what a rollback names."""
        return tuple({**self._noted, **self._doubtful}.values())

    @property
    def open_branches(self) -> int:
        """How many branches and calls are running at this moment."""
        return self._open

    @abstractmethod
    def next_branch(self, resource: ResourceName) -> BranchId:
        """The id of the next branch in `resource`: one that no other branch of the transaction has."""

    def next_call(self) -> BranchId:
        """The id of the next outgoing call."""
        return self.next_branch(_CALLS)

    def mark_rollback_only(self, why: str) -> None:
        """From now on the transaction can only roll back; the first reason is kept."""
        if self.rollback_only is None:
            self.rollback_only = why

    def note(self, ref: BranchRef) -> None:
        """Adds a branch whose local transaction has committed. The same branch twice is one branch."""
        key = ref.branch.int
        if len(self._noted) >= BRANCHES_MAX and key not in self._noted:
            self.doubt(ref, f"more than {BRANCHES_MAX} branches in one global transaction")
            return
        self._doubtful.pop(key, None)
        self._noted[key] = ref

    def doubt(self, ref: BranchRef, why: str) -> None:
        """Remembers a branch of which nobody knows whether it committed locally; only a rollback is safe then."""
        self._doubtful[ref.branch.int] = ref
        self.mark_rollback_only(why)

    def absorb(self, header: str) -> None:
        """Adds the branches of an `X-Tx-Branches` header (``resource:uuid, resource:uuid``). Raises ValueError."""
        for ref in parse_branches(header):
            self.note(ref)

    @contextmanager
    def calling(self) -> Iterator[BranchId]:
        """Counts an outgoing call as open while it runs; gives its id, which stays the same when it is repeated."""
        with self.running():
            self.called = True
            yield self.next_call()

    @contextmanager
    def running(self) -> Iterator[None]:
        """`opened` and `closed` around a block."""
        self.opened()
        try:
            yield
        finally:
            self.closed()

    def opened(self) -> None:
        """Counts a branch as open until `closed`, so that nothing is decided over its head.

        Raises NoGlobalTransaction when the transaction is decided, or its branches were named to the caller: a task has
        outlived the block or the request that started it.
        """
        if self.decided:
            raise NoGlobalTransaction(f"transaction {self.xid} is decided already; it takes no more branches")
        if self.answered:
            raise NoGlobalTransaction(f"the branches of transaction {self.xid} are named already; it takes no more")
        self.touched = True
        self._open += 1

    def closed(self) -> None:
        """One branch that was `opened` runs no more."""
        self._open -= 1


class Initiator(Scope):
    """The side that began the transaction and decides it."""

    def __init__(self, xid: Xid, name: str, deadline_ms: int) -> None:
        super().__init__(xid, name, deadline_ms)
        self.begun = False
        self._ordinal = 0

    def next_branch(self, resource: ResourceName) -> BranchId:
        """The xid with its last bits changed: as random as that, and different for each branch."""
        self._ordinal += 1
        return BranchId(UUID(int=self.xid.int ^ self._ordinal))


class Participant(Scope):
    """The side that was called. Its branch ids derive from the call's id, so that a repeated call meets its own rows.

    That holds when the repeat makes its branches in one resource in the same order as the first time: branches
    of one participant in one resource must not run concurrently with each other.
    """

    def __init__(self, xid: Xid, call: BranchId, deadline_ms: int) -> None:
        super().__init__(xid, "", deadline_ms)
        self.call = call
        self._ordinals: dict[ResourceName, int] = defaultdict(int)

    def answer(self) -> None:
        """Its branches are named to the caller now: none may come after, and those that still run doom the whole."""
        if self.open_branches and not self.answered:
            self.mark_rollback_only(f"{self.open_branches} branches or calls were still running when it was answered")
        self.answered = True

    def next_branch(self, resource: ResourceName) -> BranchId:
        """The id that this call's next branch in `resource` has, in the first call and in every repeat."""
        ordinal = self._ordinals[resource]
        self._ordinals[resource] += 1
        return derived_branch(self.call, resource, ordinal)


def current() -> Scope | None:
    """The global transaction that the running code is part of, if any."""
    return _current.get()


def required() -> Scope:
    """The current global transaction. Raises NoGlobalTransaction when there is none."""
    scope = _current.get()
    if scope is None:
        raise NoGlobalTransaction("no global transaction is running here; open one with coordinator.global_transaction")
    return scope


@contextmanager
def bound(scope: Scope | None) -> Iterator[None]:
    """Makes `scope` (None: no transaction) the current one inside the block; log lines in it carry the xid."""
    restore = bind(scope)
    try:
        yield
    finally:
        restore()


def set_aside(outer: Scope, scope: Scope | None) -> Callable[[], None]:
    """As `bind(scope)`, and remembers until what it returns is called that `outer` waits meanwhile."""
    token = _around.set((*_around.get(), outer))
    unbind = bind(scope)

    def restore() -> None:
        unbind()
        _around.reset(token)

    return restore


def encloses(xid: UUID) -> bool:
    """Whether `xid` is a transaction around the current one: it is not decided before the running code ends."""
    return any(scope.xid == xid and not scope.decided and not scope.answered for scope in _around.get())


def branch_open_around() -> bool:
    """Whether a transaction around the current one has a branch or call open: what it holds, it holds meanwhile."""
    return any(scope.open_branches for scope in _around.get())


def bind(scope: Scope | None) -> Callable[[], None]:
    """As `bound`, for code that has two hooks instead of a block: returns what puts the former one back."""
    token = _current.set(scope)
    logged = structlog.contextvars.bind_contextvars(xid=None if scope is None else str(scope.xid))

    def restore() -> None:
        structlog.contextvars.reset_contextvars(**logged)
        _current.reset(token)

    return restore


def format_branches(branches: tuple[BranchRef, ...]) -> str:
    """The `X-Tx-Branches` header of these branches; empty for none."""
    return ",".join(f"{ref.resource}:{ref.branch}" for ref in branches)


def parse_branches(header: str) -> list[BranchRef]:
    """The branches of an `X-Tx-Branches` header. Raises ValueError when it is malformed."""
    refs = []
    for item in filter(None, (part.strip() for part in header.split(","))):
        resource, colon, branch = item.rpartition(":")
        if not colon or not resource or not resource.isprintable():
            raise ValueError(f"{item!r} is not a branch (resource:uuid)")
        refs.append(BranchRef(resource, UUID(branch)))
    return refs
