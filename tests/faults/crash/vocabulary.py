"""What a step is, which faults there are, and how a call of a function is known to be a step.

A step is a function of ours. A point is a step in one process while one story is told, and a fault at it: the process
is killed (SIGKILL) before or after the step, or what the step sent or was answered is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

Arguments = tuple[Any, ...]
Where = Callable[[Arguments], bool]
"""Looks at the arguments of a call, `self` among them: is it this step?"""


class Fault(StrEnum):
    """What happens to a step."""

    KILL_BEFORE = "kill before"
    KILL_AFTER = "kill after"
    LOSE_REQUEST = "lose request"
    LOSE_REPLY = "lose reply"


WISHES = 10
"""Which of the columns of `tc.apply` holds the wishes."""

KILLS = (Fault.KILL_BEFORE, Fault.KILL_AFTER)
AFTER = (Fault.KILL_AFTER,)
LOSSES = (Fault.LOSE_REQUEST, Fault.LOSE_REPLY)


def _always(_: Arguments) -> bool:
    return True


def _something(result: Any) -> bool:
    return True


@dataclass(frozen=True)
class Step:
    """One step: `by` names the processes that take it and the stories, parted by blanks, in which each does.

    `where` narrows a function to the calls that are this step, `done` to the results after which it was taken. `lost`
    makes the error that the caller sees when request or reply is lost. `early_hints`: only where begin and register
    are sent at once (True), or only where they are as good as never sent (False).
    """

    name: str
    target: str
    by: Mapping[str, str]
    faults: tuple[Fault, ...] = KILLS
    where: Where = _always
    done: Callable[[Any], bool] = _something
    lost: Callable[[Arguments], Exception] | None = None
    nth: int = 1
    early_hints: bool | None = None


@dataclass(frozen=True)
class Arm:
    """A fault that is to happen once: the step's name, in which process, and at which of its passes.

    `process` may name several, such as ``order+worker``: then it happens in the one that comes first.
    """

    step: str
    process: str
    fault: Fault
    nth: int = 1


@dataclass(frozen=True)
class Point:
    """A story, the fault that happens in it, and, where there is one, the fault that happens in the recovery."""

    story: str
    first: Arm
    then: Arm | None = None
    early_hints: bool | None = field(default=None, compare=False)

    @property
    def name(self) -> str:
        """For people."""
        first = f"{self.story}: {self.first.fault} «{self.first.step}» in {self.first.process}"
        return (
            first if self.then is None else f"{first}, then {self.then.fault} «{self.then.step}» in {self.then.process}"
        )


def calls(path: str) -> Where:
    """Calls of `TransactionalClient._once` to a path, or to one that ends so."""
    return lambda arguments: str(arguments[2]).endswith(path)


def says(*kinds: str, commit: bool | None = None, place: int = 1) -> Where:
    """Lists of messages in which one is of these kinds; of decisions only commits, or only rollbacks."""

    def holds(arguments: Arguments) -> bool:
        return any(
            type(message).__name__ in kinds and (commit is None or getattr(message, "commit", commit) is commit)
            for message in arguments[place]
        )

    return holds


def enters(arguments: Arguments) -> bool:
    """The first statement of a branch, with which BEGIN and what enters the branch travel."""
    return getattr(_driver(arguments), "_at_enter", None) is not None


def commits_branch(arguments: Arguments) -> bool:
    """The COMMIT of a branch's local transaction."""
    return arguments[1] == "COMMIT;" and arguments[0]._at_entered


def writes_commit(arguments: Arguments) -> bool:
    """The batch of `Store.apply` in which somebody wishes to commit."""
    from coordinator.tc.core.rulings import Wish

    return int(Wish.COMMIT) in arguments[1][WISHES]


def no_reply(_: Arguments) -> Exception:
    """A call between services that ended without an answer."""
    from coordinator.client import CallOutcomeUnknown

    return CallOutcomeUnknown("lost on purpose")


def no_coordinator(_: Arguments) -> Exception:
    """A call of the coordinator that ended without an answer."""
    from coordinator.protocol.errors import CoordinatorUnavailable

    return CoordinatorUnavailable("lost on purpose")


def no_store(_: Arguments) -> Exception:
    """A statement of the coordinator's store that ended without an answer."""
    from coordinator.tc.store import StoreUnavailable

    return StoreUnavailable("lost on purpose")


def no_database(arguments: Arguments) -> Exception:
    """A statement whose connection broke before its answer came."""
    from asyncpg import ConnectionDoesNotExistError

    arguments[0].terminate()
    return ConnectionDoesNotExistError("lost on purpose")


def no_statement(arguments: Arguments) -> Exception:
    """As `no_database`, for a statement of a session."""
    return no_database((_driver(arguments),))


def _driver(arguments: Arguments) -> Any:
    return arguments[0]._adapt_connection._connection


def no_resource(_: Arguments) -> Exception:
    """A nudge that was not answered."""
    from aiohttp import ServerDisconnectedError

    return ServerDisconnectedError("lost on purpose")


def no_queue(_: Arguments) -> Exception:
    """A command to Valkey that was not answered."""
    from dramatiq.errors import ConnectionClosed

    return ConnectionClosed("lost on purpose")


def no_person(_: Arguments) -> Exception:
    """Whoever asked does not hear the answer."""
    return ConnectionResetError("lost on purpose")
