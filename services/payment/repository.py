"""The SQL of money. Rows are taken in one order: the escrow, then wallets by their person's id."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import insert, select, text, tuple_, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncSession

from services.payment.domain import Account, AccountKind, Kind, Line, Transfer
from services.payment.tables import escrows, ledger_entries, wallets

# Balances against the entries that they are sums of, in one snapshot.
AUDIT = text(
    """
    WITH sums AS (
        SELECT account_kind, account_id, sum(amount_cents) AS cents
        FROM ledger_entries
        GROUP BY account_kind, account_id
    )
    SELECT (SELECT coalesce(sum(cents), 0) FROM sums) AS ledger_sum_cents,
           (SELECT count(*) FROM wallets AS w
            FULL JOIN (SELECT * FROM sums WHERE account_kind = 'wallet') AS s ON s.account_id = w.user_id
            WHERE coalesce(w.balance_cents, 0) <> coalesce(s.cents, 0)) AS wallets_wrong,
           (SELECT count(*) FROM escrows AS e
            FULL JOIN (SELECT * FROM sums WHERE account_kind = 'escrow') AS s ON s.account_id = e.order_id
            WHERE coalesce(e.balance_cents, 0) <> coalesce(s.cents, 0)) AS escrows_wrong,
           (SELECT coalesce(sum(balance_cents), 0) FROM wallets) AS wallet_cents,
           (SELECT coalesce(sum(balance_cents), 0) FROM escrows) AS escrow_cents,
           (SELECT coalesce(sum(cents), 0) FROM sums WHERE account_kind = 'commission') AS commission_cents,
           (SELECT count(DISTINCT transfer_id) FROM ledger_entries) AS transfers
    """
)


@dataclass(frozen=True)
class Escrow:
    """An order's escrow as it is stored."""

    order_id: UUID
    owner_id: UUID
    balance_cents: int


async def balance_of(session: AsyncSession, user_id: UUID) -> int:
    """What a wallet holds; 0 when it was never used."""
    found = await session.execute(select(wallets.c.balance_cents).where(wallets.c.user_id == user_id))
    return found.scalar_one_or_none() or 0


async def open_escrow(session: AsyncSession, order_id: UUID, owner_id: UUID, charged_cents: int) -> bool:
    """Makes an order's escrow with `charged_cents` in it; False when there is one."""
    statement = upsert(escrows).values(
        order_id=order_id, owner_id=owner_id, charged_cents=charged_cents, balance_cents=charged_cents
    )
    found = await session.execute(statement.on_conflict_do_nothing().returning(escrows.c.order_id))
    return found.first() is not None


async def take_escrow(session: AsyncSession, order_id: UUID) -> Escrow | None:
    """The order's escrow, locked, and decided: a write that changes nothing meets an undecided holder."""
    return await draw_escrow(session, order_id, 0)


async def draw_escrow(session: AsyncSession, order_id: UUID, amount_cents: int) -> Escrow | None:
    """Takes `amount_cents` out of an escrow that is known to hold them; returns it as it is then."""
    row = (
        await session.execute(
            update(escrows)
            .where(escrows.c.order_id == order_id)
            .values(balance_cents=escrows.c.balance_cents - amount_cents)
            .returning(escrows.c.order_id, escrows.c.owner_id, escrows.c.balance_cents)
        )
    ).first()
    return None if row is None else Escrow(row.order_id, row.owner_id, row.balance_cents)


async def debit(session: AsyncSession, user_id: UUID, amount_cents: int) -> bool:
    """Takes `amount_cents` out of a wallet; False, with nothing taken, when it holds too few."""
    found = await session.execute(
        update(wallets)
        .where(wallets.c.user_id == user_id, wallets.c.balance_cents >= amount_cents)
        .values(balance_cents=wallets.c.balance_cents - amount_cents)
        .returning(wallets.c.user_id)
    )
    return found.first() is not None


async def decided_balance(session: AsyncSession, user_id: UUID) -> int:
    """What a wallet holds once nobody is undecided on it: raises LockConflict as long as somebody is."""
    found = await session.execute(
        update(wallets)
        .where(wallets.c.user_id == user_id)
        .values(balance_cents=wallets.c.balance_cents)
        .returning(wallets.c.balance_cents)
    )
    return found.scalar_one_or_none() or 0


async def credit(session: AsyncSession, user_id: UUID, amount_cents: int) -> int:
    """Puts `amount_cents` into a wallet, which is opened where there is none; returns what it holds then."""
    statement = upsert(wallets).values(user_id=user_id, balance_cents=amount_cents)
    found = await session.execute(
        statement.on_conflict_do_update(
            index_elements=[wallets.c.user_id],
            set_={"balance_cents": wallets.c.balance_cents + statement.excluded.balance_cents},
        ).returning(wallets.c.balance_cents)
    )
    return int(found.scalar_one())


async def post(session: AsyncSession, transfer_id: UUID, transfer: Transfer, at: datetime) -> None:
    """Writes a transfer's lines, in one statement, as the ledger wants it."""
    await session.execute(
        insert(ledger_entries).values(
            [
                {
                    "transfer_id": transfer_id,
                    "line": number,
                    "kind": transfer.kind.value,
                    "order_id": transfer.order_id,
                    "account_kind": line.account.kind.value,
                    "account_id": line.account.id,
                    "amount_cents": line.amount_cents,
                    "created_at": at,
                }
                for number, line in enumerate(transfer.lines, 1)
            ]
        )
    )


async def posted(session: AsyncSession, order_id: UUID, kind: Kind) -> Transfer | None:
    """The order's transfer of that kind, if it was made. Take the escrow first: then it is decided."""
    rows = (
        await session.execute(
            select(ledger_entries)
            .where(ledger_entries.c.order_id == order_id, ledger_entries.c.kind == kind.value)
            .order_by(ledger_entries.c.line)
        )
    ).all()
    if not rows:
        return None
    lines = (Line(Account(AccountKind(r.account_kind), r.account_id), r.amount_cents) for r in rows)
    return Transfer(kind, order_id, tuple(lines))


async def entries_of(session: AsyncSession, user_id: UUID, after: tuple[UUID, int] | None, limit: int) -> Sequence[Any]:
    """The newest lines of a wallet, `limit` of them, older than the position `after`."""
    table = ledger_entries.c
    query = select(ledger_entries).where(table.account_id == user_id, table.account_kind == AccountKind.WALLET.value)
    if after is not None:
        query = query.where(tuple_(table.transfer_id, table.line) < after)
    query = query.order_by(table.transfer_id.desc(), table.line.desc()).limit(limit)
    return (await session.execute(query)).all()


async def audit(session: AsyncSession) -> Mapping[str, int]:
    """The figures of `schemas.Consistency`, from one snapshot."""
    row = (await session.execute(AUDIT)).one()
    return {name: int(value) for name, value in row._mapping.items()}
