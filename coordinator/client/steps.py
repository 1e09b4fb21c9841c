"""Steps: effects outside the database that belong to a global transaction, and messages that leave after its commit.

A step is a name with up to three handlers. `do` has the effect, inside the transaction; `undo` takes it back when the
transaction is rolled back, however it came to that; `commit` runs when it has committed. The step is recorded in a
resource, in a branch, before `do` is called, so it survives the death of everybody: any process that has the resource
and has registered the name carries out what is due. `undo` and `commit` run at least once, with the key that `do` had.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from random import Random
from typing import Any, Generic, TypeVar
from uuid import UUID

import msgspec
import structlog

from coordinator import resource as at
from coordinator.client.backoff import backoff_s
from coordinator.client.branches import BranchRunner
from coordinator.client.context import Scope, required
from coordinator.client.local import is_sqlalchemy, sheltered
from coordinator.client.resources import Resource, identity_of
from coordinator.client.settle import DATABASE_AWAY, Settler
from coordinator.protocol.errors import DeadlinePassed
from coordinator.protocol.ids import ResourceName, Xid
from coordinator.protocol.messages import NAME_LENGTH_MAX

STEPS_AT_ONCE_MAX = 10
"""Handlers of due steps that run at the same time in one resource of one process."""

POLL_INTERVAL_S = 1.0
POLL_CAP_S = 5.0
"""Pause between two looks for due steps, and the longest one while the database is away."""

HANDLER_TIMEOUT_S = 30.0
"""How long a handler of a due step may take; then it is cancelled and that try has failed."""

STEP_LEASE_S = 60.0
"""How long a due step is kept from other processes: when its process dies, the next try comes after that."""

STEP_TRIES_MAX = 20
STEP_BASE_S = 0.5
STEP_CAP_S = 300.0
"""Tries of a due step and the back-off between them, about an hour; then it is given up, and a person decides."""

UNDO_GRACE_S = 2.0
"""How long after the deadline an effect that is not known to be over is taken for over, whoever's clock is off."""

UNSERVED_AGE_S = 60.0
"""How long a due step may be left by everybody before its name is reported; also the pause between two looks."""

ERROR_LENGTH_MAX = 1000
"""Characters of an error that are kept with a step."""

_log = structlog.get_logger("coordinator.client.steps")

T = TypeVar("T")


@dataclass(frozen=True)
class StepCall:
    """What a handler is given. `key` is the same in do, undo and commit of one step, and in every repeat of them.

    Give it to the other side as the idempotency key. `arguments` are what JSON makes of those that were passed.
    `attempt` counts from 1. `do` is cancelled at `deadline_ms` (milliseconds since 1970); for others it is None.
    """

    key: UUID
    xid: Xid
    arguments: Any
    attempt: int = 1
    deadline_ms: int | None = None


Handler = Callable[[StepCall], Awaitable[Any]]


class Step(Generic[T]):
    """A named step. Made by `Coordinator.step`; calling it makes it part of the current global transaction."""

    def __init__(
        self,
        steps: Steps,
        name: str,
        resource: Resource[Any],
        do: Callable[[StepCall], Awaitable[T]] | None,
        undo: Handler | None,
        commit: Handler | None,
    ) -> None:
        if not 0 < len(name) <= NAME_LENGTH_MAX or not name.isprintable():
            raise ValueError(f"a step's name has 1 to {NAME_LENGTH_MAX} printable characters, unlike {name!r}")
        if do is not None and undo is None:
            raise ValueError(f"step {name!r} has an effect that nothing takes back: it needs undo where it has do")
        if undo is None and commit is None:
            raise ValueError(f"step {name!r} has no handler")
        self.name = name
        self.resource = resource
        self.do = do
        self.undo = undo
        self.commit = commit
        self._steps = steps

    async def __call__(self, arguments: Any = None) -> T | None:
        """Records the step in a branch of its own, then has its effect, and returns what `do` returns.

        `arguments` are anything that msgspec writes as JSON. An exception of `do`, or its deadline, dooms the
        transaction: nobody knows how far it came, so `undo` has to see. A repeated call of a participant calls `do`
        again, with the same key. Raises as run_branch does, DeadlinePassed, TimeoutError, and what `do` raises.
        """
        return await self._steps.perform(self, arguments)

    async def within(self, target: Any, arguments: Any = None) -> UUID:
        """Records the step in the branch that is running on `target`, an AsyncSession or asyncpg connection.

        That costs one statement; it belongs to that branch. Returns its key. Raises TypeError for a step with `do`,
        ValueError for a target that belongs to another resource than the step.
        """
        if self.do is not None:
            raise TypeError(f"step {self.name!r} has an effect: it needs a branch of its own, so call it")
        scope = required()
        identity = identity_of(target)
        if identity is not None and identity is not self.resource.identity:
            raise ValueError(f"step {self.name!r} is carried out in {self.resource.name}, and this is another database")
        key = await _record(target, self, arguments)
        self._steps.expect(self.resource.name, scope)
        return key


