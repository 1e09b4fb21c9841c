"""The TM side: begins a global transaction, and decides it when its block ends."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from enum import StrEnum
from types import TracebackType
from typing import ParamSpec, TypeVar
from uuid import UUID

import structlog

from coordinator.client.context import Initiator, Scope, bind, current, set_aside
from coordinator.client.rules import EVERY_EXCEPTION, RollbackRules
from coordinator.client.settle import Settler
from coordinator.client.transport import Transport, outcome_of
from coordinator.protocol.errors import CoordinatorError, NoGlobalTransaction, TransactionRolledBack
from coordinator.protocol.ids import ResourceName, Xid, uuid7
from coordinator.protocol.messages import NAME_LENGTH_MAX, Answer, BranchRef, Confirm, Decide, Outcome, Settle
from coordinator.protocol.statuses import Decision, Reason

TIMEOUT_S = 10.0
"""How long a global transaction may stay undecided when nothing else is said."""

TIMEOUT_MAX_S = 3600.0
"""The longest time-out: rows stay locked for so long when the initiator dies."""

COMMIT_GRACE_S = 5.0
"""How long after the deadline a commit without an answer is still repeated."""

ROLLBACK_WAIT_S = 5.0
"""How long the end of a failed block waits for the rollback; what is left then is done by the settle loops."""

_log = structlog.get_logger("coordinator.client.transactions")

OnEnd = Callable[[str, str], None]
"""Hears the name of each transaction that was begun here and had branches, and how it ended, while its xid is bound."""

P = ParamSpec("P")
T = TypeVar("T")


class Propagation(StrEnum):
    """What a global_transaction does where one is running, and where none is (the words are Seata's and Spring's)."""

    REQUIRED = "required"  # joins it; begins one
    REQUIRES_NEW = "requires_new"  # begins one of its own; begins one
    SUPPORTS = "supports"  # joins it; runs without
    NOT_SUPPORTED = "not_supported"  # runs without; runs without
    NEVER = "never"  # raises NoGlobalTransaction; runs without
    MANDATORY = "mandatory"  # joins it; raises NoGlobalTransaction


class Transaction:
    """What a block sees of its global transaction. `running` is False where the propagation says to run without."""

    def __init__(self, scope: Scope | None) -> None:
        self._scope = scope

    @property
    def running(self) -> bool:
        """Whether the block is part of a global transaction."""
        return self._scope is not None

    @property
    def xid(self) -> Xid:
        """Its id. Raises NoGlobalTransaction when the block runs without one."""
        return self._known().xid

    @property
    def branches(self) -> tuple[BranchRef, ...]:
        """The branches so far."""
        return self._known().branches

    @property
    def deadline_ms(self) -> int:
        """When it is rolled back if nobody has decided, in milliseconds since 1970."""
        return self._known().deadline_ms

    @property
    def rollback_only(self) -> str | None:
        """Why it can only roll back, or None."""
        return self._known().rollback_only

    def mark_rollback_only(self, why: str) -> None:
        """The end of the block will roll back and raise TransactionRolledBack, whatever happens until then."""
        self._known().mark_rollback_only(why)

    def _known(self) -> Scope:
        if self._scope is None:
            raise NoGlobalTransaction("this block runs without a global transaction")
        return self._scope


class Decider:
    """Ends global transactions: asks for the decision and hands it to the resources that live here."""

    def __init__(
        self,
        transport: Transport,
        settlers: Mapping[ResourceName, Settler],
        background: Callable[[Coroutine[object, object, object], str], asyncio.Task[object]],
        clock: Callable[[], float] = time.time,
        on_end: OnEnd | None = None,
    ) -> None:
        self._transport = transport
        self._settlers = settlers
        self._background = background
        self._on_end = on_end
        self.clock = clock
        self.local: set[int] = set()  # by number: see Scope

    def begin(self, name: str, timeout_s: float) -> Initiator:
        """A fresh transaction. Nothing is said to anybody yet."""
        now_ms = int(self.clock() * 1000)
        scope = Initiator(Xid(uuid7(now_ms)), name, now_ms + int(timeout_s * 1000))
        self.local.add(scope.xid.int)
        return scope

    async def end(self, scope: Initiator, *, commit: bool) -> None:
        """Commits or rolls back, and says so to who wants to know. Raises as `commit` does."""
        outcome = "unknown"
        try:
            await (self.commit(scope) if commit else self.rollback(scope))
            outcome = "committed" if commit else "rolled_back"
        except TransactionRolledBack:
            outcome = "rolled_back"
            raise
        finally:
            if self._on_end is not None and scope.touched:
                self._on_end(scope.name, outcome)

    async def commit(self, scope: Initiator) -> None:
        """Commits, or rolls back what may not commit. A caller that is cancelled meanwhile leaves it running.

        Raises TransactionRolledBack, OutcomeUnknown, and what Transport.commit raises before anything was sent.
        """
        if scope.open_branches:
            scope.mark_rollback_only(f"{scope.open_branches} branches or calls were still running at its end")
        if scope.rollback_only is not None:
            await self.rollback(scope)
            raise TransactionRolledBack(
                f"global transaction {scope.xid} was rolled back: {scope.rollback_only}", Reason.ASKED
            )
        scope.decided = True
        if not scope.branches:
            if scope.begun:
                request = Decide(scope.xid, scope.name, scope.deadline_ms, True, [])
                self._background(self._transport.commit(request, scope.deadline_ms / 1000), "coordinator-empty-commit")
            return
        request = Decide(scope.xid, scope.name, scope.deadline_ms, True, list(scope.branches))
        said = self._transport.say(request, scope.deadline_ms / 1000 + COMMIT_GRACE_S)
        # Before this task goes on: who waits for these rows comes first.
        said.add_done_callback(functools.partial(self._answered, scope))
        try:
            outcome = outcome_of(await asyncio.shield(said))
        except asyncio.CancelledError:
            self._background(self._commit(scope, request, said), "coordinator-commit")
            raise
        except Exception:
            # Only what does not go well at once pays for a task of its own.
            await asyncio.shield(self._background(self._commit(scope, request, said), "coordinator-commit"))
            return
        await self._committed(scope, outcome)

    def ended(self, scope: Initiator) -> None:
        """Nobody in this process needs to wait for news of it any longer."""
        self.local.discard(scope.xid.int)

    async def _commit(self, scope: Initiator, request: Decide, said: asyncio.Future[Answer]) -> None:
        outcome = await self._transport.commit(request, scope.deadline_ms / 1000 + COMMIT_GRACE_S, said)
        await self._committed(scope, outcome)

    async def _committed(self, scope: Initiator, outcome: Outcome) -> None:
        """What was decided about our wish to commit. Raises TransactionRolledBack."""
        if outcome.decision == Decision.COMMITTED:
            self._tell(scope)
            return
        await self._wait_for(self._follow(scope, outcome), ROLLBACK_WAIT_S)
        reason = outcome.reason or Reason.ASKED
        raise TransactionRolledBack(f"global transaction {scope.xid} was rolled back ({reason})", reason)

    async def rollback(self, scope: Initiator) -> None:
        """Rolls back and waits for the undo, at most ROLLBACK_WAIT_S. Never raises but when cancelled.

        What could not be said or done in time is done by the settle loops after the deadline.
        """
        scope.decided = True
        if not scope.touched:
            return
        task = self._background(self._rollback(scope), "coordinator-rollback")
        if scope.known_branches or scope.called:
            await asyncio.shield(task)

    async def _rollback(self, scope: Initiator) -> None:
        branches = list(scope.known_branches)
        request = Decide(scope.xid, scope.name, scope.deadline_ms, False, branches)
        try:
            async with asyncio.timeout(ROLLBACK_WAIT_S):
                outcome = await self._transport.rollback(request, self.clock() + ROLLBACK_WAIT_S)
                if outcome.decision != Decision.ROLLED_BACK:
                    _log.error("transaction.committed_elsewhere", xid=str(scope.xid), reason=outcome.reason)
                await self._wait_for(self._follow(scope, outcome), ROLLBACK_WAIT_S)
        except (CoordinatorError, TimeoutError) as error:
            _log.warning("rollback.postponed", xid=str(scope.xid), error=repr(error))

    def _answered(self, scope: Initiator, said: asyncio.Future[Answer]) -> None:
        if not said.cancelled() and said.exception() is None:
            answer = said.result()
            if isinstance(answer, Outcome) and answer.decision == Decision.COMMITTED:
                self._tell(scope)

    def _tell(self, scope: Initiator) -> None:
        """Tells the resources of this process of the commit. Nobody waits for what they do about it."""
        committed: dict[str, list[UUID]] = {}
        for ref in scope.branches:
            committed.setdefault(ref.resource, []).append(ref.branch)
        for name, branches in committed.items():
            settler = self._settlers.get(ResourceName(name))
            if settler is not None:
                settler.tell(Settle(scope.xid, Decision.COMMITTED, branches))

    def _follow(self, scope: Initiator, outcome: Outcome) -> list[asyncio.Future[Confirm]]:
        """Hands the decision to the resources of this process; those elsewhere hear it from the coordinator."""
        following: list[asyncio.Future[Confirm]] = []
        names = dict.fromkeys(ref.resource for ref in scope.known_branches)
        for name in names:
            settler = self._settlers.get(ResourceName(name))
            if settler is not None:
                committed = [ref.branch for ref in scope.branches if ref.resource == name]
                branches = committed if outcome.decision == Decision.COMMITTED else []
                following.append(settler.follow_soon(Settle(scope.xid, outcome.decision, branches)))
        return following

    @staticmethod
    async def _wait_for(following: Iterable[asyncio.Future[Confirm]], timeout_s: float) -> None:
        waited = set(following)
        if waited:
            await asyncio.wait(waited, timeout=timeout_s)


class GlobalTransaction:
    """A block (``async with``) or a function (decorator) that is one global transaction.

    As a decorator it may be used by any number of callers at once; as a block, one at a time for one object.
    """

    def __init__(
        self,
        decider: Callable[[], Decider],
        name: str,
        timeout_s: float,
        propagation: Propagation,
        rules: RollbackRules = EVERY_EXCEPTION,
    ) -> None:
        if not 0 < timeout_s <= TIMEOUT_MAX_S:
            raise ValueError(f"timeout_s must be above 0 and at most {TIMEOUT_MAX_S:g}, not {timeout_s:g}")
        if len(name) > NAME_LENGTH_MAX or not name.isprintable():
            raise ValueError(f"a name has at most {NAME_LENGTH_MAX} printable characters, unlike {name!r}")
        self._decider = decider
        self._name = name
        self._timeout_s = timeout_s
        self._propagation = propagation
        self._rules = rules
        self._entered: tuple[Decider, Initiator | None, Scope | None, Callable[[], None]] | None = None

    def __call__(self, function: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
        """Makes every call of `function` a block of its own."""

        @functools.wraps(function)
        async def call(*args: P.args, **kwargs: P.kwargs) -> T:
            async with GlobalTransaction(self._decider, self._name, self._timeout_s, self._propagation, self._rules):
                return await function(*args, **kwargs)

        return call

    async def __aenter__(self) -> Transaction:
        """Begins, joins, or runs without, as the propagation says. Sends nothing."""
        if self._entered is not None:
            raise RuntimeError("this global transaction is entered already; make one object for each block")
        decider = self._decider()
        outer = current()
        own = self._begin(decider, outer)
        scope = own if own is not None else self._joined(outer)
        unbind = bind(scope) if outer is None or outer is scope else set_aside(outer, scope)
        self._entered = (decider, own, scope, unbind)
        return Transaction(scope)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Decides what this block began: commits, or rolls back after an exception as its rules say. That then goes on.

        Raises TransactionRolledBack when the decision is rollback all the same, OutcomeUnknown when nobody
        answered in time. A joined transaction is only marked to roll back by an exception.
        """
        assert self._entered is not None  # noqa: S101 - __aenter__ came first
        decider, own, scope, unbind = self._entered
        self._entered = None
        failed = error is not None and self._rules.rolls_back(error)
        try:
            if own is None:
                if failed and scope is not None:
                    scope.mark_rollback_only(f"a block that had joined it ended with {type(error).__name__}: {error}")
            else:
                await decider.end(own, commit=not failed)
        finally:
            unbind()
            if own is not None:
                decider.ended(own)

    def _begin(self, decider: Decider, outer: Scope | None) -> Initiator | None:
        fresh = self._propagation is Propagation.REQUIRES_NEW or (
            self._propagation is Propagation.REQUIRED and outer is None
        )
        return decider.begin(self._name, self._timeout_s) if fresh else None

    def _joined(self, outer: Scope | None) -> Scope | None:
        match self._propagation:
            case Propagation.NOT_SUPPORTED:
                return None
            case Propagation.NEVER if outer is not None:
                raise NoGlobalTransaction(f"{self._name} must not run inside a global transaction ({outer.xid})")
            case Propagation.MANDATORY if outer is None:
                raise NoGlobalTransaction(f"{self._name} must run inside a global transaction")
            case _:
                return outer
