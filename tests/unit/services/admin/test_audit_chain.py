"""The chain of the audit log: nothing in it can be changed, taken out, cut off or put elsewhere unseen."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from services.admin.domain import GENESIS, Entry, chained, first_broken

texts = st.text(max_size=12)
drafts = st.lists(
    st.builds(
        Entry,
        number=st.just(0),
        actor=st.uuids(),
        action=texts,
        subject=texts,
        reason=texts,
        at_ms=st.integers(0, 2**45),
        xid=st.none() | st.uuids(),
    ),
    min_size=1,
    max_size=6,
)
Chain = list[tuple[Entry, bytes]]


def chain_of(made: list[Entry]) -> Chain:
    chain: Chain = []
    previous = GENESIS
    for number, draft in enumerate(made, 1):
        entry = replace(draft, number=number)
        previous = chained(previous, entry)
        chain.append((entry, previous))
    return chain


def head_of(chain: Chain) -> tuple[int, bytes]:
    return (chain[-1][0].number, chain[-1][1]) if chain else (0, GENESIS)


@given(drafts)
def test_a_chain_that_nobody_touched_holds(made: list[Entry]) -> None:
    """So does the empty one."""
    chain = chain_of(made)
    assert first_broken(chain, head_of(chain)) is None
    assert first_broken([], (0, GENESIS)) is None


@given(drafts, st.data())
def test_a_changed_field_is_found_where_it_is(made: list[Entry], data: st.DataObject) -> None:
    """Text may not even move from one field to the next."""
    chain = chain_of(made)
    at = data.draw(st.integers(0, len(chain) - 1))
    entry, stored = chain[at]
    changed = data.draw(
        st.sampled_from(
            [
                replace(entry, actor=UUID(int=entry.actor.int ^ 1)),
                replace(entry, action=entry.action + "x"),
                replace(entry, action=entry.action + "x" + entry.subject, subject=""),
                replace(entry, reason=entry.reason + " "),
                replace(entry, at_ms=entry.at_ms + 1),
                replace(entry, xid=UUID(int=9) if entry.xid is None else None),
            ]
        )
    )
    forged = [*chain[:at], (changed, stored), *chain[at + 1 :]]
    assert first_broken(forged, head_of(chain)) == at + 1


@given(drafts, st.data())
def test_a_missing_entry_is_found_where_it_was(made: list[Entry], data: st.DataObject) -> None:
    """Also when it is the last one."""
    chain = chain_of(made)
    at = data.draw(st.integers(0, len(chain) - 1))
    assert first_broken([*chain[:at], *chain[at + 1 :]], head_of(chain)) == at + 1
