"""Scopes: what a running transaction remembers, and how its branches are written down."""

from __future__ import annotations

import asyncio
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.client.context import (
    Initiator,
    Participant,
    bind,
    bound,
    current,
    format_branches,
    parse_branches,
    required,
)
from coordinator.protocol.errors import NoGlobalTransaction
from coordinator.protocol.ids import BranchId, ResourceName, Xid, uuid7
from coordinator.protocol.messages import BRANCHES_MAX, BranchRef

EAST = ResourceName("order@shard-0")
NAMES = st.text(st.characters(codec="ascii", exclude_characters=", ", exclude_categories=["Cc"]), min_size=1)


def initiator() -> Initiator:
    return Initiator(Xid(uuid7(1_800_000_000_000)), "test", 1_800_000_010_000)


def participant() -> Participant:
    return Participant(Xid(UUID(int=1)), BranchId(UUID(int=2)), 1_800_000_010_000)


@given(st.lists(st.builds(BranchRef, NAMES, st.uuids())))
def test_the_branches_header_says_what_it_was_given(refs: list[BranchRef]) -> None:
    """Every list of branches comes back as it went in."""
    assert parse_branches(format_branches(tuple(refs))) == refs


@pytest.mark.parametrize("header", ["east", "east:", ":7", "east:not-a-uuid", "east:1,west", f"\udcff:{UUID(int=7)}"])
def test_a_header_that_is_no_list_of_branches_is_refused(header: str) -> None:
    """ValueError, never a half-read list."""
    with pytest.raises(ValueError):
        parse_branches(header)


def test_an_initiators_branches_all_have_ids_of_their_own() -> None:
    """Two branches of one resource never share an id."""
    scope = initiator()
    assert len({scope.next_branch(EAST) for _ in range(100)}) == 100


def test_a_repeated_call_derives_the_same_ids_in_the_same_order() -> None:
    """For branches by resource and for calls of its own; different resources have different ids."""

    def ids(scope: Participant) -> list[BranchId]:
        west = ResourceName("west")
        return [scope.next_branch(EAST), scope.next_branch(EAST), scope.next_branch(west), scope.next_call()]

    first = ids(participant())
    assert len(set(first)) == 4
    assert ids(participant()) == first


def test_the_first_reason_to_roll_back_is_kept() -> None:
    """Later ones are usually its consequences."""
    scope = initiator()
    scope.mark_rollback_only("cause")
    scope.mark_rollback_only("consequence")
    assert scope.rollback_only == "cause"


def test_a_branch_in_doubt_is_known_but_not_named_and_dooms_the_transaction() -> None:
    """A rollback tells its resource; a commit is impossible."""
    scope = initiator()
    ref = BranchRef(EAST, UUID(int=7))
    scope.doubt(ref, "cut off")
    assert scope.branches == ()
    assert scope.known_branches == (ref,)
    assert scope.rollback_only == "cut off"


def test_more_branches_than_a_decision_can_name_doom_the_transaction() -> None:
    """The one too many is known, and can only be rolled back with the others."""
    scope = initiator()
    for number in range(BRANCHES_MAX):
        scope.note(BranchRef(EAST, UUID(int=number + 1)))
    assert scope.rollback_only is None
    scope.note(BranchRef(EAST, UUID(int=BRANCHES_MAX + 1)))
    assert scope.rollback_only is not None
    assert len(scope.known_branches) == BRANCHES_MAX + 1


def test_a_decided_transaction_takes_no_more_branches() -> None:
    """Neither branches nor calls."""
    scope = initiator()
    scope.decided = True
    with pytest.raises(NoGlobalTransaction, match="decided"), scope.running():
        pass
    with pytest.raises(NoGlobalTransaction), scope.calling():
        pass


async def test_a_scope_is_seen_by_tasks_started_inside_and_by_nobody_else() -> None:
    """It follows the flow of the program, and ends with its block."""

    async def see() -> object:
        return current()

    outside = asyncio.create_task(see())
    with bound(initiator()) as _:
        scope = required()
        inside = asyncio.create_task(see())
    assert await outside is None
    assert await inside is scope
    assert current() is None
    restore = bind(scope)
    assert current() is scope
    restore()
    with pytest.raises(NoGlobalTransaction):
        required()
