"""What the payment service is, and its constants."""

from __future__ import annotations

from services.kit.spec import ServiceSpec

SPEC = ServiceSpec(
    name="payment",
    port=8088,
    purpose="Wallets, escrow and the double-entry ledger.",
    storage="own",
    managed=("wallets", "escrows", "ledger_entries"),
    calls=(),
    has_worker=False,
)

CURRENCY = "CNY"
AMOUNT_MAX_CENTS = 1_000_000_000
"""The largest amount of one transfer."""
TOP_UP_MAX_CENTS = 10_000_000
"""The largest amount of one top-up."""
