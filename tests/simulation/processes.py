"""The simulated processes: replicas of the real coordinator, and applications on the real client."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from uuid import UUID

import msgspec

from coordinator.client import Coordinator, CoordinatorError, Resource
from coordinator.client.context import HEADER_ROLLBACK_ONLY, format_branches
from coordinator.client.contrib.http import TransactionalClient
from coordinator.protocol.ids import HEADER_BRANCH, HEADER_BRANCHES, HEADER_DEADLINE, HEADER_XID, BranchId, Xid
from coordinator.protocol.messages import (
    Announce,
    Confirm,
    Nudge,
    Outcome,
    Pulse,
    PulseAnswer,
    Request,
    Wait,
)
from coordinator.protocol.tokens import SigningKey
from coordinator.tc.batches import Overloaded
from coordinator.tc.config import CoordinatorSettings
from coordinator.tc.core.checks import problem_with
from coordinator.tc.nudges import Nudger
from coordinator.tc.replica import Replica
from coordinator.tc.store import Diverged, NudgeUrl, StoreUnavailable
from tests.simulation.connections import FoldingConnection, SimPool
from tests.simulation.loop import Node
from tests.simulation.network import Answer, Call, Cut, Refused, SimHttp

if TYPE_CHECKING:
    from tests.simulation.database import Database
    from tests.simulation.world import World

_decode_requests = msgspec.json.Decoder(list[Request]).decode
_decode_wait = msgspec.json.Decoder(Wait).decode
_encode = msgspec.json.encode
KEY = SigningKey.generate("coordinator")


class SimAlerts:
    """Stands for coordinator.tc.alerts.Alerts: in a run without bypassed triggers each alert is a violation."""

    world: World

    def __init__(self, *_: Any) -> None:
        self.opened: dict[str, int] = {}
        self.sent = self.failed = 0

    async def open(self) -> None:
        """Nothing to open."""

    async def close(self) -> None:
        """Nothing to close."""

    async def look(self) -> None:
        """Nothing to look for."""

    async def deliver(self) -> None:
        """Nothing to deliver."""
        await asyncio.Event().wait()

    def diverged(self, split: Diverged) -> None:
        """A resource did the opposite of a decision."""
        self.world.violation(f"{split.resource} did not follow {split.decision.name} of {self.world.short(split.xid)}")


class SimNudger(Nudger):
    """The real one, but for what it posts with."""

    world: World

    async def open(self) -> None:
        """Nothing to open."""

    async def _post(self, target: NudgeUrl, body: bytes) -> list[Confirm]:
        host = target.url.split("/")[2].split(":")[0]
        try:
            async with asyncio.timeout(self._limits.nudge_timeout_s):
                said = await self.world.network.call(host, "POST", "/nudge", body, {})
        except (Cut, Refused) as error:
            raise ValueError(str(error)) from error
        if said.status != 200:
            raise ValueError(f"the resource answered {said.status}")
        return msgspec.json.decode(said.body, type=list[Confirm])


class ReplicaProcess:
    """One life of one replica."""

    def __init__(self, world: World, name: str) -> None:
        self._world = world
        self.node = Node(name)
        self.replica = self.node.context.run(Replica, CoordinatorSettings(name, KEY, {}))
        world.network.listen(self.node, self.serve)
        world.loop.spawn(self.replica.start(), self.node)

    async def serve(self, call: Call) -> Answer:
        """The routes of coordinator.tc.controllers that the client uses."""
        try:
            return await self._serve(call)
        except (StoreUnavailable, Overloaded) as error:
            return Answer(503, str(error).encode())

    async def _serve(self, call: Call) -> Answer:
        world, replica = self._world, self.replica
        owner = call.caller.rstrip("0123456789")
        if call.path == "/v1/messages":
            requests = _decode_requests(call.body or b"")
            answers = await replica.messages(requests, owner)
            for answer in answers:
                if isinstance(answer, Outcome):
                    world.heard(self.node.name, answer.xid, answer.decision)
            return Answer(200, _encode(answers))
        if call.path == "/v1/wait":
            message = _decode_wait(call.body or b"")
            assert problem_with(message) is None
            waited = await replica.waits.wait(message, owner, call.left)
            world.heard(self.node.name, message.holder, waited.holder)
            if message.waiter is not None:
                world.heard(self.node.name, message.waiter, waited.waiter)
            return Answer(200, _encode(waited))
        if call.path == "/v1/resources":
            announce = msgspec.json.decode(call.body or b"", type=Announce)
            await replica.store.announce(announce.resource, announce.nudge_url, owner)
            replica.nudger.announced(announce.resource)
            return Answer(204)
        if call.path == "/v1/resources/pulse":
            pulse = msgspec.json.decode(call.body or b"", type=Pulse)
            return Answer(200, _encode(PulseAnswer(None, False, pulse.mark)))
        xid = UUID(call.path.rpartition("/")[2])
        row = world.store_of(self.node.name).rows.get(xid)
        if row is None:
            return Answer(404)
        branches = [{"resource": r, "branch": b, "committed": c} for (r, b), (_, c) in row.branches.items()]
        return Answer(200, _encode({"branches": branches}))


class Application:
    """One life of one process with the real client: it owns some resources and calls others for theirs."""

    def __init__(self, world: World, name: str, own: list[Database]) -> None:
        self.world = world
        self.node = Node(name)
        self.own = own
        self.skew_s = world.dice.uniform(-0.05, 0.05)
        self.resources: dict[str, Resource[Any]] = {}
        self.node.context.run(self._make)
        world.network.listen(self.node, self.serve)
        world.loop.spawn(self._enter(), self.node)

    def clock(self) -> float:
        """Its own clock."""
        return self.world.wall_s() + self.skew_s

    def _make(self) -> None:
        world, name = self.world, self.node.name
        urls = [f"http://{replica}:1" for replica in world.replica_names]
        world.dice.shuffle(urls)
        self.coordinator = Coordinator(
            urls, nudge_url=f"http://{name}:1/nudge", clock=self.clock, dice=world.split_dice()
        )
        self.http = TransactionalClient(SimHttp(world), clock=self.clock, dice=world.split_dice())  # type: ignore[arg-type]
        for database in self.own:
            pool = SimPool(world, lambda database=database: database, 8, kind=FoldingConnection)  # type: ignore[misc]
            self.resources[database.name] = self.coordinator.resource(database.name, pool)

    async def _enter(self) -> None:
        await self.coordinator.__aenter__()

    async def change(self, database: Database, key: str, delta: int) -> None:
        """Adds to an account in the current global transaction: here, or by a call to who owns it."""
        if database.name in self.resources:
            await self.coordinator.run_branch(self.resources[database.name], adding([(key, delta)]))
        else:
            owner = self.world.dice.choice(self.world.owners[database.name])
            body = {"database": database.name, "key": key, "delta": delta}
            repeats = self.world.dice.randrange(3)
            await self.http.request("POST", f"http://{owner}:1/change", json=body, timeout_s=3.0, repeats=repeats)

    async def serve(self, call: Call) -> Answer:
        """Nudges, and changes for others as coordinator.client.contrib.litestar would take them."""
        if call.path == "/nudge":
            try:
                confirms = await self.coordinator.nudged(msgspec.json.decode(call.body or b"", type=Nudge))
            except ValueError:
                return Answer(404)
            return Answer(200, _encode(confirms))
        asked: dict[str, Any] = msgspec.json.decode(call.body or b"")
        xid, branch = Xid(UUID(call.headers[HEADER_XID])), BranchId(UUID(call.headers[HEADER_BRANCH]))
        status = 200
        scope = None
        try:
            with self.coordinator.participant(xid, branch, int(call.headers[HEADER_DEADLINE])) as scope:
                work = adding([(asked["key"], asked["delta"])])
                await self.coordinator.run_branch(self.resources[asked["database"]], work, result_type=bool)
        except Exception as error:
            self.world.trace("participant failed", self.node.name, self.world.short(xid), type(error).__name__)
            status = 409 if isinstance(error, CoordinatorError) else 503
        if scope is None:
            return Answer(status)
        headers = {HEADER_BRANCHES: format_branches(scope.branches)}
        if scope.rollback_only is not None:
            headers[HEADER_ROLLBACK_ONLY] = "marked"
        return Answer(status, b"{}", headers)


def adding(changes: list[tuple[str, int]]) -> Any:
    """Work in a local transaction: adds to accounts."""

    async def work(connection: Any) -> bool:
        for key, delta in changes:
            await connection.execute(f"ADD {key} {delta}")
        return True

    return work
