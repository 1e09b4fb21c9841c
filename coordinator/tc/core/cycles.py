"""Cycles of waits, and who has to give way.

Every edge says that one transaction cannot go on before another is decided. A transaction may wait in several branches
at once; each of its edges alone keeps it from its end, so any cycle is a deadlock.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from uuid import UUID


@dataclass(frozen=True, slots=True)
class Edge:
    """`waiter` waits for `holder`. `waiter_deadline_ms` is the waiter's own deadline, where it said one."""

    waiter: UUID
    holder: UUID
    waiter_deadline_ms: int | None = None


def cycle_through(start: UUID, edges: Iterable[Edge]) -> list[UUID]:
    """The transactions on one cycle through `start`, from `start` on, or an empty list. Linear in the edges."""
    followers: dict[UUID, list[UUID]] = {}
    for edge in edges:
        followers.setdefault(edge.waiter, []).append(edge.holder)
    came_from: dict[UUID, UUID] = {}
    frontier = [start]
    while frontier:
        at = frontier.pop()
        for to in followers.get(at, ()):
            if to == start:
                path = [at]
                while path[-1] != start:
                    path.append(came_from[path[-1]])
                return path[::-1]
            if to not in came_from:
                came_from[to] = at
                frontier.append(to)
    return []


def victim_of(cycle: Iterable[UUID]) -> UUID:
    """The youngest, which has done the least: the greatest xid (they are UUIDv7). Raises ValueError when empty."""
    return max(cycle)


def victims(start: UUID, edges: Iterable[Edge]) -> list[UUID]:
    """Whom to roll back so that no cycle through `start` is left; empty when there is none."""
    left = list(edges)
    chosen: list[UUID] = []
    while cycle := cycle_through(start, left):
        victim = victim_of(cycle)
        chosen.append(victim)
        left = [edge for edge in left if victim not in (edge.waiter, edge.holder)]
    return chosen
