"""What administrators do. Each decision is one global transaction: its effect and its audit entry, or neither."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from services.admin import domain, errors, repository, schemas
from services.admin.clients import Others, Subject
from services.admin.config import CHECKED, DECISION_TIMEOUT_S
from services.kit.paging import Page, page_of
from services.kit.problems import Problem, bad_request
from services.kit.runtime import Runtime

APPROVALS: dict[str, tuple[Subject, dict[str, str]]] = {
    "user": ("user", {}),
    "provider": ("user", {"applied": "true"}),
    "service": ("boarding", {"audit_status": "0"}),
}
VERBS = {("provider", "approve"): "approve-provider", ("provider", "reject"): "reject-provider"}
ZERO_WHEN_WELL = (
    "nights_over_total",
    "drift",
    "ledger_sum_cents",
    "wallets_wrong",
    "escrows_wrong",
    "orders_without_index",
    "index_status_differs",
    "index_without_order",
    "unpaid_past_window",
)


@dataclass
class Administration:
    """The use cases, over one runtime."""

    runtime: Runtime
    others: Others

    async def approvals(self, kind: str, cursor: str | None, limit: int) -> dict[str, Any]:
        """A page of who or what waits."""
        if kind not in APPROVALS:
            raise errors.unknown_kind(kind)
        service, params = APPROVALS[kind]
        paging = {"limit": str(limit), **({"cursor": cursor} if cursor else {})}
        return await self.others.waiting(service, {**params, **paging})

    async def answer(self, actor: UUID, kind: str, subject: UUID, verb: str, reason: str) -> schemas.Decided:
        """Approves or rejects what waits."""
        if kind not in APPROVALS:
            raise errors.unknown_kind(kind)
        service = APPROVALS[kind][0]
        return await self.decide(actor, service, subject, VERBS.get((kind, verb), verb), reason)

    async def decide(self, actor: UUID, service: Subject, subject: UUID, verb: str, reason: str) -> schemas.Decided:
        """One decision: the branch in the other service and the entry here."""
        async with self.runtime.coordinator.global_transaction(verb, timeout_s=DECISION_TIMEOUT_S) as transaction:
            done = await self.others.decide(service, subject, verb, reason)

            async def work(session: AsyncSession) -> int:
                return await repository.append(
                    session,
                    at=self.runtime.clock(),
                    actor=actor,
                    action=f"{service}.{verb}",
                    subject=str(subject),
                    reason=reason,
                    xid=transaction.xid,
                )

            number = await self.runtime.store.branch(work)
        return schemas.Decided(done, transaction.xid, number)

    async def audit(self, cursor: str | None, limit: int) -> Page[schemas.AuditEntry]:
        """The audit log, newest first."""
        after = self.runtime.cursors.decode(cursor, tuple[int])
        rows = await self.runtime.store.read(
            lambda session: repository.page(session, before=after[0] if after else None, limit=limit + 1)
        )
        entries = [
            schemas.AuditEntry(r.number, r.at, r.actor, r.action, r.subject, r.reason, r.xid, bytes(r.hash).hex())
            for r in rows
        ]
        return page_of(entries, limit, self.runtime.cursors, lambda entry: (entry.number,))

    async def check_audit(self) -> schemas.AuditCheck:
        """Computes the whole chain anew."""
        chain = await self.runtime.store.read(repository.chain)
        broken = domain.first_broken(chain.entries, chain.head)
        return schemas.AuditCheck(len(chain.entries), broken is None, broken)

    async def health(self) -> schemas.Health:
        """Every service and every coordinator replica, asked at the same time."""
        urls: dict[str, str] = dict(self.runtime.settings.service_urls)
        for number, url in enumerate(self.runtime.settings.coordinator_urls, 1):
            urls[f"coordinator-{number}"] = url
        answers = await asyncio.gather(*(self.others.ready(name, url) for name, url in urls.items()))
        parts = dict(zip(urls, answers, strict=True))
        well = all(part.get("status") == "ok" for part in parts.values())
        return schemas.Health("ok" if well else "degraded", parts)

    async def consistency(self) -> schemas.Consistency:
        """What each service says of its part of the promises, and whether the audit chain holds."""
        parts: dict[str, dict[str, Any]] = {}
        for name in CHECKED:
            try:
                parts[name] = await self.others.consistency(name)
            except Problem as problem:
                parts[name] = {"error": problem.detail}
        chain = await self.check_audit()
        parts["audit"] = {"entries": chain.entries, "first_broken": chain.first_broken}
        holds = chain.holds and all(
            "error" not in part and not any(part.get(name) for name in ZERO_WHEN_WELL) for part in parts.values()
        )
        return schemas.Consistency(holds, parts)

    async def statistics(self) -> dict[str, Any]:
        """Numbers of the marketplace."""
        return await self.others.statistics()

    async def transactions(self, params: dict[str, str]) -> Any:
        """The coordinator's list. Raises 400 for what it does not understand, 503 when it fails."""
        status, body = await self.others.transactions("/v1/transactions", params)
        if status == 400:
            raise bad_request(str(body.get("detail", "The coordinator does not understand this.")))
        if status > 400:
            raise errors.coordinator_failed(status)
        return body

    async def transaction(self, xid: UUID) -> Any:
        """One transaction, as the coordinator knows it. Raises 404 for an unknown one, 503 when it fails."""
        status, body = await self.others.transactions(f"/v1/transactions/{xid}")
        if status == 404:
            raise errors.no_transaction(xid)
        if status >= 400:
            raise errors.coordinator_failed(status)
        return body
