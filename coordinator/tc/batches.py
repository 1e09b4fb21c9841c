"""Group commit: what arrives together, from all requests, goes into one database transaction.

One flusher per replica takes everything that is pending; while its transaction waits for the disk, the next group
gathers. So a decision costs one round trip to the store and one flush of its log, shared with whatever came at the
same time.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from uuid import UUID

import structlog

from coordinator.protocol.messages import (
    Answer,
    Ask,
    Begin,
    Confirm,
    Decide,
    Noted,
    Outcome,
    Refused,
    Register,
    Request,
)
from coordinator.protocol.statuses import BranchState, Decision, Reason
from coordinator.tc.config import OPERATOR, Limits
from coordinator.tc.core.checks import problem_with
from coordinator.tc.core.rulings import Wish
from coordinator.tc.store import CLASH_ERRORS, UNFIT_ERRORS, Diverged, Ruled, Store, StoreUnavailable

NOTED = Noted()
FORGOTTEN = int(BranchState.FORGOTTEN)
log = structlog.get_logger(__name__)


class Overloaded(Exception):
    """More messages wait than the queue takes; nothing of this call was done."""


@dataclass(frozen=True, slots=True)
class Abort:
    """The coordinator's own wish to roll `xid` back, with its reason."""

    xid: UUID
    deadline_ms: int
    reason: Reason


Message = Request | Abort


@dataclass(slots=True)
class _Call:
    """The messages of one caller that are answered together; None in `answers` is still open."""

    messages: Sequence[Message]
    caller: str
    answers: list[Answer | None]
    done: asyncio.Future[None]


