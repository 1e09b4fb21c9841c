"""The one door: a Coordinator holds the resources of a process and opens global transactions and branches on them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from random import Random
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, overload

import asyncpg
import structlog

from coordinator.client import context
from coordinator.client.backoff import backoff_s
from coordinator.client.branches import Branch, BranchRunner
from coordinator.client.nesting import bounded, limit_lock_wait
from coordinator.client.phase_two import is_decided
from coordinator.client.resources import Resource, describe_resource, identity_of
from coordinator.client.rules import Kinds, RollbackRules
from coordinator.client.settle import Settler
from coordinator.client.steps import Handler, Step, StepCall, Steps
from coordinator.client.transactions import TIMEOUT_S, Decider, GlobalTransaction, OnEnd, Propagation
from coordinator.client.transport import Transport
from coordinator.protocol.errors import CoordinatorError, CoordinatorUnavailable, DeadlinePassed
from coordinator.protocol.ids import BranchId, ResourceName, Xid
from coordinator.protocol.messages import Announce, Confirm, Nudge
from coordinator.protocol.tokens import TokenMaker, TokenVerifier

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

ANNOUNCE_INTERVAL_S = 60.0
"""Pause between two announcements of where the resources can be nudged."""

ANNOUNCE_BASE_S = 0.5
"""First back-off of an announcement that nobody took."""

LOCAL_WAIT_S = 10.0
"""How long a plain local transaction waits for the rows of global ones when nothing else is said."""

NUDGE_ANSWER_S = 5.0
"""How long a nudge is held; what is not settled by then is confirmed later."""

CLOSE_WAIT_S = 5.0
"""How long closing waits for decisions that are still on their way."""

RESTART_PAUSE_S = 1.0
"""Pause before a settle loop that ended by a bug is started again."""

_log = structlog.get_logger("coordinator.client")

T = TypeVar("T")
TargetT = TypeVar("TargetT")


class Coordinator:
    """Global transactions for one process and one event loop. Nothing happens until it is entered.

    `urls` are the coordinator's replicas. `tokens` signs what we say to it, `verifier` checks who calls us (nudges
    and transactions by header are refused without it). `nudge_url` is where our nudge route can be reached.
    `on_end` hears the name of each transaction that ended here and how: ``committed``, ``rolled_back`` or ``unknown``.
    """

    def __init__(
        self,
        urls: Sequence[str],
        tokens: TokenMaker | None = None,
        verifier: TokenVerifier | None = None,
        nudge_url: str | None = None,
        *,
        on_end: OnEnd | None = None,
        clock: Callable[[], float] = time.time,
        dice: Random | None = None,
    ) -> None:
        self.tokens = tokens
        self.verifier = verifier
        self._nudge_url = nudge_url
        self._clock = clock
        self._dice = Random() if dice is None else dice  # noqa: S311 - spreads retries; nothing secret depends on it
        self._owner = f"{socket.gethostname()}/{os.getpid()}/{secrets.token_hex(4)}"
        self._transport = Transport(urls, tokens, clock=clock, dice=self._dice)
        self._resources: dict[ResourceName, Resource[Any]] = {}
        self._settlers: dict[ResourceName, Settler] = {}
        self._loops: list[asyncio.Task[None]] = []
        self._background: set[asyncio.Task[object]] = set()
        self._open = False
        self._decider = Decider(self._transport, self._settlers, self._in_background, clock, on_end)
        self._runner = BranchRunner(
            self._transport, self._settler_of, self._decider.local, clock=clock, dice=self._dice
        )
        self._steps = Steps(self._runner, self._settler_of, clock=clock, dice=self._dice)

    # Resources

    @overload
    def resource(
        self, name: str, target: AsyncEngine, *, connect_args: Mapping[str, Any] | None = None
    ) -> Resource[AsyncSession]: ...

    @overload
    def resource(self, name: str, target: asyncpg.Pool) -> Resource[asyncpg.Connection]: ...

    def resource(self, name: str, target: Any, *, connect_args: Mapping[str, Any] | None = None) -> Resource[Any]:
        """Names a database that takes part. May be called before the coordinator is entered, or after.

        One database has one name, the same in every process that works with it, and keeps it.
        `target` is an AsyncEngine (work gets an AsyncSession) or an asyncpg.Pool (work gets a connection).
        `connect_args` are those that the engine was made with, where they say how to connect (ssl, host):
        settling opens connections of its own. Raises ValueError for a name that is taken or malformed.
        """
        if name in self._resources:
            raise ValueError(f"resource {name!r} is named already")
        described = describe_resource(name, target, connect_args)
        self._resources[described.name] = described
        if self._open:
            self._start(described)
        return described

    async def __aenter__(self) -> Coordinator:
        """Opens the way to the coordinator and starts the settle loops. Does not wait for anything to answer."""
        if self._open:
            raise RuntimeError("this coordinator is entered already")
        await self._transport.__aenter__()
        self._open = True
        for resource in self._resources.values():
            self._start(resource)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        """Waits CLOSE_WAIT_S for decisions on their way, then stops everything. Open branches are left to others."""
        self._open = False
        await self._transport.drain(CLOSE_WAIT_S)
        if self._background:
            await asyncio.wait(set(self._background), timeout=CLOSE_WAIT_S)
        tasks = [*self._loops, *self._background]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._loops.clear()
        self._settlers.clear()
        await self._transport.__aexit__(None, None, None)

    # Global transactions

    def global_transaction(
        self,
        name: str,
        *,
        timeout_s: float = TIMEOUT_S,
        propagation: Propagation = Propagation.REQUIRED,
        rollback_for: Kinds = (),
        no_rollback_for: Kinds = (),
    ) -> GlobalTransaction:
        """A global transaction as a block or a decorator.

        The block commits at its end and rolls back when an exception leaves it: every one, but for those of the classes
        `no_rollback_for`; `rollback_for` makes exceptions from these, and the more specific class counts. Entered
        where one is running, it joins (see Propagation). Raises ValueError for a time-out that is out of range, a name
        the coordinator would refuse, or a class in both lists; TypeError for what is no class of exceptions.
        """
        rules = RollbackRules(rollback_for, no_rollback_for)
        return GlobalTransaction(self._entered_decider, name, timeout_s, propagation, rules)

    @contextlib.contextmanager
    def participant(self, xid: Xid, call: BranchId, deadline_ms: int) -> Iterator[context.Participant]:
        """Runs a block as part of somebody else's transaction: `call` is the branch id that the caller made.

        Raises DeadlinePassed when it comes too late.
        """
        if self._clock() * 1000 >= deadline_ms:
            raise DeadlinePassed(f"the call came after the deadline of global transaction {xid}")
        scope = context.Participant(xid, call, deadline_ms)
        with context.bound(scope):
            try:
                yield scope
            finally:
                scope.answer()

    # Branches

    def run_branch(
        self,
        resource: Resource[TargetT],
        work: Callable[[TargetT], Awaitable[T]],
        *,
        result_type: type[T] | None = None,
    ) -> Coroutine[Any, Any, T]:
        """Runs `work` in one local transaction that is a branch of the current global transaction.

        A lock conflict rolls the local transaction back, waits for the holder's decision and runs `work` again, so
        it may run several times, each time on a clean slate. With `result_type` its answer (JSON by msgspec) is kept
        with the branch, and a repeated call gets it back without running `work`.

        Raises NoGlobalTransaction; LockConflict when the deadline comes first; Deadlock; TransactionRolledBack;
        BranchRepeated (no answer was kept); BranchAborted; DeadlinePassed; UnmanagedTable; what `work` raises.
        """
        return self._runner.run_branch(resource, bounded(work), result_type)

    @contextlib.asynccontextmanager
    async def branch(self, target: Any, *, resource: Resource[Any] | None = None) -> AsyncIterator[Branch]:
        """A branch as a block on a session, engine, pool, connection or Resource: its end commits locally.

        Nothing is retried: a conflict surfaces as LockConflict. `resource` can be left out where `target` belongs
        to a named one; a bare asyncpg connection that is no pool's needs it. Raises as run_branch does, and
        ValueError when no resource fits.
        """
        if isinstance(target, Resource):
            resource, target = target, target.target
        named = self._resource_of(target) if resource is None else resource
        async with self._runner.branch(target, named.name) as branch:
            if context.branch_open_around():
                await limit_lock_wait(branch.target)
            yield branch

    async def run_local(
        self, resource: Resource[TargetT], work: Callable[[TargetT], Awaitable[T]], *, wait_s: float = LOCAL_WAIT_S
    ) -> T:
        """Runs `work` in a plain local transaction, again when it meets a global transaction's rows or is broken off.

        Raises LockConflict when the rows stay locked for `wait_s`, and what `work` raises.
        """
        return await self._runner.run_local(resource, bounded(work), wait_s)

    # Steps

    def step(
        self,
        name: str,
        resource: Resource[Any],
        *,
        do: Callable[[StepCall], Awaitable[T]] | None = None,
        undo: Handler | None = None,
        commit: Handler | None = None,
    ) -> Step[T]:
        """Registers an effect outside the database, or a message, that transactions may have as a step in `resource`.

        `do` has the effect when the step is called; `undo` runs at least once when the transaction is rolled back,
        `commit` at least once when it has committed, in any process that registered the name. Register all of them
        at the start. Raises ValueError for a name that is taken or malformed, no handler, or `do` without `undo`.
        """
        step = Step(self._steps, name, resource, do, undo, commit)
        if self._steps.add(step) and self._open:
            self._start_steps(resource)
        return step

    # Phase two

    async def nudged(self, nudge: Nudge) -> list[Confirm]:
        """Settles what the coordinator says about one resource; answers with what is done within NUDGE_ANSWER_S.

        Raises ValueError when the resource does not live here.
        """
        settler = self._settlers.get(ResourceName(nudge.resource))
        if settler is None:
            raise ValueError(f"resource {nudge.resource!r} does not live here")
        # What names no decision is nothing to follow, and must not stand in the way of the decision that comes later.
        following = [settler.follow_soon(settle) for settle in nudge.settle if is_decided(settle.decision)]
        if not following:
            settler.sweep_soon()
            return []
        done, _ = await asyncio.wait(set(following), timeout=NUDGE_ANSWER_S)
        return [future.result() for future in done if not future.cancelled() and future.exception() is None]

    # Inside

    def _entered_decider(self) -> Decider:
        if not self._open:
            raise CoordinatorUnavailable("the coordinator is not entered; use `async with coordinator:`")
        return self._decider

    def _settler_of(self, name: ResourceName) -> Settler:
        settler = self._settlers.get(name)
        if settler is None:
            raise CoordinatorUnavailable(f"resource {name!r} is not running; enter the coordinator it was named with")
        return settler

    def _resource_of(self, target: Any) -> Resource[Any]:
        identity = identity_of(target)
        for resource in self._resources.values():
            if identity is not None and resource.identity is identity:
                return resource
        raise ValueError(f"{type(target).__name__} belongs to no resource of this coordinator; say resource=...")

    def _in_background(self, work: Coroutine[Any, Any, object], name: str) -> asyncio.Task[object]:
        task = asyncio.create_task(work, name=name)
        self._background.add(task)
        task.add_done_callback(self._background_done)
        return task

    def _background_done(self, task: asyncio.Task[object]) -> None:
        self._background.discard(task)
        if not task.cancelled() and isinstance(task.exception(), CoordinatorError):
            _log.debug("background.failed", task=task.get_name(), error=repr(task.exception()))

    def _start(self, resource: Resource[Any]) -> None:
        settler = Settler(
            resource.name,
            resource.connections,
            self._transport,
            owner=self._owner,
            dice=self._dice,
            clock=asyncio.get_running_loop().time,
        )
        self._settlers[resource.name] = settler
        # The loops outlive whoever starts them: they must not inherit that task's global transaction.
        with context.bound(None):
            self._loops.append(
                asyncio.create_task(
                    self._for_ever(settler.run, resource, "settle.crashed"), name=f"settle {resource.name}"
                )
            )
            if self._nudge_url is not None:
                announce = Announce(resource.name, self._nudge_url)
                self._loops.append(
                    asyncio.create_task(self._announce_for_ever(announce), name=f"announce {resource.name}")
                )
        self._start_steps(resource)

    def _start_steps(self, resource: Resource[Any]) -> None:
        carrier = self._steps.carrier(resource.name)
        if carrier is not None:
            with context.bound(None):
                work = self._for_ever(carrier.run, resource, "steps.crashed")
                self._loops.append(asyncio.create_task(work, name=f"steps {resource.name}"))

    async def _for_ever(self, run: Callable[[], Awaitable[None]], resource: Resource[Any], crashed: str) -> None:
        while True:
            try:
                await run()
            except Exception:
                _log.exception(crashed, resource=resource.name)
                await asyncio.sleep(RESTART_PAUSE_S)

    async def _announce_for_ever(self, announce: Announce) -> None:
        failures = 0
        while True:
            try:
                await self._transport.announce(announce)
                failures = 0
            except CoordinatorError as error:
                if failures == 0:
                    _log.warning("announce.failed", resource=announce.resource, error=repr(error))
                failures += 1
            pause_s = ANNOUNCE_INTERVAL_S
            if failures:
                pause_s = backoff_s(failures, ANNOUNCE_BASE_S, ANNOUNCE_INTERVAL_S, self._dice)
            await asyncio.sleep(pause_s)
