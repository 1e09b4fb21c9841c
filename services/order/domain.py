"""The rules of an order, as pure functions: which state follows which, what a cancellation gives back, what a care
log's chain is. The time is passed in.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from datetime import time as time_of_day
from enum import IntEnum, StrEnum
from typing import Any
from uuid import UUID

CUT_OFF_HOUR = 12
"""A cancellation counts as in time until this hour of the policy's day, in the listing's time zone."""
HALF_NIGHTS_MAX = 7
"""After the cut-off, so many of the cancelled nights are paid back by half; later ones in full."""
CHAIN_START = bytes(32)
"""What the first entry of a care log's chain follows."""


class Status(IntEnum):
    """The seed's numbers 0 to 4, then ours. They are stored; they never change."""

    PENDING_PAYMENT = 0
    PAID = 1
    IN_PROGRESS = 2
    COMPLETED = 3
    CANCELLED = 4
    CONFIRMED = 5
    EXPIRED = 6
    REJECTED = 7
    REFUNDING = 8
    REFUNDED = 9
    DISPUTED = 10

    @property
    def label(self) -> str:
        """The name on the wire, such as ``pending_payment``."""
        return self.name.lower()


class Event(StrEnum):
    """What can happen to an order that exists."""

    PAY = "pay"
    CONFIRM = "confirm"
    REJECT = "reject"
    CHECK_IN = "check-in"
    LOG_CARE = "log-care"
    CHECK_OUT = "check-out"
    CANCEL = "cancel"
    EXPIRE = "expire"


class Party(StrEnum):
    """Who does it, in relation to this order."""

    OWNER = "owner"
    PROVIDER = "provider"
    ADMIN = "admin"
    SYSTEM = "system"


class IllegalTransition(Exception):
    """The order's status does not allow `event` to `party`; `allowed` is what it does allow."""

    def __init__(self, status: Status, event: Event, allowed: Sequence[Event]) -> None:
        super().__init__(f"{status.label} does not allow {event}")
        self.status = status
        self.event = event
        self.allowed = tuple(allowed)


_WHO: Mapping[tuple[Status, Event], frozenset[Party]] = {
    (Status.PENDING_PAYMENT, Event.PAY): frozenset({Party.OWNER}),
    (Status.PENDING_PAYMENT, Event.EXPIRE): frozenset({Party.SYSTEM}),
    (Status.PENDING_PAYMENT, Event.CANCEL): frozenset({Party.OWNER, Party.ADMIN}),
    (Status.PAID, Event.CONFIRM): frozenset({Party.PROVIDER}),
    (Status.PAID, Event.REJECT): frozenset({Party.PROVIDER}),
    (Status.PAID, Event.CANCEL): frozenset({Party.OWNER, Party.PROVIDER, Party.ADMIN}),
    (Status.CONFIRMED, Event.CANCEL): frozenset({Party.OWNER, Party.PROVIDER, Party.ADMIN}),
    (Status.CONFIRMED, Event.CHECK_IN): frozenset({Party.PROVIDER}),
    (Status.IN_PROGRESS, Event.LOG_CARE): frozenset({Party.PROVIDER}),
    (Status.IN_PROGRESS, Event.CHECK_OUT): frozenset({Party.PROVIDER}),
}

_TO: Mapping[Event, Status] = {
    Event.PAY: Status.PAID,
    Event.CONFIRM: Status.CONFIRMED,
    Event.REJECT: Status.REJECTED,
    Event.CHECK_IN: Status.IN_PROGRESS,
    Event.LOG_CARE: Status.IN_PROGRESS,
    Event.CHECK_OUT: Status.COMPLETED,
    Event.CANCEL: Status.CANCELLED,
    Event.EXPIRE: Status.EXPIRED,
}


def allowed_events(status: Status, party: Party) -> list[Event]:
    """What `party` may do with an order in `status`."""
    return [event for (at, event), who in _WHO.items() if at is status and party in who]


def transition(
    status: Status, event: Event, party: Party, *, instant_book: bool = False, refund_cents: int = 0
) -> Status:
    """The status after `event`: total over all arguments. Raises IllegalTransition for every move that is not one.

    A payment of an `instant_book` order needs no confirmation; a cancellation that pays something back ends as
    REFUNDED, one that does not as CANCELLED.
    """
    if party not in _WHO.get((status, event), frozenset()):
        raise IllegalTransition(status, event, allowed_events(status, party))
    if event is Event.PAY and instant_book:
        return Status.CONFIRMED
    if event is Event.CANCEL and refund_cents > 0:
        return Status.REFUNDED
    return _TO[event]


