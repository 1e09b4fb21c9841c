"""The order service's routes: parse, call the use case, answer."""

from typing import Annotated, Any, Literal
from uuid import UUID

from litestar import Controller, Request, Response, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, HeaderParameter, JSONBody, QueryParameter

from services.kit.auth import Role, any_user, approved_user, has_role, internal, principal_of
from services.kit.idempotency import HEADER, REPLAYED_HEADER, Reply
from services.kit.paging import LIMIT_DEFAULT, LIMIT_MAX, Page
from services.order.domain import Status
from services.order.schemas import (
    BookRequest,
    CancellationPreview,
    CareItem,
    CarePage,
    CareRequest,
    Consistency,
    EmptyRequest,
    EventItem,
    InternalOrder,
    OrderItem,
    OrderView,
    ReasonRequest,
    Statistics,
    StepAnswer,
)
from services.order.use_cases import Actor, Booking, Care, Changes, Figures, Reading

Asking = Request[Any, Any, Any]
Key = Annotated[
    str | None, HeaderParameter(name=HEADER, description="New for each booking or payment, the same to repeat")
]
Limit = Annotated[int, QueryParameter(ge=1, le=LIMIT_MAX)]
StatusNumber = Annotated[int | None, QueryParameter(name="status", ge=0, le=int(max(Status)))]