class Steps:
    """The steps of one Coordinator."""

    def __init__(
        self,
        runner: BranchRunner,
        settler_of: Callable[[ResourceName], Settler],
        *,
        clock: Callable[[], float],
        dice: Random,
    ) -> None:
        self._runner = runner
        self._settler_of = settler_of
        self._clock = clock
        self._dice = dice
        self._carriers: dict[ResourceName, StepCarrier] = {}

    def add(self, step: Step[Any]) -> bool:
        """Registers a step; True when it is the first of its resource. Raises ValueError for a name that is taken."""
        first = step.resource.name not in self._carriers
        if first:
            self._carriers[step.resource.name] = StepCarrier(step.resource, self._dice)
        self._carriers[step.resource.name].add(step)
        return first

    def carrier(self, resource: ResourceName) -> StepCarrier | None:
        """What carries out due steps of a resource; None where there are none."""
        return self._carriers.get(resource)

    async def perform(self, step: Step[T], arguments: Any) -> T | None:
        """See Step.__call__."""
        scope = required()
        with scope.running():

            async def record(target: Any) -> UUID:
                return await _record(target, step, arguments)

            key = await self._runner.run_branch(step.resource, record, UUID)
            self.expect(step.resource.name, scope)
            if step.do is None:
                return None
            try:
                # As JSON shows them, so that do is given what undo will be given.
                sent = msgspec.json.decode(msgspec.json.encode(arguments))
                return await self._do(step.do, StepCall(key, scope.xid, sent, deadline_ms=scope.deadline_ms))
            except BaseException as error:
                scope.mark_rollback_only(f"step {step.name} failed: {type(error).__name__} {error}".rstrip())
                raise
            finally:
                await sheltered(self._end(step, key))

    async def _do(self, do: Callable[[StepCall], Awaitable[T]], call: StepCall) -> T:
        assert call.deadline_ms is not None  # noqa: S101 - perform gives it
        left_s = call.deadline_ms / 1000 - self._clock()
        if left_s <= 0:
            raise DeadlinePassed(f"the deadline of global transaction {call.xid} has passed; the step was not done")
        async with asyncio.timeout(left_s):
            return await do(call)

    async def _end(self, step: Step[Any], key: UUID) -> None:
        try:
            async with step.resource.connections.acquire() as connection:
                await at.end_step(connection, key)
        except DATABASE_AWAY as error:
            _log.warning("step.end_unknown", step=step.name, key=str(key), error=repr(error))

    def expect(self, resource: ResourceName, scope: Scope) -> None:
        """Looks for due steps as soon as news of the transaction came to this process."""
        left_s = max(scope.deadline_ms / 1000 - self._clock(), 0.0)
        self._carriers[resource].expect(self._settler_of(resource), scope.xid, left_s)