class Policy(StrEnum):
    """Cancellation policies, by how long before check-in an owner may still cancel for nothing."""

    SAME_DAY = "same_day"
    ONE_DAY = "one_day"
    THREE_DAY = "three_day"
    SEVEN_DAY = "seven_day"


_CUT_OFF_DAYS: Mapping[Policy, int] = {
    Policy.SAME_DAY: 0,
    Policy.ONE_DAY: 1,
    Policy.THREE_DAY: 3,
    Policy.SEVEN_DAY: 7,
}


@dataclass(frozen=True)
class Line:
    """One line of a quote. `nights` is how many nights it covers, 0 for what is bought once (an add-on)."""

    label: str
    nights: int
    amount_cents: int


@dataclass(frozen=True)
class Split:
    """How the money of a paid order is divided; the two parts are the whole."""

    owner_cents: int
    provider_cents: int


@dataclass(frozen=True)
class Order:
    """An order as its row holds it. The columns that rules need on every change are here, snapshots in Details."""

    bucket: int
    id: UUID
    created_at: datetime
    owner_id: UUID
    provider_id: UUID
    listing_id: UUID
    title: str
    check_in: date
    check_out: date
    status: Status
    total_cents: int
    refund_cents: int
    currency: str
    policy: Policy
    instant_book: bool
    time_zone: str
    pay_by: datetime
    version: int
    paid_at: datetime | None = None
    confirmed_at: datetime | None = None
    checked_in_at: datetime | None = None
    checked_out_at: datetime | None = None
    closed_at: datetime | None = None

    @property
    def is_paid(self) -> bool:
        """Whether the owner's money is in escrow for it."""
        return self.status in (Status.PAID, Status.CONFIRMED, Status.IN_PROGRESS)

    def party_of(self, person: UUID) -> Party | None:
        """What `person` is to this order; None for a stranger."""
        if person == self.owner_id:
            return Party.OWNER
        return Party.PROVIDER if person == self.provider_id else None


def free_until(policy: Policy, check_in: date) -> datetime:
    """Until when a cancellation gives everything back: naive, in the listing's time zone."""
    return datetime.combine(check_in - timedelta(days=_CUT_OFF_DAYS[policy]), time_of_day(CUT_OFF_HOUR))


def split_of_cancellation(order: Order, lines: Sequence[Line], party: Party, local_now: datetime) -> Split:
    """Who gets what when `party` cancels at `local_now` (naive, in the listing's time zone).

    Nothing was paid: nothing moves. Whoever is not the owner gives everything back, and so does the policy until its
    cut-off. After it the owner gets half of the first seven cancelled nights, rounded up, and all of the later ones and
    of the add-ons; nights that have passed are the provider's.
    """
    total = order.total_cents
    if not order.is_paid:
        return Split(0, 0)
    if party is not Party.OWNER or local_now < free_until(order.policy, order.check_in):
        return Split(total, 0)
    nights = (order.check_out - order.check_in).days
    passed = min(max((local_now.date() - order.check_in).days, 0), nights)
    half_until = min(passed + HALF_NIGHTS_MAX, nights)
    nights_cents = sum(line.amount_cents for line in lines if line.nights > 0)
    half = _share(nights_cents, half_until, nights) - _share(nights_cents, passed, nights)
    later = nights_cents - _share(nights_cents, half_until, nights)
    back = (total - nights_cents) + (half + 1) // 2 + later
    back = min(max(back, 0), total)
    return Split(back, total - back)


def _share(amount_cents: int, nights: int, of_nights: int) -> int:
    """What the first `nights` of `of_nights` cost: shares add up to the whole, to the cent."""
    return amount_cents * nights // of_nights


def may_check_in(check_in: date, local_today: date, early_days: int) -> bool:
    """A stay begins on its first day, or `early_days` before it where the house allows that."""
    return local_today >= check_in - timedelta(days=early_days)


def chain_hash(previous: bytes, entry: Mapping[str, Any]) -> bytes:
    """The hash of a care entry that follows `previous`: SHA-256 over the earlier hash and the entry as canonical JSON.

    Whoever changes, drops or reorders an entry breaks every hash after it.
    """
    text = json.dumps(entry, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(previous + text.encode()).digest()


def chain_holds(previous: bytes, entries: Sequence[tuple[Mapping[str, Any], bytes]]) -> bool:
    """Whether each entry's hash follows from the one before it, starting after `previous`."""
    for entry, digest in entries:
        if chain_hash(previous, entry) != digest:
            return False
        previous = digest
    return True
