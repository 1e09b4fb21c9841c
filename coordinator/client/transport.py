"""How the client speaks to the coordinator: coalesced, over whichever replica answers, with named limits.

Four ways, so that nothing waits for something slower than itself:

* *decisions to commit* share a lane with one batch in flight; what is said meanwhile travels in the next one;
* *hints* (Begin, Register) share another lane, sent after a moment; a decision takes those of its own
  transaction out of the lane, because it says all that they would have said;
* *confirmations* have a third, in which nobody waits;
* *rollbacks, questions and waits* have calls of their own: the coordinator may hold a rollback
  until the resources have undone it, and a commit must not queue behind that.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from types import TracebackType
from uuid import UUID

import msgspec
import structlog

from coordinator.client.backoff import backoff_s
from coordinator.client.wire import Origin, Wire
from coordinator.protocol.errors import CallerRefused, CoordinatorError, CoordinatorUnavailable, OutcomeUnknown
from coordinator.protocol.messages import (
    MESSAGES_MAX,
    Announce,
    Answer,
    Begin,
    Confirm,
    Decide,
    Outcome,
    Refused,
    Register,
    Request,
    Wait,
    WaitAnswer,
)
from coordinator.protocol.tokens import TokenMaker

AUDIENCE = "coordinator"
"""The reader that tokens for the coordinator are made for."""

POST_TIMEOUT_S = 5.0
"""How long one replica may take for one list of messages before the next replica is tried."""

CONNECT_TIMEOUT_S = 1.0
"""How long opening a connection to one replica may take."""

WAIT_MARGIN_S = 5.0
"""What a long poll may take beyond the time that it asked for."""

CONNECTIONS_MAX = 256
"""Connections to the coordinator; each blocked branch holds one while it waits."""

HINTS_MAX = 2_000
"""Hints that may queue; further ones are dropped, which costs only speed in a rollback."""

HINT_AGE_S = 0.25
"""How long a transaction's hints wait for its decision, which makes them needless and is dearer once they were sent."""

HINT_LINGER_S = 0.05
"""The least pause between two lists of hints."""

CONFIRMS_MAX = 10_000
"""Confirmations that may queue; when more come the oldest go, and the coordinator asks again by a nudge."""

CONFIRM_LINGER_S = 0.2
"""How long a confirmation waits for company: nobody waits for it. Shorter than the coordinator's nudge_own_delay_s."""

CROWD_MIN = 3
CROWD_LINGER_S = 0.001
"""Where the last list held so many decisions, the next one waits a moment for more: at such a rate each list costs all
of them more than the moment does. Whoever decides alone never waits."""

CONFIRM_BASE_S = 0.2
CONFIRM_CAP_S = 10.0
"""Back-off of confirmations while no coordinator answers."""

ASKS_MAX = 10_000
"""Decisions that may queue in one process; a further one is refused as CoordinatorUnavailable."""

RETRY_BASE_S = 0.02
RETRY_CAP_S = 1.0
"""Back-off between two tries to reach any replica."""

_log = structlog.get_logger("coordinator.client.transport")
_requests_encoder = msgspec.json.Encoder()
_answers_decoder = msgspec.json.Decoder(list[Answer])
_wait_decoder = msgspec.json.Decoder(WaitAnswer)


class _BranchDetail(msgspec.Struct):
    resource: str
    branch: UUID
    committed: bool


class _Detail(msgspec.Struct):
    branches: list[_BranchDetail]


_detail_decoder = msgspec.json.Decoder(_Detail)


@dataclass(eq=False, slots=True)
class _Said:
    request: Request
    answer: asyncio.Future[Answer]
    expiry: asyncio.TimerHandle

    def done(self, answer: Answer) -> None:
        self.expiry.cancel()
        if not self.answer.done():
            self.answer.set_result(answer)

    def failed(self, error: Exception) -> None:
        self.expiry.cancel()
        if not self.answer.done():
            self.answer.set_exception(error)
            self.answer.exception()  # whoever asked may be gone


