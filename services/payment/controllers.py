"""The routes of the payment service."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from litestar import Controller, Request, Response, get, post
from litestar.di import NamedDependency
from litestar.params import HeaderParameter, JSONBody, QueryParameter

from services.kit.auth import any_user, approved_user, internal, principal_of
from services.kit.idempotency import HEADER, REPLAYED_HEADER, keyed
from services.kit.paging import LIMIT_DEFAULT, LIMIT_MAX, Page
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
    TopUpRequest,
    WalletView,
)
from services.payment.use_cases import PaymentUseCases


class PaymentController(Controller):
    """What a person may do with their own money."""

    path = "/api/payments"
    tags = ("payments",)

    @get("/wallet", guards=[any_user])
    async def wallet(self, request: Request[Any, Any, Any], use_cases: NamedDependency[PaymentUseCases]) -> WalletView:
        """What one's own wallet holds."""
        return await use_cases.wallet(principal_of(request).user_id)

    @post("/wallet/top-ups", guards=[approved_user])
    async def top_up(
        self,
        request: Request[Any, Any, Any],
        use_cases: NamedDependency[PaymentUseCases],
        data: JSONBody[TopUpRequest],
        key: Annotated[str | None, HeaderParameter(name=HEADER, description="A new one for each top-up.")] = None,
    ) -> Response[TopUpAnswer]:
        """Puts money into one's own wallet; repeated with the same key it gives the first answer."""
        user_id = principal_of(request).user_id
        once = keyed(user_id, key, "POST", request.url.path, data)
        reply = await use_cases.top_up(user_id, data.amount_cents, once)
        return Response(
            msgspec.convert(reply.body, TopUpAnswer),
            status_code=reply.status,
            headers={REPLAYED_HEADER: "true"} if reply.replayed else {},
        )

    @get("/ledger", guards=[any_user])
    async def ledger(
        self,
        request: Request[Any, Any, Any],
        use_cases: NamedDependency[PaymentUseCases],
        limit: Annotated[int, QueryParameter(ge=1, le=LIMIT_MAX)] = LIMIT_DEFAULT,
        cursor: Annotated[str | None, QueryParameter()] = None,
    ) -> Page[EntryView]:
        """All that went into and out of one's own wallet, newest first."""
        return await use_cases.ledger(principal_of(request).user_id, limit, cursor)


class InternalPaymentController(Controller):
    """What other services ask."""

    path = "/internal"
    include_in_schema = False

    @post("/charges", guards=[internal(["order"])], status_code=200)
    async def charge(self, use_cases: NamedDependency[PaymentUseCases], data: JSONBody[ChargeRequest]) -> ChargeAnswer:
        """The owner pays for an order, into its escrow (a branch)."""
        return await use_cases.charge(data)

    @post("/refunds", guards=[internal(["order"])], status_code=200)
    async def refund(self, use_cases: NamedDependency[PaymentUseCases], data: JSONBody[RefundRequest]) -> RefundAnswer:
        """Money goes back out of an order's escrow (a branch)."""
        return await use_cases.refund(data)

    @post("/settlements", guards=[internal(["order"])], status_code=200)
    async def settle(
        self, use_cases: NamedDependency[PaymentUseCases], data: JSONBody[SettlementRequest]
    ) -> SettlementAnswer:
        """The provider is paid out of an order's escrow (a branch)."""
        return await use_cases.settle(data)

    @get("/consistency", guards=[internal(["admin"])])
    async def consistency(self, use_cases: NamedDependency[PaymentUseCases]) -> Consistency:
        """The service's own audit: the ledger adds up to zero, every balance is the sum of its entries."""
        return await use_cases.consistency()
