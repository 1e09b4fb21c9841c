"""What the payment service does. Only a top-up is local; all that concerns an order is a branch of its transaction."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from coordinator.protocol.ids import uuid7
from services.kit.clock import Clock
from services.kit.database import Store
from services.kit.idempotency import Keyed, Reply, once
from services.kit.paging import Cursors, Page, page_of
from services.payment import domain, errors, repository
from services.payment.domain import AccountKind, Transfer
from services.payment.schemas import (
    ChargeAnswer,
    ChargeRequest,
    Consistency,
    EntryView,
    RefundAnswer,
    RefundRequest,
    SettlementAnswer,
    SettlementRequest,
    TopUpAnswer,
    WalletView,
)


@dataclass(frozen=True)
class PaymentUseCases:
    """The payment service over its one database."""

    store: Store
    clock: Clock
    cursors: Cursors

    async def wallet(self, user_id: UUID) -> WalletView:
        """What a person has."""
        return WalletView(await self.store.read(lambda session: repository.balance_of(session, user_id)))

    async def ledger(self, user_id: UUID, limit: int, cursor: str | None) -> Page[EntryView]:
        """The lines of a person's wallet, newest first."""
        after = self.cursors.decode(cursor, tuple[UUID, int])
        rows = await self.store.read(lambda session: repository.entries_of(session, user_id, after, limit + 1))
        page = page_of(rows, limit, self.cursors, lambda row: (row.transfer_id, row.line))
        items = [EntryView(r.transfer_id, r.kind, r.order_id, r.amount_cents, r.created_at) for r in page.items]
        return Page(items, page.next_cursor)

    async def top_up(self, user_id: UUID, amount_cents: int, request: Keyed) -> Reply:
        """Puts money into a person's own wallet, once for each key."""
        transfer = domain.top_up(user_id, amount_cents)

        async def work(session: AsyncSession, keyed: Keyed) -> Reply:
            balance_cents = await repository.credit(session, user_id, amount_cents)
            transfer_id = await self._post(session, transfer)
            answer = TopUpAnswer("充值成功", transfer_id, amount_cents, balance_cents)
            return await keyed.keep(session, HTTPStatus.CREATED, answer)

        return await once(self.store, request, lambda keyed: self.store.local(lambda session: work(session, keyed)))

    async def charge(self, request: ChargeRequest) -> ChargeAnswer:
        """A branch: the owner's money goes into the order's escrow.

        Raises 409 `insufficient-funds`, once nobody is undecided on the wallet. The same charge again changes nothing.
        """
        transfer = domain.charge(request.order_id, request.owner_id, request.amount_cents)

        async def work(session: AsyncSession) -> ChargeAnswer:
            order_id, owner_id, amount_cents = request.order_id, request.owner_id, request.amount_cents
            while not await repository.open_escrow(session, order_id, owner_id, amount_cents):
                if await repository.take_escrow(session, order_id) is None:
                    continue  # the charge that was there has been undone in between: now ours may be the one
                if not await _made_before(session, order_id, transfer):
                    raise errors.moved_already(transfer.kind, order_id)
                return ChargeAnswer(amount_cents)
            if not await repository.debit(session, owner_id, amount_cents):
                # Whoever is undecided on this wallet may still give it back: met here, waited for, tried again.
                balance_cents = await repository.decided_balance(session, owner_id)
                raise errors.insufficient_funds(balance_cents, amount_cents)
            await self._post(session, transfer)
            return ChargeAnswer(amount_cents)

        return await self.store.branch(work, ChargeAnswer)

    async def refund(self, request: RefundRequest) -> RefundAnswer:
        """A branch: out of the escrow, to the owner and, where the policy leaves something, to the provider.

        Raises 409 `exceeds-escrow`. The same refund again changes nothing.
        """
        if request.provider_cents and request.provider_id is None:
            raise errors.provider_missing()
        transfer = domain.refund(
            request.order_id, request.owner_id, request.amount_cents, request.provider_id, request.provider_cents
        )

        async def work(session: AsyncSession) -> RefundAnswer:
            await self._pay_out(session, request.order_id, transfer, request.owner_id)
            return RefundAnswer(request.amount_cents, request.provider_cents)

        return await self.store.branch(work, RefundAnswer)

    async def settle(self, request: SettlementRequest) -> SettlementAnswer:
        """A branch: out of the escrow to the provider, less the commission.

        Raises 409 `exceeds-escrow`. The same settlement again changes nothing.
        """
        transfer = domain.settlement(request.order_id, request.provider_id, request.amount_cents)
        answer = SettlementAnswer(
            transfer.gain_of(domain.wallet(request.provider_id)), transfer.gain_of(domain.COMMISSION)
        )

        async def work(session: AsyncSession) -> SettlementAnswer:
            await self._pay_out(session, request.order_id, transfer, None)
            return answer

        return await self.store.branch(work, SettlementAnswer)

    async def consistency(self) -> Consistency:
        """The service's own audit, from one snapshot."""
        return Consistency(**await self.store.read(repository.audit))

    async def _pay_out(self, session: AsyncSession, order_id: UUID, transfer: Transfer, owner_id: UUID | None) -> None:
        asked_cents = -transfer.gain_of(domain.escrow(order_id))
        escrow = await repository.take_escrow(session, order_id)
        if escrow is None:
            if asked_cents:
                raise errors.exceeds_escrow(order_id, asked_cents, 0)
            return
        if owner_id is not None and escrow.owner_id != owner_id:
            raise errors.no_escrow(order_id)
        if await _made_before(session, order_id, transfer) or not asked_cents:
            return
        if escrow.balance_cents < asked_cents:
            raise errors.exceeds_escrow(order_id, asked_cents, escrow.balance_cents)
        await repository.draw_escrow(session, order_id, asked_cents)
        people = {line.account.id for line in transfer.lines if line.account.kind is AccountKind.WALLET}
        for user_id in sorted(person for person in people if person is not None):
            await repository.credit(session, user_id, transfer.gain_of(domain.wallet(user_id)))
        await self._post(session, transfer)

    async def _post(self, session: AsyncSession, transfer: Transfer) -> UUID:
        now = self.clock()
        transfer_id = uuid7(int(now.timestamp() * 1000))
        await repository.post(session, transfer_id, transfer, now)
        return transfer_id


async def _made_before(session: AsyncSession, order_id: UUID, transfer: Transfer) -> bool:
    """Whether this very transfer was made. Raises a 409 problem when another one of its kind was."""
    known = await repository.posted(session, order_id, transfer.kind)
    if known is not None and known != transfer:
        raise errors.moved_already(transfer.kind, order_id)
    return known is not None
