"""Which points there are: every fault of every step in every story, and the second kills of the recovery."""

from __future__ import annotations

from collections.abc import Iterator

from tests.faults.crash.recovery import ORDERS, RECOVERY
from tests.faults.crash.steps import STEPS
from tests.faults.crash.vocabulary import Arm, Fault, Point, Step


def single_points() -> list[Point]:
    """One fault each."""
    return [
        Point(story, Arm(step.name, process, fault, step.nth), early_hints=step.early_hints)
        for step in STEPS
        for process, stories in step.by.items()
        for story in stories.split()
        for fault in step.faults
    ]


BEFORE, AFTER = Fault.KILL_BEFORE, Fault.KILL_AFTER
_MAKER_DIES = ("book", Arm("commit is asked", "order", BEFORE))
_MAKER_DIES_DECIDED = ("book", Arm("decision is heard", "order", BEFORE))
_ANSWER_IS_LOST = ("book", Arm("answer is ready", "order", AFTER))
_PARTICIPANT_DIES = ("book", Arm("participant answers", "capacity", BEFORE))
_PAYMENT_DIES = ("pay", Arm("local commit", "payment", AFTER))
_COORDINATOR_DIES = ("book", Arm("decision arrives", "coordinator", BEFORE))
_COORDINATOR_DIES_DECIDED = ("pay", Arm("decision is written", "coordinator", AFTER))
_RELAY_DIES = ("book", Arm("outbox is read", "order", AFTER))
_UNDO_DIES = ("refused", Arm("undo", "capacity", BEFORE))
_MESSENGER_DIES = ("book", Arm("notification is stored", "messenger", AFTER))
_WORKER_DIES = ("expire", Arm("commit is asked", "worker", BEFORE))

_SECOND = (
    (_MAKER_DIES, "key is taken again", "order"),
    (_MAKER_DIES, "service starts", "order"),
    (_MAKER_DIES, "sweep finds open branches", ORDERS),
    (_MAKER_DIES, "sweep finds open branches", "capacity"),
    (_MAKER_DIES, "sweep asks", "capacity"),
    (_MAKER_DIES, "question is answered", "coordinator"),
    (_MAKER_DIES, "recovery undoes", ORDERS),
    (_MAKER_DIES, "recovery undoes", "capacity"),
    (_MAKER_DIES, "recovery undoes", "pet"),
    (_MAKER_DIES_DECIDED, "service starts", "order"),
    (_MAKER_DIES_DECIDED, "recovery forgets", ORDERS),
    (_MAKER_DIES_DECIDED, "kept answer is given", "order"),
    (_MAKER_DIES_DECIDED, "recovery confirms", "coordinator"),
    (_ANSWER_IS_LOST, "kept answer is given", "order"),
    (_PARTICIPANT_DIES, "service starts", "capacity"),
    (_PARTICIPANT_DIES, "recovery undoes", "capacity"),
    (_PAYMENT_DIES, "recovery undoes", "payment"),
    (_PAYMENT_DIES, "service starts", "payment"),
    (_COORDINATOR_DIES, "coordinator opens its store", "coordinator"),
    (_COORDINATOR_DIES, "commit is repeated", "order"),
    (_COORDINATOR_DIES_DECIDED, "coordinator opens its store", "coordinator"),
    (_COORDINATOR_DIES_DECIDED, "recovery forgets", "payment"),
    (_RELAY_DIES, "outbox is read again", "order"),
    (_UNDO_DIES, "recovery undoes", "capacity"),
    (_MESSENGER_DIES, "notification comes again", "messenger"),
    (_WORKER_DIES, "service starts", "worker"),
    (_WORKER_DIES, "recovery undoes", "capacity"),
    (_WORKER_DIES, "expiry comes again", "worker"),
)
"""A kill, and a step of its recovery that is sure to come: in which process."""


def second_points() -> list[Point]:
    """A kill, and another one at a step of the recovery, before and after."""
    steps = {step.name: step for step in RECOVERY}
    return [
        Point(story, first, Arm(name, process, fault), early_hints=_hints(first.step))
        for (story, first), name, process in _SECOND
        for fault in steps[name].faults
        if fault in (BEFORE, AFTER)
    ]


def all_pairs() -> Iterator[Point]:
    """Every single point with every fault of every step of the recovery, also those that its recovery does not take."""
    for point in single_points():
        for step in RECOVERY:
            for process in step.by:
                for fault in step.faults:
                    then = Arm(step.name, process, fault)
                    yield Point(point.story, point.first, then, early_hints=point.early_hints)


def _hints(name: str) -> bool | None:
    found: Step = next(step for step in STEPS if step.name == name)
    return found.early_hints
