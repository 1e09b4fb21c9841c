"""What goes over the wire. Amounts are whole cents."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated
from uuid import UUID

import msgspec

from services.payment.config import AMOUNT_MAX_CENTS, CURRENCY, TOP_UP_MAX_CENTS

Amount = Annotated[int, msgspec.Meta(ge=0, le=AMOUNT_MAX_CENTS)]


class WalletView(msgspec.Struct, frozen=True):
    """What somebody has."""

    balance_cents: int
    currency: str = CURRENCY


class TopUpRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Money into one's own wallet."""

    amount_cents: Annotated[int, msgspec.Meta(ge=1, le=TOP_UP_MAX_CENTS)]


class TopUpAnswer(msgspec.Struct, frozen=True):
    """The transfer, and what the wallet has now."""

    message: str
    transfer_id: UUID
    amount_cents: int
    balance_cents: int
    currency: str = CURRENCY


class EntryView(msgspec.Struct, frozen=True):
    """One line of one's own wallet; `amount_cents` is negative for what went out."""

    transfer_id: UUID
    kind: str
    order_id: UUID | None
    amount_cents: int
    created_at: datetime


class ChargeRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The owner pays for an order, into its escrow."""

    order_id: UUID
    owner_id: UUID
    amount_cents: Annotated[int, msgspec.Meta(ge=1, le=AMOUNT_MAX_CENTS)]


class ChargeAnswer(msgspec.Struct, frozen=True):
    """What was paid."""

    charged_cents: int


class RefundRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Out of an order's escrow: `amount_cents` to the owner, `provider_cents` to the provider."""

    order_id: UUID
    owner_id: UUID
    amount_cents: Amount
    provider_id: UUID | None = None
    provider_cents: Amount = 0


class RefundAnswer(msgspec.Struct, frozen=True):
    """Who got what."""

    refunded_cents: int
    provider_cents: int


class SettlementRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Out of an order's escrow to the provider, less our commission."""

    order_id: UUID
    provider_id: UUID
    amount_cents: Amount


class SettlementAnswer(msgspec.Struct, frozen=True):
    """Who got what."""

    provider_cents: int
    commission_cents: int


class Consistency(msgspec.Struct, frozen=True):
    """The service's own audit. `ledger_sum_cents`, `wallets_wrong` and `escrows_wrong` are 0."""

    ledger_sum_cents: int
    wallets_wrong: int
    escrows_wrong: int
    wallet_cents: int
    escrow_cents: int
    commission_cents: int
    transfers: int
