"""What a resource tells the coordinator beside outcomes: its quarantines, and that it is still the same database.

Pulled like everything else: the resource reports what a person has to see and asks for the decision; a nudge only
makes it ask at once. What is to be told stands in the database until the coordinator has heard it, and a decision is
carried out under its own id: any party may die at any point, and any number of processes may do this at once.
"""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID

import msgspec
import structlog
from asyncpg.exceptions import PostgresError

from coordinator import resource as at
from coordinator.client.phase_two import SettleConnections
from coordinator.client.transport import Transport
from coordinator.protocol.errors import CallerRefused, CoordinatorError, CoordinatorUnavailable
from coordinator.protocol.ids import ResourceName
from coordinator.protocol.messages import Images, Pulse, PulseAnswer, Report, ReportAnswer, Resolution, Resolved
from coordinator.protocol.statuses import BranchState

REPORT_INTERVAL_S = 5.0
"""Pause between two reports of one quarantine while nobody nudges."""

REPORTS_MAX = 50
"""Quarantines that one round reports."""

LISTED_MAX = 1000
"""Quarantines that one round looks at."""

PULSE_INTERVAL_S = 10.0
"""Pause between two life signs of a resource."""

PULSE_TRIES_MAX = 5
"""Looks at the own marks before a life sign is put off: others may be at it."""

FORGOTTEN_REASON = "the coordinator does not remember whether it was committed: it is older than its history"

_log = structlog.get_logger("coordinator.client.quarantine")
_report_decoder = msgspec.json.Decoder(ReportAnswer)
_pulse_decoder = msgspec.json.Decoder(PulseAnswer)


class Quarantines:
    """Of one resource, in one process. `memory_ms`: the end of what the coordinator may have purged, as last heard."""

    def __init__(
        self,
        resource: ResourceName,
        connections: SettleConnections,
        transport: Transport,
        clock: Callable[[], float],
    ) -> None:
        self.memory_ms = -1
        self._resource = resource
        self._connections = connections
        self._transport = transport
        self._clock = clock
        self._due: dict[UUID, float] = {}
        self._shown: dict[UUID, str] = {}
        self._pulse_at = float("-inf")

    async def attend(self, *, now: bool) -> None:
        """Reports what is due, or everything `now`, and carries out what was decided.

        Raises what says that the database or the coordinator is away: the next round goes on.
        """
        async with self._connections.acquire() as connection:
            listed = await at.quarantines(connection, LISTED_MAX)
        alive = {xid for xid, _ in listed}
        for known in (self._due, self._shown):
            for xid in [xid for xid in known if xid not in alive]:
                del known[xid]
        due = [one for one in listed if now or self._due.get(one[0], float("-inf")) <= self._clock()]
        due.sort(key=lambda one: self._due.get(one[0], float("-inf")))
        for xid, reason in due[:REPORTS_MAX]:
            # before the try: one that fails must not hold up the others
            self._due[xid] = self._clock() + REPORT_INTERVAL_S
            try:
                await self._attend_one(xid, reason)
            except (PostgresError, CoordinatorError) as error:
                if isinstance(error, CoordinatorUnavailable | CallerRefused):
                    raise
                _log.warning("quarantine.postponed", xid=str(xid), resource=self._resource, error=repr(error))

    async def pulse(self) -> None:
        """Gives a life sign when one is due, and hears how far the coordinator remembers. Raises as `attend` does."""
        if self._clock() < self._pulse_at:
            return
        async with self._connections.acquire() as connection:
            life = await at.pulse(connection, beat=True)
        before_ms = max(round(life.before.timestamp() * 1000), 0)
        known: UUID | None = None
        for _ in range(PULSE_TRIES_MAX):
            pulse = Pulse(self._resource, life.incarnation, life.beats, life.mark, life.previous, before_ms, known)
            answer = _pulse_decoder.decode(await self._transport.tell("/v1/resources/pulse", pulse))
            if not answer.unfit:
                break
            # Look again, now that the coordinator's mark is known: a database that still does not have it was restored.
            known = answer.known
            async with self._connections.acquire() as connection:
                life = await at.pulse(connection, beat=False)
        else:
            return
        async with self._connections.acquire() as connection:
            await at.heard(connection, life.mark)
        self._pulse_at = self._clock() + PULSE_INTERVAL_S
        if answer.memory_ms is not None:
            self.memory_ms = answer.memory_ms

    def may_be_forgotten(self, deadline_ms: int) -> bool:
        """Whether a transaction with this deadline, of which the coordinator knows nothing, may have been committed."""
        return deadline_ms <= self.memory_ms

    async def doubt(self, xid: UUID) -> None:
        """Leaves a transaction to a person of which nobody knows any more whether it was committed."""
        _log.error("branch.in_doubt", xid=str(xid), resource=self._resource)
        async with self._connections.acquire() as connection:
            await at.doubt(connection, xid, FORGOTTEN_REASON)

    async def _attend_one(self, xid: UUID, reason: str | None) -> None:
        answer, quarantined = await self._report(xid, reason, None)
        while answer.resolution is not None:
            resolved = await self._carry_out(xid, answer.resolution)
            before = answer.resolution.resolution_id
            answer, quarantined = await self._report(xid, reason, resolved)
            if answer.resolution is not None and answer.resolution.resolution_id == before:
                raise CoordinatorUnavailable("the coordinator gave back a decision that was reported as carried out")
        if not quarantined:
            async with self._connections.acquire() as connection:
                await at.told(connection, xid)

    async def _carry_out(self, xid: UUID, resolution: Resolution) -> Resolved:
        async with self._connections.acquire() as connection:
            outcome = await at.resolve(
                connection, xid, resolution.resolution_id, resolution.action, resolution.shown, resolution.kept
            )
        _log.warning(
            "branch.resolved", xid=str(xid), resource=self._resource, action=resolution.action, outcome=dict(outcome)
        )
        return Resolved(resolution.resolution_id, outcome)

    async def _report(self, xid: UUID, reason: str | None, resolved: Resolved | None) -> tuple[ReportAnswer, bool]:
        """Says how it stands, with images where they are news; also whether something is quarantined still."""
        async with self._connections.acquire() as connection:
            states = sorted((UUID(int=b.int), int(s)) for b, s in (await at.states(connection, xid)).items())
            found = await at.images(connection, xid)
        images = Images(found.digest, found.total, found.rows)
        quarantined = any(state == BranchState.QUARANTINED for _, state in states)
        news = quarantined and self._shown.get(xid) != found.digest
        report = Report(xid, self._resource, states, found.digest, reason, images if news else None, resolved)
        answer = _report_decoder.decode(await self._transport.tell("/v1/quarantine", report))
        if answer.show:
            report = Report(xid, self._resource, states, found.digest, reason, images, resolved)
            answer = _report_decoder.decode(await self._transport.tell("/v1/quarantine", report))
        self._shown[xid] = found.digest
        return answer, quarantined
