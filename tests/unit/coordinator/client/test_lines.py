"""Lines: who may try next when a holder is decided."""

from __future__ import annotations

import asyncio
from uuid import UUID

from coordinator.client.lines import Lines, Place

A, B = UUID(int=1), UUID(int=2)


def lines() -> Lines:
    return Lines(lambda: 0.0)


def lined_up(all_lines: Lines, holder: UUID, count: int) -> list[Place]:
    return [all_lines.join(holder, None) for _ in range(count)]


async def test_only_the_first_leads_and_the_others_follow_in_order() -> None:
    """Each that leaves lets exactly the next one come to the front."""
    waiting = lines()
    places = lined_up(waiting, A, 4)
    for front, place in enumerate(places):
        assert [other.leads for other in places] == [number == front for number in range(4)]
        assert place.turn.done()
        waiting.leave(place)
        waiting.leave(place)
    assert len(waiting) == 0


async def test_a_leader_that_meets_a_new_holder_takes_its_line_along() -> None:
    """The followers stay behind it, in their order."""
    waiting = lines()
    places = lined_up(waiting, A, 3)
    assert waiting.join(B, places[0]) is places[0]
    assert places[0].leads
    assert {place.line.holder for place in places if place.line is not None} == {B}
    newcomer = waiting.join(A, None)
    assert newcomer.leads
    waiting.leave(places[0])
    assert places[1].leads


async def test_two_lines_that_meet_become_one_and_nobody_is_lost() -> None:
    """Those who were there first stay first; the former leader has to wait for its turn again."""
    waiting = lines()
    first, second = lined_up(waiting, A, 2), lined_up(waiting, B, 2)
    waiting.join(B, first[0])
    assert len(waiting) == 1
    assert not first[0].turn.done()
    order = []
    for _ in range(4):
        [front] = [place for place in first + second if place.leads]
        assert front.turn.done()
        order.append(front)
        waiting.leave(front)
    assert order == [*second, *first]
    assert len(waiting) == 0


async def test_a_follower_may_go_away_and_is_not_called() -> None:
    """Time-outs and cancellations leave no hole in the line."""
    waiting = lines()
    places = lined_up(waiting, A, 3)
    waiting.leave(places[1])
    waiting.leave(places[0])
    assert places[2].leads
    assert not places[1].turn.done()
    await asyncio.sleep(0)


async def test_a_place_whose_owner_was_cancelled_is_passed_on() -> None:
    """A turn that nobody waits for any more does not break the line."""
    waiting = lines()
    places = lined_up(waiting, A, 2)
    places[1].turn.cancel()
    waiting.leave(places[0])
    assert places[1].leads
    waiting.leave(places[1])
    assert len(waiting) == 0


async def test_a_line_whose_front_was_served_waits_for_that_one_from_then_on() -> None:
    """Who meets it as a holder afterwards queues up behind those who wait already."""
    waiting = lines()
    first, second, third = lined_up(waiting, A, 3)
    waiting.leave(first, heir=B)
    assert second.leads
    assert second.turn.done()
    assert second.line is not None
    assert (second.line.holder, second.line.heir) == (B, B)
    newcomer = waiting.join(B, None)
    assert not newcomer.leads
    waiting.leave(second)
    assert third.leads
    waiting.leave(third)
    assert newcomer.leads
    assert len(waiting) == 1


async def test_a_served_front_and_a_line_for_the_same_one_become_one_line() -> None:
    """Two lines would send two of them for the same rows at each decision."""
    waiting = lines()
    early = waiting.join(B, None)
    first, second, third = lined_up(waiting, A, 3)
    waiting.leave(first, heir=B)
    assert len(waiting) == 1
    assert [place.leads for place in (early, second, third)] == [True, False, False]
    assert not second.turn.done()
    waiting.leave(early)
    assert second.leads
    assert second.turn.done()


async def test_only_the_front_hands_anything_on() -> None:
    """A follower that goes away changes nothing for the others."""
    waiting = lines()
    first, second, third = lined_up(waiting, A, 3)
    waiting.leave(second, heir=B)
    assert first.leads
    assert first.line is not None
    assert (first.line.holder, first.line.heir) == (A, None)
    waiting.leave(first)
    assert third.leads
