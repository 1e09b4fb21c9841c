"""The rules of nights: pure, no clock, no database."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from enum import IntEnum
from uuid import UUID

ONE_NIGHT = timedelta(days=1)


class HoldState(IntEnum):
    """How far an order's hold is. The numbers are stored; they never change."""

    HELD = 0
    BOOKED = 1
    RELEASED = 2


@dataclass(frozen=True)
class Move:
    """What a change of state does to each night, in multiples of the hold's units."""

    held: int
    booked: int

    @property
    def changes(self) -> bool:
        """Whether there is anything to do."""
        return self != NOTHING


NOTHING = Move(0, 0)

_MOVES: Mapping[tuple[HoldState, HoldState], Move] = {
    (HoldState.HELD, HoldState.BOOKED): Move(-1, +1),
    (HoldState.HELD, HoldState.RELEASED): Move(-1, 0),
    (HoldState.BOOKED, HoldState.RELEASED): Move(0, -1),
    (HoldState.RELEASED, HoldState.HELD): Move(+1, 0),
}


def move(now: HoldState, to: HoldState) -> Move | None:
    """How a hold in state `now` becomes `to`: nothing to do when it is there already, None when it may not."""
    return NOTHING if now is to else _MOVES.get((now, to))


@dataclass(frozen=True)
class Stay:
    """What an order takes: `pools` units of each pool on every night of the half-open [check_in, check_out)."""

    listing_id: UUID
    pools: Mapping[str, int]
    check_in: date
    check_out: date

    @property
    def nights(self) -> list[date]:
        """Every night, in order; none when the stay is empty or runs backwards."""
        return [self.check_in + n * ONE_NIGHT for n in range((self.check_out - self.check_in).days)]

    @property
    def places(self) -> set[tuple[date, str]]:
        """Every (night, pool) that the stay needs."""
        return {(night, pool) for night in self.nights for pool in self.pools}


@dataclass(frozen=True)
class Night:
    """One row of nights."""

    night: date
    pool: str
    total: int
    held: int
    booked: int
    fence: int

    @property
    def left(self) -> int:
        """Units that can still be taken."""
        return self.total - self.held - self.booked


@dataclass(frozen=True)
class Shortage:
    """Why a stay cannot be held: `full` nights have too little left, `stale` ones were written by a later fence."""

    full: list[date]
    stale: list[date]


def shortage(stay: Stay, missing: set[tuple[date, str]], rows: Sequence[Night]) -> Shortage:
    """Explains `missing` places by their decided `rows`. A place without a row has no pool that is big enough."""
    known = {(row.night, row.pool): row for row in rows}
    full: set[date] = set()
    stale: set[date] = set()
    for night, pool in missing:
        row = known.get((night, pool))
        (full if row is None or row.left < stay.pools[pool] else stale).add(night)
    return Shortage(sorted(full), sorted(stale - full))
