"""Telling resources of decisions, so that they settle at once instead of at their next question.

One lane per resource sends one nudge at a time; decisions that come meanwhile travel together in the next. Nothing
depends on a nudge: one that is lost is told again by the sweep, and the resource's settle loop asks by itself.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from uuid import UUID

import aiohttp
import msgspec
import structlog

from coordinator.protocol.messages import Answer, Confirm, Nudge, Settle
from coordinator.protocol.statuses import Decision
from coordinator.protocol.tokens import TokenMaker
from coordinator.tc.batches import Overloaded
from coordinator.tc.config import Limits
from coordinator.tc.store import NudgeUrl, Ruled, Store, StoreUnavailable

log = structlog.get_logger(__name__)

Submit = Callable[[Sequence[Confirm], str], Awaitable[list[Answer]]]
"""Where confirmations go: messages, and in whose name."""

NEVER_READ: tuple[float, list[NudgeUrl]] = (float("-inf"), [])

_encoder = msgspec.json.Encoder()
_confirms = msgspec.json.Decoder(list[Confirm])


@dataclass(slots=True)
class _Lane:
    """What waits to be told to one resource."""

    resource: str
    queue: deque[Settle] = field(default_factory=deque)
    on_its_way: set[UUID] = field(default_factory=set)
    task: asyncio.Task[None] | None = None
    warned_at: float = float("-inf")


@dataclass(slots=True)
class _Undoing:
    """A rollback that is being told: how many resources are still to answer."""

    left: int = 0
    done: asyncio.Event = field(default_factory=asyncio.Event)


class Nudger:
    """Sends nudges and records what the resources answer. `submit` takes the confirmations."""

    def __init__(self, store: Store, tokens: TokenMaker, limits: Limits, submit: Submit) -> None:
        self.sent = 0
        self.failed = 0
        self.dropped = 0
        self._store = store
        self._tokens = tokens
        self._limits = limits
        self._submit = submit
        self._lanes: dict[str, _Lane] = {}
        self._undoing: dict[UUID, _Undoing] = {}
        self._urls: dict[str, tuple[float, list[NudgeUrl]]] = {}
        self._held: OrderedDict[tuple[UUID, str], tuple[float, Settle]] = OrderedDict()
        self._releasing: asyncio.Task[None] | None = None
        self._http: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        """Opens the HTTP client."""
        timeout = aiohttp.ClientTimeout(total=self._limits.nudge_timeout_s)
        self._http = aiohttp.ClientSession(timeout=timeout, cookie_jar=aiohttp.DummyCookieJar())

    async def close(self) -> None:
        """Drops what is not told yet and closes the HTTP client."""
        tasks = [lane.task for lane in self._lanes.values() if lane.task is not None]
        if self._releasing is not None:
            tasks.append(self._releasing)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._http is not None:
            await self._http.close()

    def push(self, decided: Iterable[Ruled]) -> None:
        """Takes decisions to tell; returns at once.

        Who commits settles its own resources without being told, so they are told later, and only of what is not
        confirmed by then. Everybody else is told now, and everybody of a rollback.
        """
        for ruled in decided:
            for resource, settle in ruled.settles():
                if ruled.decision is Decision.COMMITTED and self._belongs(resource, ruled.caller):
                    self._hold(resource, settle)
                else:
                    self._enqueue(resource, settle)

    def confirmed(self, confirms: Iterable[Confirm]) -> None:
        """Hears what was confirmed without a nudge: what is still held back for it need not be told any more."""
        if not self._held:
            return
        for confirm in confirms:
            held = self._held.get((confirm.xid, confirm.resource))
            if held is not None and {branch for branch, _ in confirm.states}.issuperset(held[1].branches):
                del self._held[confirm.xid, confirm.resource]

    async def undone(self, xids: Iterable[UUID], timeout_s: float) -> None:
        """Returns when all resources answered for those of `xids` that are being told, or after `timeout_s`."""
        waiting = [undoing.done.wait() for xid in xids if (undoing := self._undoing.get(xid)) is not None]
        if waiting:
            try:
                await asyncio.wait_for(asyncio.gather(*waiting), timeout_s)
            except TimeoutError:
                log.info("nudge.slow", waited_s=timeout_s)

    async def poke(self, resource: str) -> bool:
        """Makes a resource look at once whether anything waits for it. False when no address of it answers.

        Raises StoreUnavailable.
        """
        body = _encoder.encode(Nudge(resource, []))
        for target in await self._urls_of(resource):
            try:
                await self._post(target, body)
            except (aiohttp.ClientError, TimeoutError, ValueError):
                continue
            return True
        return False

    def announced(self, resource: str) -> None:
        """A resource has an address that may be new."""
        self._urls.pop(resource, None)

    def _belongs(self, resource: str, caller: str | None) -> bool:
        """Whether all addresses of a resource are its caller's, as far as is known at the moment."""
        _, urls = self._urls.get(resource, NEVER_READ)
        return caller is not None and bool(urls) and all(target.owner == caller for target in urls)

    def _is_nowhere(self, resource: str) -> bool:
        """Whether it was looked up a moment ago and had no address: its sweep finds out by itself."""
        read_at, urls = self._urls.get(resource, NEVER_READ)
        return not urls and time.monotonic() - read_at < self._limits.resource_cache_s

    def _hold(self, resource: str, settle: Settle) -> None:
        if len(self._held) >= self._limits.nudge_queue_max:
            self.dropped += 1
            return
        self._held[settle.xid, resource] = (time.monotonic() + self._limits.nudge_own_delay_s, settle)
        if self._releasing is None:
            self._releasing = asyncio.create_task(self._release(), name="nudge later")

    async def _release(self) -> None:
        """Tells what was held back once its time has come; ends when nothing is held."""
        try:
            while self._held:
                (_, resource), (due_s, settle) = next(iter(self._held.items()))
                pause_s = due_s - time.monotonic()
                if pause_s > 0:
                    await asyncio.sleep(pause_s)
                elif self._held.pop((settle.xid, resource), None) is not None:
                    self._enqueue(resource, settle)
        finally:
            self._releasing = None

    def _enqueue(self, resource: str, settle: Settle) -> None:
        if self._is_nowhere(resource):
            return
        lane = self._lanes.get(resource)
        if lane is None:
            lane = self._lanes[resource] = _Lane(resource)
        if settle.xid in lane.on_its_way:
            return
        if len(lane.queue) >= self._limits.nudge_queue_max:
            self.dropped += 1
            return
        lane.queue.append(settle)
        lane.on_its_way.add(settle.xid)
        if settle.decision == Decision.ROLLED_BACK:
            self._undoing.setdefault(settle.xid, _Undoing()).left += 1
        if lane.task is None:
            lane.task = asyncio.create_task(self._drive(lane), name=f"nudge {resource}")

    async def _drive(self, lane: _Lane) -> None:
        """Sends until the lane is empty."""
        try:
            while lane.queue:
                batch = [lane.queue.popleft() for _ in range(min(len(lane.queue), self._limits.nudge_settle_max))]
                try:
                    await self._tell(lane, batch)
                except (StoreUnavailable, Overloaded) as error:
                    self._warn(lane, str(error))
                finally:
                    self._told(lane, batch)
        finally:
            self._told(lane, lane.queue)
            lane.queue.clear()
            lane.task = None

    def _told(self, lane: _Lane, settles: Iterable[Settle]) -> None:
        for settle in settles:
            lane.on_its_way.discard(settle.xid)
            undoing = self._undoing.get(settle.xid)
            if undoing is None or settle.decision != Decision.ROLLED_BACK:
                continue
            undoing.left -= 1
            if undoing.left <= 0:
                undoing.done.set()
                del self._undoing[settle.xid]

    async def _tell(self, lane: _Lane, settles: list[Settle]) -> None:
        """Posts one nudge to the first address that takes it and records the answer."""
        urls = await self._urls_of(lane.resource)
        body = _encoder.encode(Nudge(lane.resource, settles))
        problem = "no address was announced" if not urls else ""
        for target in urls:
            try:
                confirms = await self._post(target, body)
            except (aiohttp.ClientError, TimeoutError, ValueError) as error:
                problem = f"{target.url}: {type(error).__name__}: {error}"
                continue
            self.sent += 1
            own = [confirm for confirm in confirms if confirm.resource == lane.resource]
            if own:
                await self._submit(own, target.owner)
            return
        if urls:
            self.failed += 1
            self._warn(lane, problem)

    async def _post(self, target: NudgeUrl, body: bytes) -> list[Confirm]:
        """Raises a ClientError, TimeoutError or ValueError when the resource did not take the nudge."""
        if self._http is None:
            raise ValueError("the nudger is not open")
        headers = {
            "Authorization": f"Bearer {self._tokens.token_for(target.owner)}",
            "Content-Type": "application/json",
        }
        async with self._http.post(target.url, data=body, headers=headers, allow_redirects=False) as response:
            if response.status // 100 != 2:
                raise ValueError(f"the resource answered {response.status}")
            answer = bytearray()
            async for chunk in response.content.iter_chunked(65536):
                answer += chunk
                if len(answer) > self._limits.nudge_answer_bytes_max:
                    raise ValueError("the resource's answer is too long")
        return _confirms.decode(answer)

    async def _urls_of(self, resource: str) -> list[NudgeUrl]:
        read_at, urls = self._urls.get(resource, NEVER_READ)
        if time.monotonic() - read_at < self._limits.resource_cache_s:
            return urls
        urls = await self._store.nudge_urls(resource)
        self._urls[resource] = (time.monotonic(), urls)
        return urls

    def _warn(self, lane: _Lane, problem: str) -> None:
        """Once per resource and interval: a service that is down for a night must not fill the disk."""
        now = time.monotonic()
        if now - lane.warned_at >= self._limits.nudge_warn_interval_s:
            lane.warned_at = now
            log.warning("nudge.failed", resource=lane.resource, problem=problem)
