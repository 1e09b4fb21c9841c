"""Booking and paying."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from datetime import timedelta
from uuid import UUID
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec
from sqlalchemy.ext.asyncio import AsyncSession

from coordinator.client import Transaction
from services.kit import outbox
from services.kit.idempotency import Keyed, Reply, keyed, once
from services.kit.signing import BadSignature, Expired
from services.order import errors, repository
from services.order.clients import LISTING_APPROVED, PROVIDER_ACTIVE, PetSnapshot
from services.order.config import EXPIRE_ACTOR, QUEUE
from services.order.domain import Event, Line, Order, Policy, Status
from services.order.repository import Details
from services.order.schemas import BookAnswer, BookRequest, Quote
from services.order.use_cases.answers import step_answer
from services.order.use_cases.desk import Actor, Desk, all_of
from sharding import bucket_of_id

CURRENCY = "CNY"


class Booking:
    """From an accepted quote to a paid order."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def book(self, owner_id: UUID, request: BookRequest, key: str | None) -> Reply:
        """Books what was quoted: order, index, nights and pets, or nothing.

        Raises the problem of whoever refused: 409 `capacity-exhausted`, `pet-already-booked`, `quote-expired`,
        `listing-unavailable`, `lock-busy`, 422 `vaccine-expired`, `quote-invalid`, `own-listing`.
        """
        bucket = int(bucket_of_id(owner_id))
        request_keyed = keyed(owner_id, key, "POST", "/api/orders", request, bucket=bucket)
        store = self._desk.runtime.store_of(owner_id)
        return await once(store, request_keyed, lambda kept: self._book(kept, owner_id, request.quote))

    async def pay(self, actor: Actor, order_id: UUID, key: str | None) -> Reply:
        """Pays an order from the owner's wallet: money and place are one fact.

        Raises 409 `pay-window-over`, `insufficient-funds`, `illegal-transition`, 404.
        """
        desk = self._desk
        order_key = desk.key(order_id)
        request = keyed(_person(actor), key, "POST", f"/api/orders/{order_id}/pay", {}, bucket=order_key.bucket)

        async def work(kept: Keyed) -> Reply:
            return await desk.in_transaction("pay", lambda tx: self._pay(kept, actor, order_id, tx))

        return await once(desk.store_of(order_key), request, work)

    async def _pay(self, kept: Keyed, actor: Actor, order_id: UUID, tx: Transaction) -> Reply:
        desk = self._desk
        key = desk.key(order_id)

        async def on_order(session: AsyncSession) -> tuple[Order, Reply]:
            order, party = await desk.take(session, key, actor)
            to = desk.next_status(order, Event.PAY, party)
            now = desk.clock()
            if now >= order.pay_by:
                raise errors.pay_window_over(order.pay_by)
            after = await desk.record(
                session,
                order,
                to,
                event=Event.PAY,
                kind="payment_completed",
                actor=actor,
                at=now,
                xid=tx.xid,
                values={"paid_at": now, **({"confirmed_at": now} if to is Status.CONFIRMED else {})},
                data={"amount_cents": order.total_cents},
            )
            return after, await kept.keep(session, 200, step_answer("订单支付成功", after, tx.xid))

        order, reply = await desk.store_of(key).branch(on_order)
        steps: list[Awaitable[object]] = [desk.capacity.book(order.id), desk.copy_status(order)]
        if order.total_cents:
            steps.append(
                desk.payments.charge(order_id=order.id, owner_id=order.owner_id, amount_cents=order.total_cents)
            )
        await all_of(*steps)
        return reply

    async def _book(self, kept: Keyed, owner_id: UUID, token: str) -> Reply:
        desk = self._desk
        quote = self._read(token, owner_id)
        listing, provider, pets = await all_of(
            desk.directory.listing(quote.listing_id),
            desk.directory.user(quote.provider_id),
            desk.pets.snapshots(owner_id, quote.pet_ids),
        )
        if listing.audit_status != LISTING_APPROVED or listing.provider_id != quote.provider_id:
            raise errors.listing_unavailable()
        if provider.status != PROVIDER_ACTIVE:
            raise errors.listing_unavailable()
        async with desk.runtime.gate.locked(f"booking_lock:{quote.listing_id}") as alone:
            # A fence orders those who pass the gate one by one; where the gate stands open it would only refuse the
            # slower of two that both have a place.
            fence = await desk.capacity.fence(quote.listing_id) if alone else None
            return await desk.in_transaction("book", lambda tx: self._write(kept, quote, pets, fence, tx))

    def _read(self, token: str, owner_id: UUID) -> Quote:
        verifier = self._desk.runtime.verifier
        try:
            quote = msgspec.convert(verifier.verify("quote", "boarding", token), Quote)
            Policy(quote.policy)
            ZoneInfo(quote.time_zone)
        except Expired:
            raise errors.quote_expired() from None
        except (BadSignature, ValueError, ZoneInfoNotFoundError):
            raise errors.quote_invalid() from None
        if quote.owner_id != owner_id:
            raise errors.quote_of_another()
        if quote.provider_id == owner_id:
            raise errors.own_listing()
        if sum(line.amount_cents for line in quote.lines) != quote.total_cents or quote.check_in >= quote.check_out:
            raise errors.quote_invalid()
        return quote

    async def _write(
        self, kept: Keyed, quote: Quote, pets: Sequence[PetSnapshot], fence: int | None, tx: Transaction
    ) -> Reply:
        desk = self._desk
        order = self._new_order(quote)
        # The nights first: they are what runs out, and a booking that is refused there has written nothing anywhere.
        await desk.capacity.hold(
            order_id=order.id,
            listing_id=quote.listing_id,
            pools=quote.pools,
            check_in=quote.check_in,
            check_out=quote.check_out,
            fence=fence,
        )
        provider_bucket = int(bucket_of_id(order.provider_id))
        _, reply, _ = await all_of(
            desk.pets.claim(
                order_id=order.id,
                owner_id=order.owner_id,
                pet_ids=quote.pet_ids,
                check_in=quote.check_in,
                check_out=quote.check_out,
            ),
            desk.runtime.store_of(order.owner_id).branch(
                lambda session: self._on_owners_shard(session, kept, order, quote, pets, tx.xid)
            ),
            desk.runtime.store_of(order.provider_id).branch(
                lambda session: repository.insert_index(session, provider_bucket, order)
            ),
        )
        answer: Reply = reply
        return answer

    def _new_order(self, quote: Quote) -> Order:
        desk = self._desk
        key = desk.key(desk.ids(bucket_of_id(quote.owner_id)))
        return Order(
            bucket=key.bucket,
            id=key.id,
            created_at=key.created_at,
            owner_id=quote.owner_id,
            provider_id=quote.provider_id,
            listing_id=quote.listing_id,
            title=quote.title,
            check_in=quote.check_in,
            check_out=quote.check_out,
            status=Status.PENDING_PAYMENT,
            total_cents=quote.total_cents,
            refund_cents=0,
            currency=CURRENCY,
            policy=Policy(quote.policy),
            instant_book=quote.instant_book,
            time_zone=quote.time_zone,
            pay_by=key.created_at + timedelta(seconds=desk.runtime.settings.pay_window_s),
            version=1,
        )

    async def _on_owners_shard(
        self,
        session: AsyncSession,
        kept: Keyed,
        order: Order,
        quote: Quote,
        pets: Sequence[PetSnapshot],
        xid: UUID,
    ) -> Reply:
        desk = self._desk
        details = Details(
            pets=[msgspec.to_builtins(pet) for pet in pets],
            lines=[Line(line.label, line.nights or 0, line.amount_cents) for line in quote.lines],
            pools=dict(quote.pools),
        )
        await repository.insert_order(session, order, details)
        await repository.append_event(
            session,
            order,
            at=order.created_at,
            event="book",
            actor_id=order.owner_id,
            actor_role=Actor(order.owner_id).party(order),
            from_status=None,
            to_status=order.status,
            xid=xid,
            data={"total_cents": order.total_cents},
        )
        await desk.tell(session, "order_created", order)
        await outbox.send(
            session,
            desk.clock,
            queue=QUEUE,
            actor=EXPIRE_ACTOR,
            args={"order_id": str(order.id)},
            delay_ms=desk.runtime.settings.pay_window_s * 1000,
        )
        answer = BookAnswer(
            message="订单创建成功",
            order_id=order.id,
            status=int(order.status),
            status_name=order.status.label,
            total_cents=order.total_cents,
            currency=order.currency,
            pay_by=order.pay_by,
            xid=xid,
        )
        return await kept.keep(session, 201, answer)


def _person(actor: Actor) -> UUID:
    if actor.person is None:
        raise ValueError("the system does not pay")
    return actor.person