class Transport:
    """One process's way to the coordinator. Use inside `async with`; all methods belong to that event loop."""

    def __init__(
        self,
        urls: Sequence[str],
        tokens: TokenMaker | None,
        *,
        clock: Callable[[], float] = time.time,
        dice: Random,
    ) -> None:
        if not urls:
            raise ValueError("a coordinator needs at least one URL")
        self._origins = [Origin.of(url) for url in urls]
        self._preferred = 0
        self._tokens = tokens
        self._clock = clock
        self._dice = dice
        self._wire: Wire | None = None
        self._said: deque[_Said] = deque()
        self._said_wake = asyncio.Event()
        self._said_all = asyncio.Event()
        self._said_all.set()
        self._hints: dict[int, tuple[float, list[Begin | Register]]] = {}
        self._hint_count = 0
        self._hint_wake = asyncio.Event()
        self._confirms: deque[Confirm] = deque(maxlen=CONFIRMS_MAX)
        self._confirm_wake = asyncio.Event()
        self._lanes: list[asyncio.Task[None]] = []
        self._made_headers: tuple[str | None, bytes] | None = None

    async def __aenter__(self) -> Transport:
        self._wire = Wire(CONNECTIONS_MAX, CONNECT_TIMEOUT_S)
        self._lanes = [
            asyncio.create_task(self._decision_lane(), name="coordinator-decisions"),
            asyncio.create_task(self._hint_lane(), name="coordinator-hints"),
            asyncio.create_task(self._confirm_lane(), name="coordinator-confirmations"),
        ]
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        wire, self._wire = self._wire, None  # from here on nobody queues or tries again
        for lane in self._lanes:
            lane.cancel()
        await asyncio.gather(*self._lanes, return_exceptions=True)
        while self._said:
            self._said.popleft().failed(CoordinatorUnavailable("the coordinator client was closed"))
        if wire is not None:
            wire.close()

    def hint(self, request: Begin | Register) -> None:
        """Says something that may be lost, some time soon. Never waits, never fails."""
        if self._wire is None or self._hint_count >= HINTS_MAX:
            return
        known = self._hints.get(request.xid.int)
        if known is None:
            self._hints[request.xid.int] = (asyncio.get_running_loop().time() + HINT_AGE_S, [request])
        else:
            known[1].append(request)
        self._hint_count += 1
        self._hint_wake.set()

    def confirm(self, request: Confirm) -> None:
        """Says how branches ended, some time soon, and again until somebody answers. Never waits, never fails."""
        self._confirms.append(request)
        self._confirm_wake.set()

    async def drain(self, timeout_s: float) -> None:
        """Returns when every decision to commit that was said has its answer, or after `timeout_s`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._said_all.wait()

    def say(self, request: Decide, until_s: float) -> asyncio.Future[Answer]:
        """Says a decision to commit, once; `commit` says it again where that fails.

        The future raises TimeoutError when no answer came until the clock says `until_s` (or in POST_TIMEOUT_S, where
        that is later), CoordinatorUnavailable, CallerRefused. Raises CoordinatorUnavailable where nothing can be sent.
        """
        self._drop_hints(request.xid)
        if self._wire is None or len(self._said) >= ASKS_MAX:
            raise CoordinatorUnavailable("the coordinator client is not open, or its queue is full")
        return self._queued(request, max(until_s - self._clock(), POST_TIMEOUT_S))

    async def commit(self, request: Decide, until_s: float, said: asyncio.Future[Answer] | None = None) -> Outcome:
        """Says a decision to commit until somebody answers, at most until the clock says `until_s`.

        Repeating is harmless: the first decision wins. `said` is what `say` has returned for it, if it was said once.
        Raises OutcomeUnknown when no answer came in time, CoordinatorUnavailable when nothing was ever sent,
        CallerRefused when the coordinator does not let us in.
        """
        attempt = 0
        answer = self.say(request, until_s) if said is None else said
        while True:
            try:
                return outcome_of(await asyncio.shield(answer))
            except TimeoutError:
                raise OutcomeUnknown(_unknown(request)) from None
            except CallerRefused as error:
                if attempt:  # who did not answer before may have taken it
                    raise OutcomeUnknown(_unknown(request)) from error
                raise
            except CoordinatorUnavailable as error:
                pause_s = backoff_s(attempt, RETRY_BASE_S, RETRY_CAP_S, self._dice)
                if self._wire is None or self._clock() + pause_s >= until_s:
                    raise OutcomeUnknown(_unknown(request)) from error
            attempt += 1
            await asyncio.sleep(pause_s)
            if self._wire is None:
                raise OutcomeUnknown(_unknown(request))
            answer = self._queued(request, max(until_s - self._clock(), 0.0))

    async def rollback(self, request: Decide, until_s: float) -> Outcome:
        """Sends a decision to roll back in a call of its own; the answer comes when the resources have undone it.

        Raises CoordinatorUnavailable when nobody answered until `until_s`: presumed abort does the rest.
        """
        self._drop_hints(request.xid)
        attempt = 0
        while True:
            try:
                [answer] = await self.converse([request])
                return outcome_of(answer)
            except CoordinatorUnavailable:
                pause_s = backoff_s(attempt, RETRY_BASE_S, RETRY_CAP_S, self._dice)
                if self._clock() + pause_s >= until_s:
                    raise
            attempt += 1
            await asyncio.sleep(pause_s)

    async def converse(self, requests: Sequence[Request]) -> list[Answer]:
        """Sends a list (at most MESSAGES_MAX) in a call of its own, once to each replica until one answers.

        Raises CoordinatorUnavailable, CallerRefused.
        """
        try:
            said = _requests_encoder.encode(list(requests))
        except ValueError as error:  # a text that is no UTF-8: it must not end the lane for all that come after it
            raise CoordinatorError(f"this cannot be said to the coordinator: {error}") from error
        body = await self._post("/v1/messages", said, POST_TIMEOUT_S)
        return _answers_of(body, len(requests))

    async def wait(self, request: Wait) -> WaitAnswer:
        """Waits at the coordinator for the holder's decision. Raises CoordinatorUnavailable, CallerRefused."""
        timeout_s = request.wait_ms / 1000 + WAIT_MARGIN_S
        body = await self._post("/v1/wait", _requests_encoder.encode(request), timeout_s)
        try:
            return _wait_decoder.decode(body)
        except msgspec.MsgspecError as error:
            raise CoordinatorUnavailable(f"the coordinator answered a wait with something else: {error}") from error

    async def named_branches(self, xid: UUID) -> dict[UUID, str]:
        """The branches that the commit of `xid` named, each with its resource. Raises CoordinatorUnavailable."""
        body = await self._call("GET", f"/v1/transactions/{xid}", None, POST_TIMEOUT_S)
        try:
            detail = _detail_decoder.decode(body)
        except msgspec.MsgspecError as error:
            raise CoordinatorUnavailable(f"the coordinator described {xid} as something else: {error}") from error
        return {branch.branch: branch.resource for branch in detail.branches if branch.committed}

    async def announce(self, request: Announce) -> None:
        """Says where a resource can be nudged. Raises CoordinatorUnavailable, CallerRefused."""
        await self._post("/v1/resources", _requests_encoder.encode(request), POST_TIMEOUT_S)

    async def tell(self, path: str, message: msgspec.Struct) -> bytes:
        """The answer to a call of its own. Raises CoordinatorUnavailable, CallerRefused."""
        return await self._post(path, _requests_encoder.encode(message), POST_TIMEOUT_S)

    def _drop_hints(self, xid: UUID) -> None:
        known = self._hints.pop(xid.int, None)
        if known is not None:
            self._hint_count -= len(known[1])

    def _queued(self, request: Decide, timeout_s: float) -> asyncio.Future[Answer]:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Answer] = loop.create_future()
        self._said.append(_Said(request, answer, loop.call_later(timeout_s, _expire, answer)))
        self._said_all.clear()
        self._said_wake.set()
        return answer

    async def _decision_lane(self) -> None:
        crowd = 0
        while True:
            await self._said_wake.wait()
            self._said_wake.clear()
            while self._said:
                if crowd >= CROWD_MIN > len(self._said):
                    await asyncio.sleep(CROWD_LINGER_S)
                crowd = len(self._said)
                taken = (self._said.popleft() for _ in range(min(len(self._said), MESSAGES_MAX)))
                batch = [said for said in taken if not said.answer.done()]
                if batch:
                    await self._send(batch)
            self._said_all.set()

    async def _send(self, batch: list[_Said]) -> None:
        try:
            answers = await self.converse([said.request for said in batch])
        except CoordinatorError as error:
            for said in batch:
                said.failed(error)
        except asyncio.CancelledError:
            for said in batch:
                said.failed(CoordinatorUnavailable("the coordinator client was closed"))
            raise
        else:
            for said, answer in zip(batch, answers, strict=True):
                said.done(answer)

    async def _hint_lane(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._hint_wake.wait()
            self._hint_wake.clear()
            while self._hints:
                due_s, _ = next(iter(self._hints.values()))
                await asyncio.sleep(max(due_s - loop.time(), HINT_LINGER_S))
                batch = self._take_hints(loop.time())
                for start in range(0, len(batch), MESSAGES_MAX):
                    # A hint that is lost is lost: decisions and deadlines do not depend on it.
                    with contextlib.suppress(CoordinatorError):
                        await self.converse(batch[start : start + MESSAGES_MAX])

    def _take_hints(self, now_s: float) -> list[Request]:
        """The hints that are due; they stand in the order in which they become so."""
        batch: list[Request] = []
        for xid, (due_s, hints) in list(self._hints.items()):
            if due_s > now_s:
                break
            del self._hints[xid]
            batch.extend(hints)
        self._hint_count -= len(batch)
        return batch

    async def _confirm_lane(self) -> None:
        failures = 0
        while True:
            await self._confirm_wake.wait()
            await asyncio.sleep(CONFIRM_LINGER_S)
            self._confirm_wake.clear()
            while self._confirms:
                batch = [self._confirms.popleft() for _ in range(min(len(self._confirms), MESSAGES_MAX))]
                try:
                    await self.converse(batch)
                    failures = 0
                except CoordinatorError as error:
                    if failures == 0:
                        _log.warning("confirm.failed", error=repr(error))
                    failures += 1
                    self._confirms.extendleft(reversed(batch))
                    await asyncio.sleep(backoff_s(failures, CONFIRM_BASE_S, CONFIRM_CAP_S, self._dice))

    async def _post(self, path: str, body: bytes, timeout_s: float) -> bytes:
        return await self._call("POST", path, body, timeout_s)

    def _headers(self) -> bytes:
        """What every request carries; made anew only with a new token."""
        token = None if self._tokens is None else self._tokens.token_for(AUDIENCE)
        if self._made_headers is None or token is not self._made_headers[0]:
            lines = "Content-Type: application/json\r\n"
            if token is not None:
                lines += f"Authorization: Bearer {token}\r\n"
            self._made_headers = (token, lines.encode())
        return self._made_headers[1]

    async def _call(self, method: str, path: str, body: bytes | None, timeout_s: float) -> bytes:
        wire = self._wire
        if wire is None:
            raise CoordinatorUnavailable("the coordinator client is not open; enter it with `async with coordinator:`")
        headers = self._headers()
        problems: list[str] = []
        first = self._preferred
        for turn in range(len(self._origins)):
            index = (first + turn) % len(self._origins)
            origin = self._origins[index]
            try:
                reply = await wire.request(origin, method, path, headers, body, timeout_s)
                if reply.status in (200, 201, 202, 204):
                    return reply.body
                if reply.status in (401, 403):
                    refused = CallerRefused(f"the coordinator at {origin} refused us: {reply.body[:300]!r}")
                    if not problems and not reply.repeated:
                        raise refused
                    # Who did not answer before may have taken it: that is no refusal yet.
                    raise CoordinatorUnavailable("no answer: " + "; ".join(problems)) from refused
                if 400 <= reply.status < 500 and reply.status not in (404, 408, 425, 429):
                    raise CoordinatorError(f"the coordinator refused it ({reply.status}): {reply.body[:300]!r}")
                problems.append(f"{origin}: status {reply.status}")
            except (TimeoutError, OSError) as error:
                problems.append(f"{origin}: {type(error).__name__} {error}".rstrip())
            if self._preferred == index:
                self._preferred = (index + 1) % len(self._origins)
        raise CoordinatorUnavailable("no coordinator replica answered: " + "; ".join(problems))


def _answers_of(body: bytes, expected: int) -> list[Answer]:
    try:
        answers = _answers_decoder.decode(body)
    except msgspec.MsgspecError as error:
        raise CoordinatorUnavailable(f"the coordinator answered with something else: {error}") from error
    if len(answers) != expected:
        raise CoordinatorUnavailable(f"the coordinator gave {len(answers)} answers to {expected} messages")
    return answers


def _expire(answer: asyncio.Future[Answer]) -> None:
    if not answer.done():
        answer.set_exception(TimeoutError())
        answer.exception()


def outcome_of(answer: Answer) -> Outcome:
    """The answer to a decision. Raises CoordinatorError when it is another."""
    match answer:
        case Outcome():
            return answer
        case Refused():
            raise CoordinatorError(f"the coordinator refused a decision: {answer.message}")
        case _:
            raise CoordinatorError(f"the coordinator answered a decision with {type(answer).__name__}")


def _unknown(request: Decide) -> str:
    return f"the commit of {request.xid} was sent, but no coordinator answered in time; it may be either"
