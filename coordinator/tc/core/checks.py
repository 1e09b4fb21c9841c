"""What is wrong with a message, found before it can spoil the batch that it would travel in."""

from __future__ import annotations

from uuid import UUID

from coordinator.protocol.messages import (
    BRANCHES_MAX,
    DEADLINE_MAX_MS,
    NAME_LENGTH_MAX,
    Ask,
    Begin,
    BranchRef,
    Confirm,
    Decide,
    Register,
    Request,
    Wait,
)
from coordinator.protocol.statuses import BranchState

NIL = UUID(int=0)
BRANCH_STATES = frozenset(int(state) for state in BranchState)


def problem_with(message: Request | Wait) -> str | None:
    """What is wrong with `message` and what to send instead, or None when it can be taken."""
    match message:
        case Begin():
            return _xid(message.xid) or _name("name", message.name) or _deadline(message.deadline_ms)
        case Register():
            return _xid(message.xid) or _deadline(message.deadline_ms) or _branch(message.branch)
        case Decide():
            return (
                _xid(message.xid)
                or _name("name", message.name)
                or _deadline(message.deadline_ms)
                or _count(len(message.branches))
                or next((wrong for branch in message.branches if (wrong := _branch(branch))), None)
            )
        case Ask():
            return _xid(message.xid) or _deadline(message.deadline_ms) or _resource(message.resource)
        case Confirm():
            return (
                _xid(message.xid)
                or _resource(message.resource)
                or _count(len(message.states))
                or next((_state(state) for _, state in message.states if state not in BRANCH_STATES), None)
            )
        case Wait():
            return _wait(message)


def _wait(message: Wait) -> str | None:
    if message.waiter == message.holder:
        return "a transaction does not wait for itself: its own rows never block it"
    if not 0 <= message.wait_ms <= DEADLINE_MAX_MS:
        return f"wait_ms is {message.wait_ms}; send 0 to {DEADLINE_MAX_MS}"
    for deadline_ms in (message.holder_deadline_ms, message.waiter_deadline_ms):
        if deadline_ms is not None and (wrong := _deadline(deadline_ms)):
            return wrong
    return _xid(message.holder) or (_xid(message.waiter) if message.waiter else None) or _resource(message.resource)


def _xid(xid: UUID) -> str | None:
    return "the xid is all zeros; send the transaction's own" if xid == NIL else None


def _name(what: str, text: str) -> str | None:
    if len(text) > NAME_LENGTH_MAX or not text.isprintable():
        return f"the {what} has to be at most {NAME_LENGTH_MAX} printable characters; it has {len(text)}"
    return None


def _resource(text: str) -> str | None:
    return "the resource has no name; send the announced one" if not text else _name("resource", text)


def _branch(branch: BranchRef) -> str | None:
    if branch.branch == NIL:
        return "a branch id is all zeros, which is kept for tombstones; send the branch's own"
    return _resource(branch.resource)


def _deadline(deadline_ms: int) -> str | None:
    if 0 <= deadline_ms <= DEADLINE_MAX_MS:
        return None
    return f"{deadline_ms} is no instant in milliseconds since 1970; send one from 0 to {DEADLINE_MAX_MS}"


def _count(count: int) -> str | None:
    if count <= BRANCHES_MAX:
        return None
    return f"{count} branches are more than the {BRANCHES_MAX} that one message may name"


def _state(state: int) -> str:
    return f"{state} is no branch state; send one of {sorted(BRANCH_STATES)}"