class Batches:
    """The only way in which anything becomes known or decided.

    `decided` hears of every fresh decision, once; `confirmed` of messages that were noted, confirmations among them;
    `diverged` of branches whose resource did the opposite.
    """

    def __init__(
        self,
        store: Store,
        limits: Limits,
        decided: Callable[[list[Ruled]], None],
        confirmed: Callable[[Sequence[Message]], None],
        diverged: Callable[[Diverged], None],
        dice: Callable[[], float],
    ) -> None:
        self.messages = 0
        self._store = store
        self._limits = limits
        self._decided = decided
        self._confirmed = confirmed
        self._diverged = diverged
        self._dice = dice
        self._pending: deque[_Call] = deque()
        self._waiting = 0
        self._work = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    async def submit(self, messages: Sequence[Message], caller: str) -> list[Answer]:
        """The answers to `messages`, in their order, once they are as durable as they have to be.

        Raises Overloaded, with nothing done, and StoreUnavailable, when it is unknown what was done; every message may
        be repeated.
        """
        answers: list[Answer | None] = [
            Refused(wrong) if not isinstance(message, Abort) and (wrong := problem_with(message)) else None
            for message in messages
        ]
        if not messages or None not in answers:
            return [answer for answer in answers if answer is not None]
        if self._waiting + len(messages) > self._limits.queue_messages_max:
            raise Overloaded(f"{self._waiting} messages wait for the store already")
        call = _Call(messages, caller, answers, asyncio.get_running_loop().create_future())
        self._pending.append(call)
        self._waiting += len(messages)
        self._work.set()
        self._idle.clear()
        # The group goes on without a caller who left: the message arrived, and others travel with it.
        await asyncio.shield(call.done)
        return [answer for answer in call.answers if answer is not None]

    async def run(self) -> None:
        """Flushes for ever; end it by cancelling after `drain`."""
        while True:
            await self._work.wait()
            calls = self._take()
            if calls:
                await self._flush(calls)
            if not self._pending:
                self._work.clear()
                self._idle.set()

    async def drain(self, timeout_s: float) -> None:
        """Returns when nothing is pending, or after `timeout_s`."""
        try:
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        except TimeoutError:
            log.warning("batches.left", messages=self._waiting)

    def _take(self) -> list[_Call]:
        calls: list[_Call] = []
        room = self._limits.group_messages_max
        while self._pending and (not calls or len(self._pending[0].messages) <= room):
            call = self._pending.popleft()
            room -= len(call.messages)
            self._waiting -= len(call.messages)
            calls.append(call)
        return calls

    async def _flush(self, calls: list[_Call]) -> None:
        calls = await self._commit_unheard(calls)
        calls = await self._confirm_forgotten(calls)
        if calls:
            await self._flush_any(calls)

    async def _commit_unheard(self, calls: list[_Call]) -> list[_Call]:
        """Takes the short way with calls that are commits and nothing else; gives back those that are left."""
        commits = _only_commits(calls)
        if not commits:
            return calls
        try:
            made = await self._store.commit_unheard(_commit_columns(commits))
        except (StoreUnavailable, *UNFIT_ERRORS, *CLASH_ERRORS):
            return calls  # the long way tells who is at fault, and may be taken for what was done already
        done = {id(call) for call in commits if all(message.xid in made for message in call.messages)}
        self.messages += sum(len(call.messages) for call in commits if id(call) in done)
        fresh = [
            _committed(message, call.caller)
            for call in commits
            for message in call.messages
            if isinstance(message, Decide) and message.xid in made
        ]
        for call in commits:
            if id(call) in done:
                call.answers[:] = [Outcome(m.xid, int(Decision.COMMITTED), Reason.ASKED.value) for m in call.messages]
        _finish([call for call in commits if id(call) in done], None)
        if fresh:
            _log_decided(fresh)
            self._decided(fresh)  # after the answers: the callers go on before the resources are told
        return [call for call in calls if id(call) not in done]

    async def _confirm_forgotten(self, calls: list[_Call]) -> list[_Call]:
        """Takes the short way with calls that confirm commits and nothing else; gives back those that are left."""
        confirms = [call for call in calls if _confirms_forgotten(call)]
        if not confirms:
            return calls
        try:
            left = await self._store.confirm_forgotten(_forgotten_columns(confirms))
        except (StoreUnavailable, *UNFIT_ERRORS, *CLASH_ERRORS):
            return calls  # as with the commits: the long way finds what was done already
        done = [call for call in confirms if all(message.xid not in left for message in call.messages)]
        self.messages += sum(len(call.messages) for call in done)
        for call in done:
            call.answers[:] = [NOTED] * len(call.messages)
            self._confirmed(call.messages)
        _finish(done, None)
        finished = {id(call) for call in done}
        return [call for call in calls if id(call) not in finished]

    async def _flush_any(self, calls: list[_Call]) -> None:
        try:
            ruled, diverged = await self._apply(calls)
        except UNFIT_ERRORS as error:
            if len(calls) > 1:
                # One call that the store cannot take must not spoil those it travelled with.
                for call in calls:
                    await self._flush_any([call])
                return
            log.error("batches.refused", caller=calls[0].caller, error=str(error), xid=_xids(calls[0]))
            refused = Refused("the store cannot take this message")
            calls[0].answers[:] = [answer or refused for answer in calls[0].answers]
            _finish(calls, None)
            return
        except StoreUnavailable as error:
            log.error("store.unavailable", messages=sum(len(call.messages) for call in calls), error=str(error))
            _finish(calls, error)
            return
        except Exception:
            _finish(calls, StoreUnavailable("the group failed"))  # nobody must wait for an answer that cannot come
            raise
        self.messages += sum(len(call.messages) for call in calls)
        known = {one.xid: one for one in ruled}
        for call in calls:
            _answer(call, known)
            self._confirmed(call.messages)
        fresh = [one for one in ruled if one.fresh]
        if fresh:
            _log_decided(fresh)
            self._decided(fresh)
        for split in diverged:
            self._diverged(split)
        _finish(calls, None)

    async def _apply(self, calls: list[_Call]) -> tuple[list[Ruled], list[Diverged]]:
        """Tries again while the store is away: a batch that was done and not heard of is answered the same again."""
        columns = _columns(calls)
        give_up_at = time.monotonic() + self._limits.store_retry_s
        attempt = 0
        while True:
            try:
                return await self._store.apply(columns)
            except (StoreUnavailable, *CLASH_ERRORS) as error:
                delay_s = self._limits.store_retry.delay_s(attempt, self._dice()) or 0.0
                if time.monotonic() + delay_s > give_up_at:
                    raise StoreUnavailable(str(error)) from error
                attempt += 1
                await asyncio.sleep(delay_s)


def _only_commits(calls: list[_Call]) -> list[_Call]:
    """The calls that are commits with branches and nothing else, each transaction once: the order does not matter."""
    found: list[_Call] = []
    seen: set[UUID] = set()
    for call in calls:
        xids = [m.xid for m in call.messages if isinstance(m, Decide) and m.commit and m.branches]
        mine = set(xids)
        open_all = all(answer is None for answer in call.answers)
        if open_all and len(mine) == len(call.messages) and not mine & seen:
            found.append(call)
            seen |= mine
    return found


def _confirms_forgotten(call: _Call) -> bool:
    """Whether a call is confirmations of forgotten branches and nothing else."""
    return all(answer is None for answer in call.answers) and all(
        isinstance(message, Confirm) and message.states and all(state == FORGOTTEN for _, state in message.states)
        for message in call.messages
    )


