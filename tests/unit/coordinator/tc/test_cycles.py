"""Cycles of waits."""

from __future__ import annotations

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.tc.core.cycles import Edge, cycle_through, victim_of, victims


def _edges(*pairs: tuple[int, int]) -> list[Edge]:
    return [Edge(UUID(int=waiter), UUID(int=holder)) for waiter, holder in pairs]


def test_a_cycle_is_found_from_any_of_its_members() -> None:
    """Whoever closes it sees it, side branches notwithstanding."""
    edges = _edges((1, 2), (2, 3), (3, 1), (2, 9), (9, 8), (7, 1))
    for start in (1, 2, 3):
        cycle = cycle_through(UUID(int=start), edges)
        assert cycle[0] == UUID(int=start)
        assert sorted(one.int for one in cycle) == [1, 2, 3]


def test_a_cycle_elsewhere_is_not_mine() -> None:
    """Who waits for a cycle is not in it."""
    assert cycle_through(UUID(int=7), _edges((7, 1), (1, 2), (2, 1))) == []


def test_the_youngest_gives_way() -> None:
    """The greatest xid of the cycle, whoever closed it."""
    assert victims(UUID(int=1), _edges((1, 2), (2, 3), (3, 1))) == [UUID(int=3)]


def test_several_cycles_closed_at_once_are_all_broken_with_as_few_victims_as_are_met() -> None:
    """A victim that breaks two cycles is enough for both."""
    assert victims(UUID(int=9), _edges((9, 1), (1, 9), (9, 2), (2, 9))) == [UUID(int=9)]
    assert sorted(victims(UUID(int=1), _edges((1, 8), (8, 1), (1, 9), (9, 1)))) == [UUID(int=8), UUID(int=9)]


def test_of_nobody_there_is_no_victim() -> None:
    """An empty cycle is a mistake of the caller."""
    with pytest.raises(ValueError):
        victim_of([])


numbers = st.integers(1, 6)


@given(st.lists(st.tuples(numbers, numbers).filter(lambda pair: pair[0] != pair[1]), max_size=20), numbers)
def test_after_the_victims_left_no_cycle_goes_through_the_start(pairs: list[tuple[int, int]], start: int) -> None:
    """For any graph: what is left has no cycle there, and every victim was on one."""
    edges = _edges(*pairs)
    chosen = victims(UUID(int=start), edges)
    left = [edge for edge in edges if edge.waiter not in chosen and edge.holder not in chosen]
    assert cycle_through(UUID(int=start), left) == []
    for victim in chosen:
        assert cycle_through(victim, edges)