class OrderController(Controller):
    """What owners, providers and administrators do with orders."""

    path = "/api/orders"
    tags = ["orders"]

    @post("/", guards=[approved_user])
    async def book(
        self,
        request: Asking,
        data: JSONBody[BookRequest],
        booking: NamedDependency[Booking],
        idempotency_key: Key = None,
    ) -> Response[Any]:
        """Books what a quote says, all of it or nothing. It is then to be paid until `pay_by`."""
        return _answer(await booking.book(principal_of(request).user_id, data, idempotency_key))

    @get("/", guards=[any_user])
    async def list_orders(
        self,
        request: Asking,
        reading: NamedDependency[Reading],
        side: Annotated[Literal["owner", "provider"], QueryParameter(name="as")] = "owner",
        status_number: StatusNumber = None,
        limit: Limit = LIMIT_DEFAULT,
        cursor: FromQuery[str | None] = None,
    ) -> Page[OrderItem]:
        """The caller's orders, newest first: those they made, or with `as=provider` those they received."""
        user_id = principal_of(request).user_id
        status = None if status_number is None else Status(status_number)
        if side == "provider":
            return await reading.of_provider(user_id, status, limit, cursor)
        return await reading.of_owner(user_id, status, limit, cursor)

    @get("/user/{user_id:uuid}", guards=[any_user])
    async def list_of_user(
        self,
        request: Asking,
        user_id: FromPath[UUID],
        reading: NamedDependency[Reading],
        status_number: StatusNumber = None,
    ) -> list[OrderItem]:
        """A person's hundred newest orders: one's own, or anybody's for an administrator."""
        status = None if status_number is None else Status(status_number)
        return await reading.of_user(_actor(request), user_id, status)

    @get("/{order_id:uuid}", guards=[any_user])
    async def view(self, request: Asking, order_id: FromPath[UUID], reading: NamedDependency[Reading]) -> OrderView:
        """One order: what was agreed, what the caller may do next, and the global transactions that touched it."""
        return await reading.view(_actor(request), order_id)

    @post("/{order_id:uuid}/pay", guards=[approved_user], status_code=200)
    async def pay(
        self,
        request: Asking,
        order_id: FromPath[UUID],
        booking: NamedDependency[Booking],
        data: JSONBody[EmptyRequest | None] = None,
        idempotency_key: Key = None,
    ) -> Response[Any]:
        """Pays from the caller's wallet: money into escrow and nights booked, or neither."""
        return _answer(await booking.pay(_actor(request), order_id, idempotency_key))

    @post("/{order_id:uuid}/confirm", guards=[has_role(Role.PROVIDER)], status_code=200)
    async def confirm(
        self,
        request: Asking,
        order_id: FromPath[UUID],
        changes: NamedDependency[Changes],
        data: JSONBody[EmptyRequest | None] = None,
    ) -> StepAnswer:
        """The provider accepts a paid order."""
        return await changes.confirm(_actor(request), order_id)

    @post("/{order_id:uuid}/reject", guards=[has_role(Role.PROVIDER)], status_code=200)
    async def reject(
        self,
        request: Asking,
        order_id: FromPath[UUID],
        changes: NamedDependency[Changes],
        data: JSONBody[ReasonRequest | None] = None,
        idempotency_key: Key = None,
    ) -> Response[Any]:
        """The provider declines a paid order: the owner gets everything back."""
        return _answer(await changes.reject(_actor(request), order_id, data or ReasonRequest(), idempotency_key))

    @post("/{order_id:uuid}/check-in", guards=[has_role(Role.PROVIDER)], status_code=200)
    async def check_in(
        self,
        request: Asking,
        order_id: FromPath[UUID],
        changes: NamedDependency[Changes],
        data: JSONBody[EmptyRequest | None] = None,
    ) -> StepAnswer:
        """The pets have come; possible from the first day of the stay on, in the listing's time zone."""
        return await changes.check_in(_actor(request), order_id)

    @post("/{order_id:uuid}/check-out", guards=[has_role(Role.PROVIDER)], status_code=200)
    async def check_out(
        self,
        request: Asking,
        order_id: FromPath[UUID],
        changes: NamedDependency[Changes],
        data: JSONBody[EmptyRequest | None] = None,
        idempotency_key: Key = None,
    ) -> Response[Any]:
        """The pets go home and the provider is paid from escrow. An early pick-up keeps the full price."""
        return _answer(await changes.check_out(_actor(request), order_id, idempotency_key))

    @post("/{order_id:uuid}/cancel", guards=[approved_user], status_code=200)
    async def cancel(
        self,
        request: Asking,
        order_id: FromPath[UUID],
        changes: NamedDependency[Changes],
        data: JSONBody[ReasonRequest | None] = None,
        idempotency_key: Key = None,
    ) -> Response[Any]:
        """Ends an order before its stay. An owner gets back what the policy says, from a provider all of it."""
        return _answer(await changes.cancel(_actor(request), order_id, data or ReasonRequest(), idempotency_key))

    @get("/{order_id:uuid}/cancellation-preview", guards=[any_user])
    async def preview(
        self, request: Asking, order_id: FromPath[UUID], changes: NamedDependency[Changes]
    ) -> CancellationPreview:
        """What a cancellation at this moment would give back."""
        return await changes.preview(_actor(request), order_id)

    @get("/{order_id:uuid}/events", guards=[any_user])
    async def events(
        self,
        request: Asking,
        order_id: FromPath[UUID],
        reading: NamedDependency[Reading],
        limit: Limit = LIMIT_DEFAULT,
        cursor: FromQuery[str | None] = None,
    ) -> Page[EventItem]:
        """What happened to an order, oldest first."""
        return await reading.events(_actor(request), order_id, limit, cursor)

    @get("/{order_id:uuid}/care-logs", guards=[any_user])
    async def care_logs(
        self,
        request: Asking,
        order_id: FromPath[UUID],
        care: NamedDependency[Care],
        limit: Limit = LIMIT_DEFAULT,
        cursor: FromQuery[str | None] = None,
    ) -> CarePage:
        """The care log, oldest first, with the proof that nobody rewrote it."""
        return await care.page(_actor(request), order_id, limit, cursor)

    @post("/{order_id:uuid}/care-logs", guards=[has_role(Role.PROVIDER)])
    async def add_care_log(
        self, request: Asking, order_id: FromPath[UUID], data: JSONBody[CareRequest], care: NamedDependency[Care]
    ) -> CareItem:
        """Adds an entry to the care log while the pets are there. To correct one, add another."""
        return await care.append(_actor(request), order_id, data)


class InternalController(Controller):
    """What other services ask."""

    path = "/internal"
    include_in_schema = False

    @get("/orders/{order_id:uuid}", guards=[internal(["review", "admin"])])
    async def order(self, order_id: FromPath[UUID], reading: NamedDependency[Reading]) -> InternalOrder:
        """One order."""
        return await reading.for_service(order_id)

    @get("/consistency", guards=[internal(["admin"])])
    async def consistency(self, figures: NamedDependency[Figures]) -> Consistency:
        """Whether orders and indexes agree over all shards."""
        return await figures.consistency()

    @get("/statistics", guards=[internal(["admin"])])
    async def statistics(self, figures: NamedDependency[Figures]) -> Statistics:
        """How many orders there are, and how much money they mean."""
        return await figures.statistics()


def _actor(request: Asking) -> Actor:
    return Actor.of(principal_of(request))


def _answer(reply: Reply) -> Response[Any]:
    headers = {REPLAYED_HEADER: "true"} if reply.replayed else {}
    return Response(reply.body, status_code=reply.status, headers=headers)
