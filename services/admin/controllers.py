"""The admin service's HTTP."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from uuid import UUID

from litestar import Controller, Request, get, post
from litestar.params import Parameter

from services.admin import schemas
from services.admin.use_cases import Administration
from services.kit.auth import Role, has_role, principal_of
from services.kit.paging import LIMIT_DEFAULT, LIMIT_MAX, Page

Asking = Request[Any, Any, Any]
Limit = Annotated[int, Parameter(ge=1, le=LIMIT_MAX)]
Kind = Literal["user", "provider", "service"]


class AdminController(Controller):
    """What administrators see and decide."""

    path = "/api/admin"
    guards = [has_role(Role.ADMIN)]

    @get("/approvals")
    async def approvals(
        self, administration: Administration, kind: Kind, cursor: str | None = None, limit: Limit = LIMIT_DEFAULT
    ) -> dict[str, Any]:
        """Who or what waits for a decision, oldest first."""
        return await administration.approvals(kind, cursor, limit)

    @post("/approvals/{kind:str}/{subject:uuid}/approve", status_code=200)
    async def approve(
        self, request: Asking, administration: Administration, kind: str, subject: UUID, data: schemas.Decide
    ) -> schemas.Decided:
        """Approves an account, a provider's application or a listing."""
        return await administration.answer(principal_of(request).user_id, kind, subject, "approve", data.reason)

    @post("/approvals/{kind:str}/{subject:uuid}/reject", status_code=200)
    async def reject(
        self, request: Asking, administration: Administration, kind: str, subject: UUID, data: schemas.Decide
    ) -> schemas.Decided:
        """Rejects what waits, with a reason."""
        return await administration.answer(principal_of(request).user_id, kind, subject, "reject", data.reason)

    @post("/users/{subject:uuid}/{verb:str}", status_code=200)
    async def user(
        self,
        request: Asking,
        administration: Administration,
        subject: UUID,
        verb: Literal["suspend", "restore"],
        data: schemas.Decide,
    ) -> schemas.Decided:
        """Suspends or restores an account."""
        return await administration.decide(principal_of(request).user_id, "user", subject, verb, data.reason)

    @post("/services/{subject:uuid}/{verb:str}", status_code=200)
    async def listing(
        self,
        request: Asking,
        administration: Administration,
        subject: UUID,
        verb: Literal["take-down", "restore"],
        data: schemas.Decide,
    ) -> schemas.Decided:
        """Takes a listing down or brings it back."""
        return await administration.decide(principal_of(request).user_id, "boarding", subject, verb, data.reason)

    @get("/audit-log")
    async def audit(
        self, administration: Administration, cursor: str | None = None, limit: Limit = LIMIT_DEFAULT
    ) -> Page[schemas.AuditEntry]:
        """What administrators did, newest first."""
        return await administration.audit(cursor, limit)

    @get("/audit-log/check")
    async def check(self, administration: Administration) -> schemas.AuditCheck:
        """Computes the audit log's chain anew."""
        return await administration.check_audit()

    @get("/system/health")
    async def health(self, administration: Administration) -> schemas.Health:
        """Every service and the coordinator."""
        return await administration.health()

    @get("/stats")
    async def statistics(self, administration: Administration) -> dict[str, Any]:
        """Numbers of the marketplace."""
        return await administration.statistics()

    @get("/consistency-report")
    async def consistency(self, administration: Administration) -> schemas.Consistency:
        """Whether the promises hold, as each service finds by looking at its own rows."""
        return await administration.consistency()

    @get("/transactions")
    async def transactions(
        self,
        administration: Administration,
        decision: str | None = None,
        settlement: str | None = None,
        name: str | None = None,
        cursor: str | None = None,
        limit: Limit = LIMIT_DEFAULT,
    ) -> Any:
        """Global transactions, as the coordinator knows them; `decision` and `settlement` are its words for them."""
        given = {"decision": decision, "settlement": settlement, "name": name, "cursor": cursor, "limit": limit}
        return await administration.transactions({k: str(v) for k, v in given.items() if v is not None})

    @get("/transactions/{xid:uuid}")
    async def transaction(self, administration: Administration, xid: UUID) -> Any:
        """One global transaction with its branches."""
        return await administration.transaction(xid)
