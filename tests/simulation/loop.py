"""An event loop without selector, threads or clock: time jumps to the next timer when nothing is ready, and the order
of what is ready comes from the dice. The same dice give the same run.

A process is a `Node`: whatever runs in its context belongs to it. A killed node's callbacks are dropped, as a process
that is killed runs not one line more, no `finally` either; a paused node's are held back until it goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import heapq
import sys
import warnings
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar
from itertools import count
from random import Random
from typing import Any

NODE: ContextVar[Node | None] = ContextVar("simulated_node", default=None)
"""The process that the running code belongs to; None: a server, the network, or the scheduler."""


class Stuck(Exception):
    """Nothing is ready and no timer runs: nobody will ever do anything again."""


class Node:
    """One life of one process."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.alive = True
        self.paused = False
        self.held: list[asyncio.Handle] = []
        self.context: Context = contextvars.copy_context()
        self.context.run(NODE.set, self)

    def __repr__(self) -> str:
        return self.name


class _Numbered:
    """Hashed by its number, so that a set of such objects has the same order in every run."""

    numbers = count()

    def __new__(cls, *arguments: Any, **options: Any) -> Any:
        made = super().__new__(cls)
        made.number = next(_Numbered.numbers)
        return made

    def __hash__(self) -> int:
        return int(self.number)  # type: ignore[attr-defined]


class SimFuture(_Numbered, asyncio.Future):  # type: ignore[type-arg]
    """A future with a place in sets."""


class SimTask(_Numbered, asyncio.Task):  # type: ignore[type-arg]
    """A task with a place in sets."""


class SimEvent(_Numbered, asyncio.Event):
    """An event with a place in sets."""


class SimLoop(asyncio.BaseEventLoop):
    """See the module."""

    def __init__(self, dice: Random) -> None:
        super().__init__()
        _Numbered.numbers = count()
        self._dice = dice
        self._now = 0.0
        self.steps = 0
        self.crashes: list[str] = []
        self.tasks: list[SimTask] = []
        self.set_task_factory(self._make_task)
        self.set_exception_handler(self._failed)

    def time(self) -> float:
        return self._now

    def create_future(self) -> SimFuture:
        return SimFuture(loop=self)

    def spawn(self, work: Coroutine[Any, Any, Any], node: Node | None) -> asyncio.Task[Any]:
        """Runs `work` in the process `node`; None: in a server or the network."""
        context = Context() if node is None else node.context.copy()
        return self.create_task(work, context=context)

    def after(self, delay_s: float, deed: Callable[..., object], *arguments: Any) -> None:
        """Runs `deed` later, in the network."""
        self.call_later(delay_s, deed, *arguments, context=Context())

    def resume(self, node: Node) -> None:
        """The node goes on where it was paused."""
        node.paused = False
        self._ready.extend(node.held)
        node.held.clear()

    def finish(self) -> None:
        """Throws away what still runs, without a word of what it says to that."""
        for task in self.tasks:
            task._log_destroy_pending = False  # type: ignore[attr-defined]
        self._ready.clear()
        self._scheduled.clear()
        hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
        with warnings.catch_warnings(action="ignore"):
            for task in self.tasks:
                if not task.done():
                    # What a killed process would say to that is heard by nobody.
                    with contextlib.suppress(BaseException):
                        task.get_coro().close()  # type: ignore[union-attr]
            self.tasks.clear()
            self._ready.clear()
            self._scheduled.clear()
            self.close()
            gc.collect()
        sys.unraisablehook = hook

    def _make_task(self, loop: asyncio.AbstractEventLoop, work: Any, context: Context | None = None) -> SimTask:
        task = SimTask(work, loop=loop, context=context)
        self.tasks.append(task)
        if len(self.tasks) > 4000:
            self.tasks = [one for one in self.tasks if not one.done()]
        return task

    def _run_once(self) -> None:
        while self._scheduled and self._scheduled[0]._cancelled:
            heapq.heappop(self._scheduled)._scheduled = False
        if not self._ready:
            if not self._scheduled:
                raise Stuck("nothing is ready and no timer runs")
            self._now = max(self._now, self._scheduled[0]._when)
        while self._scheduled and self._scheduled[0]._when <= self._now:
            handle = heapq.heappop(self._scheduled)
            handle._scheduled = False
            self._ready.append(handle)
        batch = list(self._ready)
        self._ready.clear()
        if len(batch) > 1:
            self._dice.shuffle(batch)
        for handle in batch:
            if handle._cancelled:
                continue
            node = handle._context.get(NODE)
            if node is not None and not node.alive:
                continue
            if node is not None and node.paused:
                node.held.append(handle)
                continue
            self.steps += 1
            handle._run()

    def _write_to_self(self) -> None:
        """There is no other thread that could wake this one."""

    def _failed(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        self.crashes.append(f"{context.get('message')}: {error!r}")
