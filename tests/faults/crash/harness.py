"""Goes through all points: a story, its fault, the recovery, and whether every promise holds afterwards."""

from __future__ import annotations

import asyncio
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.faults.crash.cell import Cell, Kind, running_cell
from tests.faults.crash.injection import disarm, fired, write_arms
from tests.faults.crash.processes import Launcher
from tests.faults.crash.promises import broken, watched
from tests.faults.crash.stories import EXPIRING, STORIES, scene_of
from tests.faults.crash.vocabulary import Point
from tests.support.servers import TestPostgres
from tests.support.system import eventually

REACHED_WITHIN_S = 12.0
TRIES_MAX = 3
POLL_S = 0.02
KILLED = -9
CELLS = (*[Kind(expiring=True)] * 2, Kind(early_hints=True), *[Kind()] * 4, Kind(expiring=True), Kind())
"""What runs at the same time. A recovery is mostly waiting, so there are more cells than processors."""


@dataclass
class Result:
    """What became of one point. `met`: its faults happened. It recovered when that is so and nothing is in `broken`."""

    point: Point
    met: list[bool]
    broken: list[str] = field(default_factory=list)
    took_s: float = 0.0

    @property
    def recovered(self) -> bool:
        """Every fault happened, the story came to its end, and every promise holds."""
        return all(self.met) and not self.broken

    def as_json(self) -> dict[str, Any]:
        """For a program."""
        point = self.point
        arms = [point.first] if point.then is None else [point.first, point.then]
        kills = [
            {"step": arm.step, "process": arm.process, "fault": arm.fault.value, "happened": met}
            for arm, met in zip(arms, self.met, strict=True)
        ]
        return {
            "story": point.story,
            **kills[0],
            "then": kills[1] if len(kills) > 1 else None,
            "recovered": self.recovered,
            "violations": self.broken,
            "took_s": round(self.took_s, 2),
        }


async def run_point(cell: Cell, point: Point) -> Result:
    """Tells one story with its faults in a cell that is quiet, and leaves it quiet.

    A story that came to its end another way (the sweeper was before the message) is told once more, up to TRIES_MAX.
    """
    for _ in range(TRIES_MAX):
        result = await _tell(cell, point)
        if all(result.met) or result.broken:
            break
    return result


async def _tell(cell: Cell, point: Point) -> Result:
    began = time.monotonic()
    story = STORIES[point.story]
    arms = [point.first] if point.then is None else [point.first, point.then]
    result = Result(point, [False] * len(arms))
    scene = await scene_of(cell)
    if story.held:
        cell.hold_worker()
    try:
        await story.prepare(scene)
        if scene.problems:
            result.broken += [f"before the fault: {problem}" for problem in scene.problems]
            return result
        left = await cell.quiet(but="order" if story.held else None)
        result.broken += [f"before the fault: {one}" for one in left]
        write_arms(cell.control, arms)
        if story.held and not story.swept:
            cell.let_worker_go()
        async with watched(cell, result.broken):
            await story.tell(scene)
            for number in range(len(arms)):
                await _happens(cell, number)
            cell.let_worker_go()
            result.met = [fired(cell.control, number) for number in range(len(arms))]
            await cell.all_work()
            result.broken += [f"not quiet: {one}" for one in await cell.quiet()]
    finally:
        cell.let_worker_go()
        disarm(cell.control)
    result.broken += scene.problems
    result.broken += await broken(scene, story)
    for process, ends in cell.new_ends().items():
        result.broken += [f"{process} ended by itself with {status}" for status in ends if status != KILLED]
    result.took_s = time.monotonic() - began
    return result


async def _happens(cell: Cell, number: int) -> None:
    """Waits for a fault that comes after the answer."""

    async def happened() -> bool:
        return fired(cell.control, number)

    with suppress(TimeoutError):
        await eventually(happened, timeout_s=REACHED_WITHIN_S, pause_s=POLL_S)


class _Queues:
    """Points that wait, by what a cell must be like for them."""

    def __init__(self, points: Sequence[Point]) -> None:
        self._waiting: dict[tuple[bool, bool | None], deque[Point]] = {}
        for point in points:
            hints = None if point.story in EXPIRING else point.early_hints
            self._waiting.setdefault((point.story in EXPIRING, hints), deque()).append(point)

    def next_for(self, kind: Kind) -> Point | None:
        """A point for a cell of this kind: first of those that no other kind can take."""
        for hints in (kind.early_hints, None):
            queue = self._waiting.get((kind.expiring, hints))
            if queue:
                return queue.popleft()
        return None


async def run_points(
    points: Sequence[Point],
    postgres: TestPostgres,
    valkey: str,
    folder: Path,
    heard: Callable[[Result], None] = lambda _: None,
    cells: Sequence[Kind] = CELLS,
) -> list[Result]:
    """All results; `heard` gets each as it comes. Raises what keeps a cell from starting."""
    queues, results = _Queues(points), []
    async with AsyncExitStack() as stack:
        launcher = await stack.enter_async_context(Launcher().running(folder / "launcher.log"))

        async def live(number: int, kind: Kind) -> None:
            name = f"cell-{number}"
            point = queues.next_for(kind)
            if point is None:
                return
            async with running_cell(name, kind, launcher, postgres, valkey, folder / name) as cell:
                while point is not None:
                    result = await _run_or_say(cell, point)
                    results.append(result)
                    heard(result)
                    point = queues.next_for(kind)

        async with asyncio.TaskGroup() as group:
            for number, kind in enumerate(cells):
                group.create_task(live(number, kind))
    return results


async def _run_or_say(cell: Cell, point: Point) -> Result:
    """A story that cannot even be told is a violation, and not the end of all others."""
    try:
        return await run_point(cell, point)
    except Exception as error:
        said = "".join(traceback.format_exception(error)[-3:])
        return Result(point, [False] * (1 if point.then is None else 2), [f"the story broke off: {said}"])
