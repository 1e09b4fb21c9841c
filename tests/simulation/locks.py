"""Locks of one simulated database: queues that are fair, limits of waiting, and deadlocks that are found at once."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
from typing import TYPE_CHECKING

from tests.simulation.connections import postgres_error

if TYPE_CHECKING:
    from tests.simulation.loop import SimLoop


class Locks:
    """Who holds and who waits for what. Owners are local transactions; locks are held until `release`."""

    def __init__(self, loop: SimLoop) -> None:
        self._loop = loop
        self._held: dict[Hashable, dict[object, bool]] = {}
        self._queues: dict[Hashable, list[tuple[object, bool, asyncio.Future[None]]]] = {}

    def holders(self, what: Hashable) -> list[object]:
        """Who holds it."""
        return list(self._held.get(what, {}))

    async def take(self, owner: object, what: Hashable, *, shared: bool = False, wait_s: float = 60.0) -> None:
        """Waits for its turn. Raises PostgresError: 40P01 when that closes a circle, 55P03 after `wait_s`."""
        held = self._held.setdefault(what, {})
        if owner in held and (held[owner] <= shared or len(held) == 1):
            held[owner] = held[owner] and shared
            return
        queue = self._queues.setdefault(what, [])
        if not queue and self._fits(held, owner, shared):
            held[owner] = shared
            return
        turn = self._loop.create_future()
        entry = (owner, shared, turn)
        queue.append(entry)
        try:
            if self._circle(owner, owner, set()):
                raise postgres_error("40P01", "deadlock detected")
            try:
                async with asyncio.timeout(wait_s):
                    await turn
            except TimeoutError:
                raise postgres_error("55P03", "canceling statement due to lock timeout") from None
        except BaseException:
            if entry in queue:
                queue.remove(entry)
            else:
                held.pop(owner, None)
            self._grant(what)
            raise

    def release(self, owner: object) -> None:
        """All that it holds, and its places in queues."""
        for queue in self._queues.values():
            for entry in [one for one in queue if one[0] is owner]:
                queue.remove(entry)
                if not entry[2].done():
                    entry[2].set_exception(postgres_error("57P01", "terminating connection"))
                    entry[2].exception()
        for what in [what for what, held in self._held.items() if owner in held]:
            del self._held[what][owner]
        for what in list(self._queues):
            self._grant(what)

    @staticmethod
    def _fits(held: dict[object, bool], owner: object, shared: bool) -> bool:
        return all(other is owner or (shared and mode) for other, mode in held.items())

    def _grant(self, what: Hashable) -> None:
        queue, held = self._queues.get(what, []), self._held.setdefault(what, {})
        while queue and self._fits(held, queue[0][0], queue[0][1]):
            owner, shared, turn = queue.pop(0)
            held[owner] = shared
            if not turn.done():
                turn.set_result(None)
        if not queue:
            self._queues.pop(what, None)
        if not held:
            self._held.pop(what, None)

    def _circle(self, start: object, owner: object, seen: set[int]) -> bool:
        """Whether `start` waits, over others, for itself."""
        for what, queue in self._queues.items():
            for place, (waiting, shared, _) in enumerate(queue):
                if waiting is not owner:
                    continue
                before = [one for one, mode, _ in queue[:place] if not (shared and mode)]
                holding = [one for one, mode in self._held.get(what, {}).items() if not (shared and mode)]
                for blocker in [*before, *holding]:
                    if blocker is owner:
                        continue
                    if blocker is start:
                        return True
                    if id(blocker) not in seen:
                        seen.add(id(blocker))
                        if self._circle(start, blocker, seen):
                            return True
        return False
