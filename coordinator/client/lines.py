"""Lines of local transactions that wait for the same holder, so that one decision does not wake them all.

When a holder is decided only the first in its line tries; the others come after it has finished its local
transaction. Whoever meets a new holder takes the line along and leads it there. So a row that n transactions want
costs about two tries for each, not n; and they get it in the order in which they came, within one process.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from uuid import UUID


class Place:
    """A place in a line. `turn` is done when it is at the front."""

    def __init__(self) -> None:
        self.line: Line | None = None
        self.turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def leads(self) -> bool:
        """Whether it is at the front."""
        return self.line is not None and self.line.leader is self


class Line:
    """Everybody who waits for `holder`; `moved_at_s` is when it last had a new front or a new holder.

    `heir` is the transaction of the last one who left the front with what they wanted, if any.
    """

    def __init__(self, holder: UUID, leader: Place, now_s: float) -> None:
        self.holder = holder
        self.leader = leader
        self.followers: deque[Place] = deque()
        self.heir: UUID | None = None
        self.moved_at_s = now_s


class Lines:
    """All lines of one resource in one process."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lines: dict[UUID, Line] = {}

    def __len__(self) -> int:
        return len(self._lines)

    def join(self, holder: UUID, place: Place | None) -> Place:
        """Lines up behind `holder`. A `place` that led another line brings its followers along, in their order."""
        if place is None or place.line is None:
            return self._append(holder, Place())
        line = place.line
        if line.holder == holder or not place.leads:
            return place
        line.moved_at_s = self._clock()
        self._rename(line, holder)
        return place

    def leave(self, place: Place | None, heir: UUID | None = None) -> None:
        """Goes away from wherever it is; the next one comes to the front. Leaving twice is leaving once.

        `heir` is who has the rows now, as far as can be told: the line waits for it from here on.
        """
        if place is None or place.line is None:
            return
        line, place.line = place.line, None
        if line.leader is not place:
            line.followers.remove(place)
            return
        if not line.followers:
            del self._lines[line.holder]
            return
        line.leader = line.followers.popleft()
        line.moved_at_s = self._clock()
        if heir is not None and heir != line.holder:
            line.heir = heir
            if self._rename(line, heir):
                return
        if not line.leader.turn.done():
            line.leader.turn.set_result(None)

    def _rename(self, line: Line, holder: UUID) -> bool:
        """Makes `holder` the one that the line waits for; True when there was a line already, which it now ends."""
        del self._lines[line.holder]
        target = self._lines.get(holder)
        if target is None:
            line.holder = holder
            self._lines[holder] = line
            return False
        line.leader.turn = asyncio.get_running_loop().create_future()
        for moved in (line.leader, *line.followers):
            moved.line = target
            target.followers.append(moved)
        return True

    def _append(self, holder: UUID, place: Place) -> Place:
        line = self._lines.get(holder)
        if line is None:
            line = self._lines[holder] = Line(holder, place, self._clock())
            place.turn.set_result(None)
        else:
            line.followers.append(place)
        place.line = line
        return place
