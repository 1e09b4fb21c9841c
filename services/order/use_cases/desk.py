"""What all use cases of an order share: its key and shard, taking it for a change, and recording what happened.

Every change of a status is one global transaction of at least two branches: the order on its owner's shard, and the
copy in the provider's index, which may lie on another shard. The order comes first: its row is the one that decides.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, TypeVar
from uuid import UUID
from zoneinfo import ZoneInfo

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from coordinator.client import Deadlock, Transaction
from services.kit import outbox
from services.kit.auth import Principal, Role
from services.kit.database import Store
from services.kit.problems import Problem
from services.kit.runtime import Runtime
from services.order import errors, repository
from services.order.clients import Capacity, Directory, Payments, Pets
from services.order.config import (
    NOTIFICATION_ACTOR,
    NOTIFICATION_QUEUE,
    TRANSACTION_ATTEMPTS_MAX,
    TRANSACTION_TIMEOUT_S,
)
from services.order.domain import Event, IllegalTransition, Order, Party, Status, transition
from services.order.events import Subject, notifications
from services.order.repository import Details, OrderKey
from sharding import IdMaker, bucket_of_id, time_of_id

T = TypeVar("T")
log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Actor:
    """Who does something. The system is nobody, and sees every order; so does an administrator."""

    person: UUID | None
    is_admin: bool = False

    @classmethod
    def of(cls, principal: Principal) -> Actor:
        """The person who asks."""
        return cls(principal.user_id, principal.role is Role.ADMIN)

    @property
    def sees(self) -> UUID | None:
        """Whose orders are visible; None for everybody's."""
        return None if self.is_admin else self.person

    def party(self, order: Order) -> Party:
        """What the actor is to an order that they see."""
        if self.person is None:
            return Party.SYSTEM
        return order.party_of(self.person) or Party.ADMIN


SYSTEM = Actor(None)


class Desk:
    """The order service's tools, put together once."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.clock = runtime.clock
        self.ids = IdMaker(lambda: int(runtime.clock().timestamp() * 1000))
        self.capacity = Capacity(runtime.service("capacity"))
        self.pets = Pets(runtime.service("pet"))
        self.payments = Payments(runtime.service("payment"))
        self.directory = Directory(runtime.service("boarding"), runtime.service("user"))

    def key(self, order_id: UUID) -> OrderKey:
        """The whole key, read from the id. Raises a 404 problem for what cannot be an id of ours."""
        try:
            return OrderKey(int(bucket_of_id(order_id)), order_id, time_of_id(order_id))
        except (ValueError, OverflowError):
            raise errors.order_not_found(order_id) from None

    def local_now(self, order: Order) -> datetime:
        """The present in the listing's time zone, naive."""
        return self.clock().astimezone(ZoneInfo(order.time_zone)).replace(tzinfo=None)

    def store_of(self, key: OrderKey) -> Store:
        """The database of the order's bucket."""
        return self.runtime.store_of(key.id)

    async def in_transaction(self, name: str, body: Callable[[Transaction], Awaitable[T]]) -> T:
        """Runs `body` in a global transaction; one that lost a deadlock is begun anew, a few times."""
        for attempt in range(1, TRANSACTION_ATTEMPTS_MAX + 1):
            try:
                async with self.runtime.coordinator.global_transaction(name, timeout_s=TRANSACTION_TIMEOUT_S) as tx:
                    return await body(tx)
            except (Deadlock, Problem) as error:
                # A branch in another service reports its deadlock as the problem `lock-busy`: nothing was done either.
                lost = isinstance(error, Deadlock) or error.code == "lock-busy"
                if not lost or attempt == TRANSACTION_ATTEMPTS_MAX:
                    raise
                log.info("transaction.again", name=name, attempt=attempt)
        raise AssertionError("unreachable")

    async def take(
        self,
        session: AsyncSession,
        key: OrderKey,
        actor: Actor,
    ) -> tuple[Order, Party]:
        """Takes an order that the actor may see; else raises a 404 problem."""
        order = await repository.take(session, key, actor.sees)
        if order is None:
            raise errors.order_not_found(key.id)
        return order, actor.party(order)

    async def agreed(self, session: AsyncSession, key: OrderKey) -> Details:
        """What was agreed for an order that was looked at before, without taking it. Raises a 404 problem when the
        booking, undecided then, was undone in between.
        """
        try:
            return await repository.find_details(session, key)
        except LookupError:
            raise errors.order_not_found(key.id) from None

    def next_status(self, order: Order, event: Event, party: Party, *, refund_cents: int = 0) -> Status:
        """The status after `event`. Raises the 409 problem `illegal-transition` with what is allowed instead."""
        try:
            return transition(order.status, event, party, instant_book=order.instant_book, refund_cents=refund_cents)
        except IllegalTransition as error:
            raise errors.illegal_transition(
                error.status.label, error.event.value, [allowed.value for allowed in error.allowed]
            ) from None

    async def record(
        self,
        session: AsyncSession,
        order: Order,
        to: Status,
        *,
        event: str,
        kind: str,
        actor: Actor,
        at: datetime,
        xid: UUID | None,
        values: Mapping[str, Any] | None = None,
        data: Mapping[str, Any] | None = None,
    ) -> Order:
        """Writes the change of a taken order, its event, and the messages to the people concerned."""
        changed = {"status": to, **(values or {})}
        after = replace(order, **changed)
        if after != order:
            await repository.change(session, self.key(order.id), changed)
        await repository.append_event(
            session,
            order,
            at=at,
            event=event,
            actor_id=actor.person,
            actor_role=actor.party(order),
            from_status=order.status,
            to_status=to,
            xid=xid,
            data=data or {},
        )
        await self.tell(session, kind, after)
        return after

    async def tell(self, session: AsyncSession, kind: str, order: Order) -> None:
        """Writes the messages about an event of `kind` into the outbox."""
        subject = Subject(order.id, order.owner_id, order.provider_id, order.title, order.check_in, order.check_out)
        for note in notifications(kind, subject):
            await outbox.send(session, self.clock, queue=NOTIFICATION_QUEUE, actor=NOTIFICATION_ACTOR, args=note.args())

    async def copy_status(self, order: Order) -> None:
        """Branch: the provider's index follows the order."""
        bucket = int(bucket_of_id(order.provider_id))
        await self.runtime.store_of(order.provider_id).branch(
            lambda session: repository.change_index(session, bucket, order.id, order.status)
        )


async def all_of(*steps: Awaitable[Any]) -> list[Any]:
    """Runs steps concurrently and waits for every one, so that none still works when the transaction is decided.

    Raises the most useful failure: a refusal that the person can act on before anything that merely broke.
    """
    results = await asyncio.gather(*steps, return_exceptions=True)
    failures = [result for result in results if isinstance(result, BaseException)]
    if failures:
        raise min(failures, key=_rank)
    return list(results)


def _rank(failure: BaseException) -> int:
    if isinstance(failure, Problem) and failure.status < 500:
        return 1 if failure.code in ("lock-busy", "tx-ended") else 0
    return 2
