"""The rules of an order."""

from __future__ import annotations

import itertools
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.order.domain import (
    CHAIN_START,
    Event,
    IllegalTransition,
    Line,
    Order,
    Party,
    Policy,
    Split,
    Status,
    allowed_events,
    chain_hash,
    chain_holds,
    free_until,
    may_check_in,
    split_of_cancellation,
    transition,
)
from services.order.events import KINDS, Subject, notifications

OWNER, PROVIDER = UUID(int=1), UUID(int=2)
CHECK_IN = date(2026, 12, 10)
ENDED = (
    Status.COMPLETED,
    Status.CANCELLED,
    Status.EXPIRED,
    Status.REJECTED,
    Status.REFUNDING,
    Status.REFUNDED,
    Status.DISPUTED,
)


def an_order(**changes: Any) -> Order:
    """A confirmed stay of ten nights for 1000 a night and an add-on of 500."""
    values: dict[str, Any] = {
        "bucket": 7,
        "id": UUID(int=3),
        "created_at": datetime(2026, 12, 1, tzinfo=UTC),
        "owner_id": OWNER,
        "provider_id": PROVIDER,
        "listing_id": UUID(int=4),
        "title": "阳光宠物之家",
        "check_in": CHECK_IN,
        "check_out": CHECK_IN + timedelta(days=10),
        "status": Status.CONFIRMED,
        "total_cents": 10_500,
        "refund_cents": 0,
        "currency": "CNY",
        "policy": Policy.ONE_DAY,
        "instant_book": False,
        "time_zone": "Asia/Shanghai",
        "pay_by": datetime(2026, 12, 1, tzinfo=UTC),
        "version": 3,
    }
    return Order(**{**values, **changes})


LINES = [Line("10 晚", 10, 10_000), Line("洗澡", 0, 500)]


def test_every_status_event_and_party_has_one_answer() -> None:
    """The transition function is total: it gives a status or raises IllegalTransition, and nothing else."""
    moves = 0
    for status, event, party in itertools.product(Status, Event, Party):
        allowed = allowed_events(status, party)
        if event in allowed:
            assert isinstance(transition(status, event, party), Status)
            moves += 1
        else:
            with pytest.raises(IllegalTransition) as refused:
                transition(status, event, party)
            assert list(refused.value.allowed) == allowed
    assert moves == 15


@pytest.mark.parametrize("status", ENDED)
def test_an_order_that_has_ended_stays_as_it_is(status: Status) -> None:
    """No party can do anything with an ended order; above all, a payment never revives an expired one."""
    assert [allowed_events(status, party) for party in Party] == [[], [], [], []]


def test_the_usual_stay_goes_from_booking_to_completion() -> None:
    """Pay, confirm, check in, log care and check out lead through the seed's numbers."""
    steps = [
        (Event.PAY, Party.OWNER, Status.PAID),
        (Event.CONFIRM, Party.PROVIDER, Status.CONFIRMED),
        (Event.CHECK_IN, Party.PROVIDER, Status.IN_PROGRESS),
        (Event.LOG_CARE, Party.PROVIDER, Status.IN_PROGRESS),
        (Event.CHECK_OUT, Party.PROVIDER, Status.COMPLETED),
    ]
    status = Status.PENDING_PAYMENT
    for event, party, expected in steps:
        status = transition(status, event, party)
        assert status is expected


def test_an_instant_booking_is_confirmed_by_its_payment() -> None:
    """A listing with instant booking needs no second look of its provider."""
    assert transition(Status.PENDING_PAYMENT, Event.PAY, Party.OWNER, instant_book=True) is Status.CONFIRMED


def test_a_cancellation_that_pays_back_ends_as_refunded() -> None:
    """Money that went back is seen in the status; without it the order is merely cancelled."""
    assert transition(Status.PAID, Event.CANCEL, Party.OWNER, refund_cents=1) is Status.REFUNDED
    assert transition(Status.PAID, Event.CANCEL, Party.OWNER, refund_cents=0) is Status.CANCELLED
    assert transition(Status.PENDING_PAYMENT, Event.CANCEL, Party.OWNER) is Status.CANCELLED


@pytest.mark.parametrize(
    ("policy", "last_day"),
    [
        (Policy.SAME_DAY, date(2026, 12, 10)),
        (Policy.ONE_DAY, date(2026, 12, 9)),
        (Policy.THREE_DAY, date(2026, 12, 7)),
        (Policy.SEVEN_DAY, date(2026, 12, 3)),
    ],
)
def test_a_policy_gives_everything_back_until_noon_of_its_day(policy: Policy, last_day: date) -> None:
    """One second before noon the owner gets all, at noon no longer."""
    order = an_order(policy=policy)
    noon = datetime.combine(last_day, datetime.min.time()).replace(hour=12)
    assert free_until(policy, CHECK_IN) == noon
    in_time = split_of_cancellation(order, LINES, Party.OWNER, noon - timedelta(seconds=1))
    assert in_time == Split(10_500, 0)
    assert split_of_cancellation(order, LINES, Party.OWNER, noon) != in_time


