"""The operator's desk: what resources report about quarantines, what a person decides, and life signs of resources.

A decision is taken down in the store, fetched by the resource's settle loop (a nudge makes it come at once), carried
out there once, and its outcome written beside it. Every step may be repeated by anybody.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import msgspec
import structlog

from coordinator.protocol.messages import NAME_LENGTH_MAX, Confirm, Pulse, PulseAnswer, Report, ReportAnswer, Resolution
from coordinator.protocol.statuses import BranchState
from coordinator.tc import views
from coordinator.tc.alerts import Alerts
from coordinator.tc.batches import Batches
from coordinator.tc.config import Limits
from coordinator.tc.nudges import Nudger
from coordinator.tc.problems import Problem, bad_request
from coordinator.tc.store import Ruled, Store, ruled_of

ACTIONS = ("keep", "restore", "retry", "keep_all")
KEPT_MAX = 100
"""Rows that one decision may name."""

OUTCOME_POLL_S = 0.05
"""Pause between two looks for what came of a decision, while its caller waits."""

log = structlog.get_logger(__name__)


class Resolve(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A person's decision. `shown` is the digest of the images that were looked at; `by` is who looked."""

    resolution_id: UUID
    resource: str
    action: str
    by: str
    shown: str | None = None
    kept: list[dict[str, Any]] | None = None