class StepCarrier:
    """Carries out the due steps of one resource in this process. `run` does the work."""

    def __init__(self, resource: Resource[Any], dice: Random) -> None:
        self._resource = resource
        self._dice = dice
        self._steps: dict[str, Step[Any]] = {}
        self._wake = asyncio.Event()
        self._tasks: asyncio.TaskGroup | None = None
        self._running = 0
        self._look_at_s = 0.0

    def add(self, step: Step[Any]) -> None:
        """Registers a step. Raises ValueError for a name that is taken."""
        if step.name in self._steps:
            raise ValueError(f"step {step.name!r} of resource {self._resource.name} is named already")
        self._steps[step.name] = step

    def expect(self, settler: Settler, xid: UUID, timeout_s: float) -> None:
        """Looks for due steps as soon as `settler` has followed the decision of `xid`; at the latest with a poll."""
        if self._tasks is not None:
            self._tasks.create_task(self._wake_after(settler, xid, timeout_s))

    async def run(self) -> None:
        """Works until it is cancelled."""
        try:
            async with asyncio.TaskGroup() as self._tasks:
                await self._take_for_ever(self._tasks)
        finally:
            self._tasks = None

    async def _take_for_ever(self, tasks: asyncio.TaskGroup) -> None:
        failures = 0
        while True:
            self._wake.clear()
            try:
                await self._take(tasks)
                failures = 0
            except DATABASE_AWAY as error:
                if failures == 0:
                    _log.warning("steps.failed", resource=self._resource.name, error=repr(error))
                failures += 1
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(backoff_s(failures, POLL_INTERVAL_S, POLL_CAP_S, self._dice)):
                    await self._wake.wait()

    async def _wake_after(self, settler: Settler, xid: UUID, timeout_s: float) -> None:
        await settler.heard(xid, timeout_s)
        self._wake.set()

    async def _take(self, tasks: asyncio.TaskGroup) -> None:
        free = STEPS_AT_ONCE_MAX - self._running
        if free == 0:
            return
        async with self._resource.connections.acquire() as connection:
            due = await at.take_steps(
                connection,
                list(self._steps),
                free,
                lease=timedelta(seconds=STEP_LEASE_S),
                grace=timedelta(seconds=UNDO_GRACE_S),
            )
            if time.monotonic() >= self._look_at_s:
                self._look_at_s = time.monotonic() + UNSERVED_AGE_S
                unserved = await at.unserved_steps(connection, list(self._steps), timedelta(seconds=UNSERVED_AGE_S))
                for name, count in unserved.items():
                    _log.error("step.unserved", resource=self._resource.name, step=name, count=count)
        for step in due:
            self._running += 1
            tasks.create_task(self._carry_out(step))

    async def _carry_out(self, due: at.DueStep) -> None:
        try:
            error = await self._handle(due)
            async with self._resource.connections.acquire() as connection:
                if error is None:
                    await at.finish_steps(connection, [due.key])
                else:
                    await at.fail_step(connection, due.key, due.attempt, error, self._pause_after(due, error))
        except DATABASE_AWAY as away:
            # The lease ends, and the handler is called once more.
            _log.warning("step.end_unknown", step=due.name, key=str(due.key), error=repr(away))
        finally:
            self._running -= 1
            self._wake.set()

    async def _handle(self, due: at.DueStep) -> str | None:
        """Calls the handler; returns what went wrong, or None."""
        step = self._steps[due.name]
        handler = step.commit if due.committed else step.undo
        if handler is None:
            return None
        started_s = time.monotonic()
        try:
            async with asyncio.timeout(HANDLER_TIMEOUT_S):
                await handler(StepCall(due.key, Xid(due.xid), due.arguments, due.attempt))
        except Exception as error:
            return f"{type(error).__name__}: {error} (after {time.monotonic() - started_s:.1f} s)"[:ERROR_LENGTH_MAX]
        return None

    def _pause_after(self, due: at.DueStep, error: str) -> timedelta | None:
        what = {
            "step": due.name,
            "key": str(due.key),
            "xid": str(due.xid),
            "committed": due.committed,
            "attempt": due.attempt,
            "error": error,
        }
        if due.attempt >= STEP_TRIES_MAX:
            _log.error("step.given_up", resource=self._resource.name, **what)
            return None
        _log.warning("step.failed", resource=self._resource.name, **what)
        return timedelta(seconds=backoff_s(due.attempt - 1, STEP_BASE_S, STEP_CAP_S, self._dice))


async def _record(target: Any, step: Step[Any], arguments: Any) -> UUID:
    statement = at.add_step_sql(step.name, msgspec.json.encode(arguments).decode(), doing=step.do is not None)
    if is_sqlalchemy(target):
        return UUID((await (await target.connection()).exec_driver_sql(statement)).scalar_one())
    return UUID(await target.fetchval(statement))