@pytest.mark.parametrize(
    ("local_now", "owner_cents"),
    [
        (datetime(2026, 12, 9, 12), 500 + 3_500 + 3_000),  # ten nights cancelled: seven by half, three in full
        (datetime(2026, 12, 10, 9), 500 + 3_500 + 3_000),  # the first day has begun, its night has not passed
        (datetime(2026, 12, 13, 9), 500 + 3_500),  # three nights have passed, seven are left
        (datetime(2026, 12, 25, 9), 500),  # all nights have passed
    ],
)
def test_after_the_cut_off_seven_nights_are_halved_and_later_ones_paid_back(
    local_now: datetime, owner_cents: int
) -> None:
    """The published tiers, with add-ons always paid back and nights that passed never."""
    split = split_of_cancellation(an_order(), LINES, Party.OWNER, local_now)
    assert split == Split(owner_cents, 10_500 - owner_cents)


@pytest.mark.parametrize("party", [Party.PROVIDER, Party.ADMIN])
def test_whoever_else_cancels_gives_everything_back(party: Party) -> None:
    """The policy protects the provider from the owner only."""
    assert split_of_cancellation(an_order(), LINES, party, datetime(2026, 12, 25)) == Split(10_500, 0)


def test_cancelling_an_unpaid_order_moves_no_money() -> None:
    """What was never paid is not paid back."""
    order = an_order(status=Status.PENDING_PAYMENT)
    assert split_of_cancellation(order, LINES, Party.OWNER, datetime(2026, 12, 1)) == Split(0, 0)


stays = st.tuples(
    st.integers(1, 60),
    st.lists(st.tuples(st.booleans(), st.integers(0, 99_999)), min_size=1, max_size=6),
    st.sampled_from(Policy),
)


@given(stay=stays, minutes=st.lists(st.integers(-30 * 1440, 90 * 1440), min_size=2, max_size=2))
def test_a_refund_is_exact_and_only_shrinks_with_time(
    stay: tuple[int, list[tuple[bool, int]], Policy], minutes: list[int]
) -> None:
    """Both parts are never negative, add up to the whole, and waiting never pays."""
    nights, amounts, policy = stay
    lines = [Line("x", nights if by_night else 0, cents) for by_night, cents in amounts]
    total = sum(line.amount_cents for line in lines)
    order = an_order(check_out=CHECK_IN + timedelta(days=nights), total_cents=total, policy=policy)
    start = datetime.combine(CHECK_IN, datetime.min.time())
    earlier, later = (
        split_of_cancellation(order, lines, Party.OWNER, start + timedelta(minutes=at)) for at in sorted(minutes)
    )
    for split in (earlier, later):
        assert split.owner_cents >= 0 <= split.provider_cents
        assert split.owner_cents + split.provider_cents == total
    assert later.owner_cents <= earlier.owner_cents + 1  # one cent: a half is rounded up in the owner's favour


def test_check_in_opens_on_the_first_day() -> None:
    """The day before is too early, unless the house allows it; any later day will do."""
    assert not may_check_in(CHECK_IN, CHECK_IN - timedelta(days=1), 0)
    assert may_check_in(CHECK_IN, CHECK_IN, 0)
    assert may_check_in(CHECK_IN, CHECK_IN + timedelta(days=2), 0)
    assert may_check_in(CHECK_IN, CHECK_IN - timedelta(days=3), 3)


def a_chain(notes: list[str]) -> list[tuple[dict[str, Any], bytes]]:
    chain: list[tuple[dict[str, Any], bytes]] = []
    previous = CHAIN_START
    for seq, note in enumerate(notes, 1):
        entry = {"seq": seq, "note": note}
        previous = chain_hash(previous, entry)
        chain.append((entry, previous))
    return chain


def test_a_care_log_that_nobody_touched_holds() -> None:
    """Each entry's hash follows from the one before it."""
    assert chain_holds(CHAIN_START, a_chain(["早餐", "散步", "晚餐"]))


def test_a_changed_dropped_or_moved_care_entry_breaks_the_chain() -> None:
    """No entry can be rewritten, taken out or moved without being seen."""
    chain = a_chain(["早餐", "散步", "晚餐"])
    changed = [({**chain[0][0], "note": "没吃"}, chain[0][1]), *chain[1:]]
    assert not chain_holds(CHAIN_START, changed)
    assert not chain_holds(CHAIN_START, chain[1:])
    assert not chain_holds(CHAIN_START, [chain[1], chain[0], chain[2]])


def test_every_event_tells_the_people_concerned_in_their_own_words() -> None:
    """Owner and provider each get one message; a care entry is news for the owner only."""
    subject = Subject(UUID(int=3), OWNER, PROVIDER, "阳光宠物之家", CHECK_IN, CHECK_IN + timedelta(days=2))
    for kind in KINDS:
        notes = notifications(kind, subject)
        expected = [OWNER] if kind == "care_log" else [OWNER, PROVIDER]
        assert [note.recipient for note in notes] == expected
        assert all("阳光宠物之家" in note.text and "{" not in note.text for note in notes)
        assert all(note.args()["kind"] == kind for note in notes)
