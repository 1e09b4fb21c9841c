"""Broken builds, made from outside: the simulation has to find every one of them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from random import Random
from typing import Any
from unittest import mock
from uuid import UUID

from coordinator import resource as at
from coordinator.client import context, coordinator
from coordinator.client.settle import Settler
from coordinator.client.transactions import Decider
from coordinator.protocol.messages import Settle
from coordinator.protocol.statuses import Decision
from coordinator.tc.core.rulings import Stored, rule
from coordinator.tc.store import Store
from tests.simulation import store
from tests.simulation.database import Local, Session
from tests.simulation.store import StoreServer

Mutant = Callable[[], contextlib.AbstractContextManager[object]]


def locks_ignored() -> contextlib.AbstractContextManager[object]:
    """No writer looks at the global locks."""
    return mock.patch.object(Session, "_refuse", return_value=None)


def plain_writers_unguarded() -> contextlib.AbstractContextManager[object]:
    """Plain writers do not look at the global locks."""
    guarded = Session._refuse

    def refuse(session: Session, local: Local, holder: UUID) -> None:
        if local.branch is not None:
            guarded(session, local, holder)

    return mock.patch.object(Session, "_refuse", refuse)


def forgotten_before_the_decision() -> contextlib.AbstractContextManager[object]:
    """Who wants to commit tells its resources so before it has asked."""
    decides = Decider.commit

    async def commit(decider: Decider, scope: Any) -> None:
        if scope.rollback_only is None:
            decider._tell(scope)
        await decides(decider, scope)

    return mock.patch.object(Decider, "commit", commit)


def resource_aborts_alone() -> contextlib.AbstractContextManager[object]:
    """A resource rolls back what it has waited for long enough, and asks nobody."""
    asks = Settler._sweep_open

    async def sweep_open(settler: Settler) -> None:
        async with settler._connections.acquire() as connection:
            for one in await at.unsettled(connection):
                settler.tell(Settle(UUID(int=one.xid.int), int(Decision.ROLLED_BACK), []))
        await asks(settler)

    return mock.patch.object(Settler, "_sweep_open", sweep_open)


def answered_before_durable() -> contextlib.AbstractContextManager[object]:
    """The store answers a decision that the standby does not have."""
    return mock.patch.object(StoreServer, "must_wait", return_value=False)


def no_barrier() -> contextlib.AbstractContextManager[object]:
    """A new connection to the store is believed at once."""

    async def admit(_: Store, __: object) -> None:
        return None

    return mock.patch.object(Store, "_admit", admit)


def last_decision_wins() -> contextlib.AbstractContextManager[object]:
    """The coordinator rules anew on every wish."""

    def forgetful(stored: Stored | None, *arguments: Any) -> Any:
        anew = None if stored is None else Stored(Decision.UNDECIDED, None, stored.deadline_ms)
        return rule(anew, *arguments)

    return mock.patch.object(store, "rule", forgetful)


def called_branches_unnamed() -> contextlib.AbstractContextManager[object]:
    """A caller does not name the branches of those that it called."""
    return mock.patch.object(context.Scope, "absorb", return_value=None)


def repeated_call_taken_twice() -> contextlib.AbstractContextManager[object]:
    """A repeated call makes a branch of its own."""
    dice = Random(0)

    def derived(*_: object) -> UUID:
        return UUID(int=dice.getrandbits(128))

    return mock.patch.object(context, "derived_branch", derived)


def news_without_decision_followed() -> contextlib.AbstractContextManager[object]:
    """A nudge is followed whatever it says."""
    return mock.patch.object(coordinator, "is_decided", return_value=True)


MUTANTS: tuple[Mutant, ...] = (
    locks_ignored,
    plain_writers_unguarded,
    forgotten_before_the_decision,
    resource_aborts_alone,
    answered_before_durable,
    no_barrier,
    last_decision_wins,
    called_branches_unnamed,
    repeated_call_taken_twice,
    news_without_decision_followed,
)


@contextlib.contextmanager
def broken(mutant: Mutant) -> Iterator[None]:
    """The product, or what stands below it, with one promise broken."""
    with mutant():
        yield
