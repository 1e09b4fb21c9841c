"""The wire form: what a client says to the coordinator, what it answers, and what it says to resources.

Clients send `POST /v1/messages` with a JSON list of requests and get a list of answers in the same order:
whatever one process has to say at the same time travels together. Instants are milliseconds since 1970.
`POST /v1/wait` has a call of its own, because it blocks. The coordinator sends `Nudge` to the URL that a
resource announced.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

import msgspec

MESSAGES_MAX = 1000
"""Requests in one list; a longer one is refused."""

BRANCHES_MAX = 1000
"""Branches that one transaction may name."""

DEADLINE_MAX_MS = 253_402_300_799_000
"""The last instant that a deadline may name: the end of the year 9999."""

NAME_LENGTH_MAX = 200
"""Characters of a transaction's or a resource's name; they are printable."""


class BranchRef(msgspec.Struct, frozen=True, array_like=True):
    """One branch by name: in which resource, and which."""

    resource: str
    branch: UUID


class Begin(msgspec.Struct, frozen=True, tag="begin"):
    """A hint that a transaction started: for lists, for the timeout and for a quick rollback. May be lost."""

    xid: UUID
    name: str
    deadline_ms: int


class Register(msgspec.Struct, frozen=True, tag="register"):
    """A hint that a branch is on its way. May be lost, and may overtake Begin."""

    xid: UUID
    deadline_ms: int
    branch: BranchRef


class Decide(msgspec.Struct, frozen=True, tag="decide"):
    """The decision. `commit` names every branch that belongs to it. Repeating it gets the first answer."""

    xid: UUID
    name: str
    deadline_ms: int
    commit: bool
    branches: list[BranchRef]


class Ask(msgspec.Struct, frozen=True, tag="ask"):
    """What became of `xid`? Past `deadline_ms` an unknown xid is recorded as rolled back (presumed abort)."""

    xid: UUID
    deadline_ms: int
    resource: str


class Confirm(msgspec.Struct, frozen=True, tag="confirm"):
    """A resource followed the decision: `states` pairs its branches with their BranchState numbers."""

    xid: UUID
    resource: str
    states: list[tuple[UUID, int]]


Request = Begin | Register | Decide | Ask | Confirm


class Outcome(msgspec.Struct, frozen=True, tag="outcome"):
    """The answer to Decide and Ask. `branches` are the committed ones of the asking resource (Ask only)."""

    xid: UUID
    decision: int  # Decision
    reason: str | None = None
    branches: list[UUID] = []


class Noted(msgspec.Struct, frozen=True, tag="noted"):
    """The answer to the hints and to Confirm."""


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """A request that could not be taken: what is wrong with it."""

    message: str


Answer = Outcome | Noted | Refused


class Wait(msgspec.Struct, frozen=True):
    """`waiter` (None for a plain writer) wants rows that `holder` locks; held open for at most `wait_ms`."""

    holder: UUID
    holder_deadline_ms: int | None
    waiter: UUID | None
    waiter_deadline_ms: int | None
    resource: str
    wait_ms: int


class WaitAnswer(msgspec.Struct, frozen=True):
    """`holder` is the holder's Decision number; `waiter` the waiter's own: ROLLED_BACK when it lost a deadlock."""

    holder: int
    waiter: int
    reason: str | None = None
    branches: list[UUID] = []


class Announce(msgspec.Struct, frozen=True):
    """A resource's owner says where it can be nudged. Sent at start and every ANNOUNCE_INTERVAL_S."""

    resource: str
    nudge_url: str


class Settle(msgspec.Struct, frozen=True):
    """One decision as a resource hears it: `branches` are those of this resource that are committed."""

    xid: UUID
    decision: int
    branches: list[UUID]


class Nudge(msgspec.Struct, frozen=True):
    """What the coordinator posts to a resource: settle these now, and answer with `list[Confirm]`."""

    resource: str
    settle: list[Settle]


class Resolved(msgspec.Struct, frozen=True):
    """What came of a person's decision in a resource: ``state``, ``kept``, ``restored``, or ``error``."""

    resolution_id: UUID
    outcome: dict[str, Any]


class Images(msgspec.Struct, frozen=True):
    """Rows of a quarantined transaction, before, after and now; `digest` stands for all `total` of them."""

    digest: str
    total: int
    rows: list[dict[str, Any]]


class Report(msgspec.Struct, frozen=True):
    """What a resource says about one quarantined transaction. `images` is left out where the coordinator has them."""

    xid: UUID
    resource: str
    states: list[tuple[UUID, int]]
    digest: str
    reason: str | None = None
    images: Images | None = None
    resolved: Resolved | None = None


class Resolution(msgspec.Struct, frozen=True):
    """A person's decision that the resource has to carry out: see ``at.resolve``."""

    resolution_id: UUID
    action: str
    shown: str | None
    kept: list[dict[str, Any]] | None


class ReportAnswer(msgspec.Struct, frozen=True):
    """`resolution` is to be carried out now; `show` asks for the images."""

    resolution: Resolution | None = None
    show: bool = False


class Pulse(msgspec.Struct, frozen=True):
    """A resource's life sign. `known` repeats the coordinator's mark, once the resource has looked again after it."""

    resource: str
    incarnation: UUID
    beats: int
    mark: UUID
    previous: UUID
    before_ms: int
    known: UUID | None = None


class PulseAnswer(msgspec.Struct, frozen=True):
    """`memory_ms`: the end of what the coordinator may have purged. `unfit`: the marks do not go on from `known`."""

    memory_ms: int | None
    unfit: bool
    known: UUID