class Desk:
    """Of one replica."""

    def __init__(self, store: Store, batches: Batches, nudger: Nudger, alerts: Alerts, limits: Limits) -> None:
        self._store = store
        self._batches = batches
        self._nudger = nudger
        self._alerts = alerts
        self._limits = limits

    async def report(self, message: Report, caller: str) -> ReportAnswer:
        """Notes the states and images of a quarantine; answers with the decision that waits for it.

        Raises StoreUnavailable, Overloaded, or Problem.
        """
        quarantined = any(state == BranchState.QUARANTINED for _, state in message.states)
        if quarantined:
            await self._store.write(lambda c: c.execute("SELECT tc.note_forgotten($1, $2)", message.xid, caller))
        await self._batches.submit([Confirm(message.xid, message.resource, message.states)], caller)
        images, resolved = message.images, message.resolved
        arguments = (
            message.xid,
            message.resource,
            quarantined,
            message.reason,
            message.digest,
            0 if images is None else images.total,
            None if images is None else json.dumps(images.rows),
            None if resolved is None else resolved.resolution_id,
            None if resolved is None else json.dumps(resolved.outcome),
        )
        statement = "SELECT * FROM tc.report($1, $2, $3, $4, $5, $6, $7, $8, $9)"
        row = await self._store.write(lambda c: c.fetchrow(statement, *arguments))
        if resolved is not None:
            log.info(
                "quarantine.resolved", xid=str(message.xid), resource=message.resource, outcome=dict(resolved.outcome)
            )
        if row["resolution_id"] is None:
            return ReportAnswer(None, row["show"])
        kept = None if row["kept"] is None else json.loads(row["kept"])
        return ReportAnswer(Resolution(row["resolution_id"], row["action"], row["shown"], kept), row["show"])

    async def resolve(self, xid: UUID, message: Resolve, caller: str) -> views.ResolutionView:
        """Takes a decision down, tells its resource, and waits a moment for the outcome. Raises Problem."""
        if wrong := _problem_with(message):
            raise bad_request(wrong)
        kept = None if message.kept is None else json.dumps(message.kept)
        arguments = (
            message.resolution_id, xid, message.resource, message.action, kept, message.shown, message.by, caller,
        )  # fmt: skip
        statement = "SELECT tc.resolve($1, $2, $3, $4, $5, $6, $7, $8)"
        code = await self._store.write(lambda c: c.fetchval(statement, *arguments))
        if code is not None:
            raise await self._refusal(code, xid, message.resource)
        log.warning("quarantine.decided", xid=str(xid), resource=message.resource, action=message.action, by=message.by)
        poking = asyncio.create_task(self._nudger.poke(message.resource), name=f"poke {message.resource}")
        until = asyncio.get_running_loop().time() + self._limits.nudge_wait_s
        try:
            while True:
                view = await views.resolution(self._store, message.resolution_id)
                unheard = poking.done() and not poking.result()  # nobody is there: it is fetched later
                if view.done_ms is not None or unheard or asyncio.get_running_loop().time() >= until:
                    return view
                await asyncio.sleep(OUTCOME_POLL_S)
        finally:
            poking.cancel()
            await asyncio.gather(poking, return_exceptions=True)

    async def retry(self, xid: UUID) -> list[str]:
        """Tells the open branches' resources of the decision again, at once; returns their names. Raises Problem."""
        detail = await views.detail(self._store, xid)
        if detail is None:
            raise unknown(xid)
        found = detail.transaction
        if found.settlement == "OPEN":
            deadline = datetime.fromtimestamp(found.deadline_ms / 1000, UTC)
            why = f"{xid} is not decided yet. Its application decides, or the coordinator at {deadline:%H:%M:%S} UTC."
            raise Problem(409, "undecided", why)
        if found.settlement == "SETTLED":
            raise Problem(409, "settled", f"{xid} is settled already: nothing is left to do.")
        renudge = timedelta(seconds=self._limits.renudge.first_s)
        rows: Sequence[asyncpg.Record] = await self._store.write(
            lambda c: c.fetch("SELECT * FROM tc.retry($1, $2)", xid, renudge)
        )
        told: list[Ruled] = ruled_of(rows)
        if not told:
            why = f"Nothing of {xid} waits for its resource, but something is quarantined: look at it and resolve it."
            raise Problem(409, "quarantined", why)
        self._nudger.push(told)
        return sorted(name for ruled in told for name in ruled.resources)

    async def pulse(self, message: Pulse) -> PulseAnswer:
        """Notes a resource's life sign; marks that do not go on become an alert once the resource has looked again."""
        before = datetime.fromtimestamp(message.before_ms / 1000, UTC)
        arguments = (
            message.resource, message.incarnation, message.beats, message.mark, message.previous, before, message.known,
            self._alerts.sends,
        )  # fmt: skip
        statement = "SELECT * FROM tc.pulse($1, $2, $3, $4, $5, $6, $7, $8)"
        row = await self._store.write(lambda c: c.fetchrow(statement, *arguments))
        if row["alert_id"] is not None:
            detail = (await self._store.read("SELECT detail FROM tc.alert WHERE alert_id = $1", row["alert_id"]))[0]
            self._alerts.tell("resource.went_back", json.loads(detail["detail"]))
        memory_ms = None if row["memory"] is None else round(row["memory"].timestamp() * 1000)
        return PulseAnswer(memory_ms, row["unfit"], row["known"])

    async def _refusal(self, code: str, xid: UUID, resource: str) -> Problem:
        match code:
            case "not-found":
                return unknown(xid)
            case "decided-already":
                pending = await views.pending_resolution(self._store, xid, resource)
                who = "" if pending is None else f" by {pending.by}: {pending.action}"
                detail = f"{resource} has been decided already{who}; it is on its way. Look again in a moment."
            case "not-quarantined":
                detail = f"Nothing of {xid} is quarantined in {resource}: there is nothing to decide."
            case "not-shown":
                detail = f"{resource} has not reported its rows yet: nobody can have seen them. Look again in a moment."
            case "changed":
                detail = f"The rows in {resource} have changed since they were shown. Look and decide again."
            case _:
                detail = "This resolution_id belongs to another decision; make a new one."
        return Problem(409, code, detail)


def unknown(xid: UUID) -> Problem:
    """404: there is no such transaction."""
    detail = f"Nothing is known of {xid}: it was never begun, its hints were lost, or it ended long ago and was purged."
    return Problem(404, "not-found", detail)


def _problem_with(message: Resolve) -> str | None:
    if message.action not in ACTIONS:
        return f"action is {message.action!r}; send one of {', '.join(ACTIONS)}."
    if message.action != "retry" and not message.shown:
        return "shown is missing; send the digest of the images that were decided about."
    if not 0 < len(message.by) <= NAME_LENGTH_MAX or not message.by.isprintable():
        return f"by has to say in 1 to {NAME_LENGTH_MAX} printable characters who decided."
    if message.kept is None:
        return None
    if message.action != "keep":
        return f"kept goes with keep only, not with {message.action}."
    if not 0 < len(message.kept) <= KEPT_MAX or any(set(row) != {"table", "key"} for row in message.kept):
        return f'kept has to list 1 to {KEPT_MAX} rows as {{"table", "key"}}.'
    return None