def _forgotten_columns(calls: list[_Call]) -> list[list[object]]:
    """The confirmations as the arrays of `tc.confirm_forgotten`, in the order of its parameters."""
    columns: tuple[list[object], ...] = ([], [], [])
    for call in calls:
        for message in call.messages:
            if isinstance(message, Confirm):
                for branch_id, _ in message.states:
                    _add(columns, message.xid, message.resource, branch_id)
    return list(columns)


def _commit_columns(calls: list[_Call]) -> list[list[object]]:
    """The commits as the arrays of `tc.commit_unheard`, in the order of its parameters."""
    wishes: tuple[list[object], ...] = ([], [], [], [])
    named: tuple[list[object], ...] = ([], [], [])
    for call in calls:
        for message in call.messages:
            if isinstance(message, Decide):
                _add(wishes, message.xid, message.name, call.caller, message.deadline_ms)
                for branch in message.branches:
                    _add(named, message.xid, branch.resource, branch.branch)
    return [*wishes, *named]


def _committed(message: Decide, caller: str) -> Ruled:
    resources: dict[str, list[UUID]] = {}
    for branch in message.branches:
        resources.setdefault(branch.resource, []).append(branch.branch)
    return Ruled(message.xid, Decision.COMMITTED, Reason.ASKED.value, True, resources, caller)


def _finish(calls: list[_Call], error: StoreUnavailable | None) -> None:
    for call in calls:
        if call.done.done():
            continue
        if error is None:
            call.done.set_result(None)
        else:
            call.done.set_exception(StoreUnavailable(str(error)))
            call.done.exception()  # a caller who left does not hear it, and that is no news


def _xids(call: _Call) -> list[str]:
    return [str(message.xid) for message in call.messages]


def _columns(calls: list[_Call]) -> list[list[object]]:
    """The messages as the arrays of `tc.apply`, in the order of its parameters."""
    begins: tuple[list[object], ...] = ([], [], [], [])
    registers: tuple[list[object], ...] = ([], [], [], [], [])
    wishes: tuple[list[object], ...] = ([], [], [], [], [], [])
    named: tuple[list[object], ...] = ([], [], [], [])
    confirms: tuple[list[object], ...] = ([], [])
    states: tuple[list[object], ...] = ([], [], [], [])
    for call in calls:
        caller = call.caller
        for message, answer in zip(call.messages, call.answers, strict=True):
            if answer is not None:
                continue
            match message:
                case Decide():
                    wish = Wish.COMMIT if message.commit else Wish.ROLL_BACK
                    reason = Reason.OPERATOR if caller == OPERATOR else Reason.ASKED
                    _add(wishes, message.xid, int(wish), message.name, caller, message.deadline_ms, reason.value)
                    place = len(wishes[0])
                    for branch in message.branches:
                        _add(named, place, message.xid, branch.resource, branch.branch)
                case Register():
                    branch = message.branch
                    _add(registers, message.xid, caller, message.deadline_ms, branch.resource, branch.branch)
                case Begin():
                    _add(begins, message.xid, message.name, caller, message.deadline_ms)
                case Ask():
                    _add(wishes, message.xid, int(Wish.ASK), "", caller, message.deadline_ms, None)
                case Confirm():
                    _add(confirms, message.xid, message.resource)
                    for branch_id, state in message.states:
                        _add(states, message.xid, message.resource, branch_id, state)
                case Abort():
                    reason = message.reason
                    _add(wishes, message.xid, int(Wish.ROLL_BACK), "", caller, message.deadline_ms, reason.value)
    return [*begins, *registers, *wishes, *named, *confirms, *states]


def _add(columns: tuple[list[object], ...], *values: object) -> None:
    for column, value in zip(columns, values, strict=True):
        column.append(value)


def _answer(call: _Call, known: dict[UUID, Ruled]) -> None:
    for place, message in enumerate(call.messages):
        if call.answers[place] is not None:
            continue
        if not isinstance(message, Decide | Ask | Abort):
            call.answers[place] = NOTED
            continue
        ruled = known.get(message.xid)
        if ruled is None:
            call.answers[place] = Outcome(message.xid, int(Decision.UNDECIDED))
            continue
        branches = ruled.resources.get(message.resource, []) if isinstance(message, Ask) else []
        call.answers[place] = Outcome(message.xid, int(ruled.decision), ruled.reason, branches)


def _log_decided(fresh: list[Ruled]) -> None:
    for ruled in fresh:
        if ruled.decision is Decision.COMMITTED:
            log.debug("transaction.committed", xid=str(ruled.xid), resources=list(ruled.resources))
        else:
            log.info(
                "transaction.rolled_back", xid=str(ruled.xid), reason=ruled.reason, resources=list(ruled.resources)
            )
