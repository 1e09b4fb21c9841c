"""The refusals of this service, as problems."""

from __future__ import annotations

from uuid import UUID

from services.kit.problems import Problem, conflict, not_found, unprocessable


def insufficient_funds(balance_cents: int, amount_cents: int) -> Problem:
    """409: top up, then pay again."""
    missing_cents = amount_cents - balance_cents
    return conflict(
        "insufficient-funds",
        f"The wallet holds {balance_cents} cents, {missing_cents} too few: POST /api/payments/wallet/top-ups.",
        balance_cents=balance_cents,
        missing_cents=missing_cents,
    )


def exceeds_escrow(order_id: UUID, asked_cents: int, escrow_cents: int) -> Problem:
    """409: nobody gets more than was paid."""
    return conflict(
        "exceeds-escrow",
        f"The order {order_id} has {escrow_cents} cents in escrow, fewer than the {asked_cents} that were asked for.",
        escrow_cents=escrow_cents,
    )


def moved_already(kind: str, order_id: UUID) -> Problem:
    """409: the one transfer of this kind was another one."""
    return conflict(f"{kind}-exists", f"The order {order_id} has a {kind} of another amount or person already.")


def no_escrow(order_id: UUID) -> Problem:
    """404: that person paid nothing for that order."""
    return not_found("payment for the order", order_id)


def provider_missing() -> Problem:
    """422: money for a provider needs one."""
    return unprocessable("provider-missing", "'provider_cents' needs a 'provider_id'.")
