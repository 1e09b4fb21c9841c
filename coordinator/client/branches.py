"""The RM side: local transactions that are branches, their retries, and plain ones that know about locks."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Container
from contextlib import asynccontextmanager
from random import Random
from typing import Any, NoReturn, TypeVar

import msgspec

from coordinator import resource as at
from coordinator.client.context import Initiator, Scope, required
from coordinator.client.context import current as current_scope
from coordinator.client.local import LocalTransaction, open_local
from coordinator.client.resources import Resource
from coordinator.client.settle import Settler
from coordinator.client.transport import Transport
from coordinator.client.waiting import Patience, Surroundings
from coordinator.protocol.errors import (
    BranchAborted,
    BranchRepeated,
    DeadlinePassed,
    LockConflict,
)
from coordinator.protocol.ids import BranchId, ResourceName, Xid
from coordinator.protocol.messages import Begin, BranchRef, Register
from coordinator.protocol.statuses import BranchState

UNSURE_CLASSES = ("08", "57P", "58", "XX")
"""SQLSTATEs after which a COMMIT may have taken effect all the same: the connection or the server went away."""

T = TypeVar("T")


class Branch:
    """A branch that is running: `target` is the session or connection to work with."""

    def __init__(self, xid: Xid, ref: BranchRef, target: Any) -> None:
        self.xid = xid
        self.id = BranchId(ref.branch)
        self.resource = ResourceName(ref.resource)
        self.target = target
        self.kept: str | None = None

    def keep(self, result: object) -> None:
        """Keeps an answer (anything that msgspec writes as JSON) with the branch, for a call that is repeated."""
        self.kept = keep_statement(result)


class BranchRunner:
    """Runs branches and plain local transactions for a Coordinator."""

    def __init__(
        self,
        transport: Transport,
        settler_of: Callable[[ResourceName], Settler],
        local: Container[int],
        *,
        clock: Callable[[], float],
        dice: Random,
    ) -> None:
        self._transport = transport
        self._settler_of = settler_of
        self._local = local
        self._clock = clock
        self._dice = dice

    async def run_branch(
        self, resource: Resource[Any], work: Callable[[Any], Awaitable[T]], result_type: type[T] | None
    ) -> T:
        """See Coordinator.run_branch."""
        scope = required()
        scope.opened()
        patience: Patience | None = None
        try:
            ref = self._next(scope, resource.name)
            settler = self._settler_of(resource.name)
            while True:
                try:
                    result = await self._attempt(scope, ref, resource.target, work, result_type)
                    if patience is not None:
                        patience.close(served=True)
                    return result
                except BranchRepeated as error:
                    if result_type is None or error.result is None:
                        raise
                    return msgspec.convert(error.result, result_type)
                except Exception as error:
                    if patience is None:
                        patience = self._patience(settler, scope, scope.deadline_ms / 1000)
                    await patience.after(error)
        finally:
            scope.closed()
            if patience is not None:
                patience.close()

    @asynccontextmanager
    async def branch(self, target: Any, resource: ResourceName) -> AsyncIterator[Branch]:
        """See Coordinator.branch."""
        scope = required()
        with scope.running():
            ref = self._next(scope, resource)
            local = await open_local(target)
            try:
                branch = Branch(scope.xid, ref, local.target)
                try:
                    await local.begin(self._enter(scope, ref), later=isinstance(scope, Initiator))
                    yield branch
                    await local.prepare(branch.kept)
                except BaseException as error:
                    await self._abandon(scope, ref, local)
                    raise_translated(error, scope, ref)
                await self._commit(scope, ref, local)
            finally:
                await local.close()

    async def run_local(self, resource: Resource[Any], work: Callable[[Any], Awaitable[T]], wait_s: float) -> T:
        """See Coordinator.run_local."""
        patience = self._patience(self._settler_of(resource.name), None, self._clock() + wait_s)
        try:
            while True:
                try:
                    return await self._attempt_plain(resource.target, work)
                except Exception as error:
                    running = current_scope()
                    if isinstance(error, LockConflict) and running is not None and error.holder == running.xid:
                        raise  # the global transaction around this call would wait for itself
                    await patience.after(error)
        finally:
            patience.close()

    async def _attempt(
        self,
        scope: Scope,
        ref: BranchRef,
        target: Any,
        work: Callable[[Any], Awaitable[T]],
        result_type: type[T] | None,
    ) -> T:
        local = await open_local(target)
        try:
            try:
                await local.begin(self._enter(scope, ref), later=isinstance(scope, Initiator))
                result = await work(local.target)
                await local.prepare(None if result_type is None else keep_statement(result))
            except BaseException as error:
                await self._abandon(scope, ref, local)
                raise_translated(error, scope, ref)
            await self._commit(scope, ref, local)
            return result
        finally:
            await local.close()

    async def _attempt_plain(self, target: Any, work: Callable[[Any], Awaitable[T]]) -> T:
        local = await open_local(target)
        try:
            await local.begin(None, later=False)
            result = await work(local.target)
            await local.prepare(None)
            await local.commit()
            return result
        except BaseException as error:
            await local.rollback()
            raise_translated(error)
        finally:
            await local.close()

    @staticmethod
    async def _abandon(scope: Scope, ref: BranchRef, local: LocalTransaction) -> None:
        if not await local.rollback():
            scope.doubt(ref, f"branch {ref.branch} was ended by its own work before it failed")

    @staticmethod
    async def _commit(scope: Scope, ref: BranchRef, local: LocalTransaction) -> None:
        try:
            entered = await local.commit()
        except BaseException as error:
            sqlstate = getattr(at.find_postgres_error(error), "sqlstate", None)
            if sqlstate is None or sqlstate.startswith(UNSURE_CLASSES):
                scope.doubt(ref, f"nobody knows whether branch {ref.branch} in {ref.resource} committed locally")
            await local.rollback()
            raise_translated(error, scope, ref)
        if entered:
            scope.note(ref)

    def _next(self, scope: Scope, resource: ResourceName) -> BranchRef:
        if self._clock() * 1000 >= scope.deadline_ms:
            raise DeadlinePassed(f"global transaction {scope.xid} takes no more branches: its deadline has passed")
        ref = BranchRef(resource, scope.next_branch(resource))
        if isinstance(scope, Initiator) and not scope.begun:
            scope.begun = True
            self._transport.hint(Begin(scope.xid, scope.name, scope.deadline_ms))
        self._transport.hint(Register(scope.xid, scope.deadline_ms, ref))
        return ref

    @staticmethod
    def _enter(scope: Scope, ref: BranchRef) -> at.Entering:
        return at.entering(scope.xid, BranchId(ref.branch), scope.deadline)

    def _patience(self, settler: Settler, scope: Scope | None, until_s: float) -> Patience:
        around = Surroundings(self._transport, settler, self._local, self._clock, self._dice)
        return Patience(around, scope, until_s)


def keep_statement(result: object) -> str:
    """The statement that keeps `result` in the current branch's row. Raises TypeError for what is no JSON."""
    quoted = msgspec.json.encode(result).decode().replace("'", "''")
    return f"SELECT at.keep('{quoted}'::jsonb)"


def raise_translated(error: BaseException, scope: Scope | None = None, ref: BranchRef | None = None) -> NoReturn:
    """Raises `error` as what it means to the caller, and notes in `scope` what it means to the transaction.

    A repeated branch that is committed locally belongs to the transaction as it did the first time.
    """
    # A cancellation is passed on as it is, whatever it interrupted.
    postgres_error = at.find_postgres_error(error) if isinstance(error, Exception) else None
    meaning = None if postgres_error is None else at.translate(postgres_error)
    if postgres_error is None or meaning is None:
        raise error
    if isinstance(meaning, BranchRepeated) and scope is not None and ref is not None:
        if at.repeated_state(postgres_error) in (BranchState.OPEN, BranchState.FORGOTTEN):
            scope.note(ref)
        else:
            meaning = BranchAborted(f"branch {ref.branch} of global transaction {scope.xid} was undone here")
    if isinstance(meaning, BranchAborted | DeadlinePassed) and scope is not None:
        scope.mark_rollback_only(str(meaning))
    raise meaning from error
