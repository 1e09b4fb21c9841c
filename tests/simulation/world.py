"""One run: the world is made from a seed, suffers faults, is healed, and is judged."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import types
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any
from unittest import mock
from uuid import UUID

import structlog

from coordinator.client import transactions, transport
from coordinator.protocol import ids
from coordinator.protocol.statuses import BranchState, Decision
from coordinator.tc import batches, nudges, recovery, replica, waits
from coordinator.tc import store as tc_store
from tests.simulation.checks import Checks
from tests.simulation.connections import SimConnection
from tests.simulation.database import Database
from tests.simulation.loop import SimEvent, SimLoop
from tests.simulation.network import Network, SimWire
from tests.simulation.processes import Application, ReplicaProcess, SimAlerts, SimNudger
from tests.simulation.store import Row, SimDriver, StoreServer

EPOCH_S = 1_800_000_000.0
LAST_EVENTS = 400
DATABASES = ("bank0", "bank1", "bank2")
ACCOUNTS = 3
BALANCE = 1000


@dataclass
class Faults:
    """Chances of a fault for each message or statement; all are 0 once the world is healed."""

    lose: float = 0.0
    repeat: float = 0.0
    cut: float = 0.0
    slow: float = 0.0


@dataclass(frozen=True)
class Result:
    """What a run came to."""

    seed: int
    digest: str
    violations: tuple[str, ...]
    steps: int
    virtual_s: float
    ended: dict[str, int]
    events: tuple[str, ...] = field(repr=False)


class World:
    """See the module. `dice` decide everything; `trace` is what two runs of one seed must agree on."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.dice = Random(seed)
        self.loop = SimLoop(self.split_dice())
        self.faults = Faults()
        self.network = Network(self)
        self.connections: list[SimConnection] = []
        self.listeners: list[tuple[SimConnection, Any]] = []
        self.opened_calls: dict[str, list[asyncio.Future[Any]]] = {}
        self.violations: list[str] = []
        self.events: deque[str] = deque(maxlen=LAST_EVENTS)
        self.ended: dict[str, int] = {}
        self._hash = hashlib.blake2b(digest_size=16)
        self._short: dict[UUID, str] = {}
        self.replica_names = ["tc1", "tc2"]
        self.owners = {"bank0": ["app1", "app2"], "bank1": ["app1", "app2"], "bank2": ["owner1"]}
        self.databases: dict[str, Database] = {}
        for name in DATABASES:
            self.databases[name] = Database(self, name, {f"{name}.{n}": BALANCE for n in range(ACCOUNTS)})
        self.store = StoreServer(self, "store0", {})
        self.routes = dict.fromkeys(self.replica_names, self.store)
        self.replicas: dict[str, ReplicaProcess] = {}
        self.applications: dict[str, Application] = {}
        self.checks = Checks(self)

    # Dice, clocks and traces

    def split_dice(self) -> Random:
        """Dice of somebody's own, made from ours."""
        return Random(self.dice.getrandbits(64))

    def chance(self, of: float) -> bool:
        """True with that chance; throws no dice where there is none."""
        return of > 0 and self.dice.random() < of

    def delay_s(self) -> float:
        """How long one message is on its way."""
        if self.chance(self.faults.slow):
            return self.dice.uniform(0.05, 1.5)
        return self.dice.uniform(0.0002, 0.005)

    def wall_s(self) -> float:
        """The true time, in seconds since 1970."""
        return EPOCH_S + self.loop.time()

    def short(self, xid: UUID) -> str:
        """A name for an xid, by its first appearance."""
        return self._short.setdefault(UUID(int=xid.int), f"t{len(self._short)}")

    def trace(self, *what: object) -> None:
        """Something happened."""
        line = f"{self.loop.time():.6f} " + " ".join(map(str, what))
        self._hash.update(line.encode())
        self.events.append(line)

    def violation(self, what: str) -> None:
        """A promise is broken."""
        self.trace("VIOLATION", what)
        if len(self.violations) < 10:
            self.violations.append(what)

    # What the parts report

    def stored(self, server: StoreServer, xid: UUID, row: Row) -> None:
        """A row of the store is shown to everybody."""
        if row.decision is not Decision.UNDECIDED:
            self.checks.decided(xid, row)

    def heard(self, where: str, xid: UUID, decision: int) -> None:
        """A replica has answered."""
        if decision != Decision.UNDECIDED:
            self.trace("answers", where, self.short(xid), decision)
            self.checks.answered(xid, Decision(decision))

    def acted(self, database: str, xid: UUID, branch: UUID, state: BranchState) -> None:
        """A resource has followed."""
        self.checks.acted(database, xid, branch, state)

    def check_step(self) -> None:
        """What must hold at every step."""
        self.checks.step()

    def notify(self, server: StoreServer, fresh: set[UUID], replica_id: UUID) -> None:
        """NOTIFY to those who wait at other replicas."""
        waited = {x for r, holder, waiter, *_ in server.waits.values() if r != replica_id for x in (holder, waiter)}
        for xid in sorted(fresh & waited):
            for connection, callback in list(self.listeners):
                if connection.server is server and not connection.is_closed():
                    self.loop.call_later(
                        self.delay_s(), callback, connection, 0, "", str(xid), context=connection.node.context
                    )

    # Processes

    def store_of(self, replica_name: str) -> StoreServer:
        """The server that this replica takes for the primary."""
        return self.routes[replica_name]

    def start_replica(self, name: str) -> None:
        """A new life of a replica."""
        self.trace("start", name)
        self.replicas[name] = ReplicaProcess(self, name)

    def start_application(self, name: str) -> Application:
        """A new life of an application."""
        self.trace("start", name)
        own = [database for database in DATABASES if name in self.owners[database]]
        self.applications[name] = Application(self, name, [self.databases[one] for one in own])
        return self.applications[name]

    def kill(self, name: str) -> None:
        """As kill -9: not one line more runs there; what it had sent may still arrive."""
        process = self.replicas.get(name) or self.applications[name]
        if not process.node.alive:
            return
        process.node.alive = False
        self.trace("kill", name)
        for connection in [one for one in self.connections if one.node is process.node]:
            connection.cut("its process was killed")
        for answer in self.opened_calls.get(name, []):
            self.loop.after(self.delay_s(), _reset, answer)

    def failover(self) -> None:
        """The standby becomes the primary; the old one does not know, and the replicas hear of it one by one."""
        old = self.store
        self.trace("failover", old.name, "lost", len(old.log) - old.received)
        rows = old.survivors()
        old.standby_up, old.replaced = False, True
        self.store = StoreServer(self, f"store{int(old.name[5:]) + 1}", rows)
        self.store.urls = {name: dict(urls) for name, urls in old.urls.items()}
        for xid, row in rows.items():
            self.stored(self.store, xid, row)
        for name in self.replica_names:
            self.loop.after(self.dice.uniform(0.0, 2.0), self._reroute, name, old)

    def _reroute(self, name: str, old: StoreServer) -> None:
        self.routes[name] = self.store
        if old.alive and old not in self.routes.values():
            self.trace("end", old.name)
            old.alive = False
            for connection in [one for one in self.connections if one.server is old]:
                connection.cut("the server is gone")

    def result(self) -> Result:
        """What this run came to."""
        for crash in self.loop.crashes:
            self.violation(f"unhandled: {crash}")
        self._hash.update(repr(sorted(self.ended.items())).encode())
        return Result(
            self.seed, self._hash.hexdigest(), tuple(self.violations), self.loop.steps, self.loop.time(),
            dict(sorted(self.ended.items())), tuple(self.events),
        )  # fmt: skip


def _reset(answer: asyncio.Future[Any]) -> None:
    from tests.simulation.network import Cut

    if not answer.done():
        answer.set_exception(Cut("the process was killed"))
        answer.exception()


@contextlib.contextmanager
def simulated(world: World) -> Iterator[None]:
    """The world takes the place of the network, the clock, the dice and the store's driver in the product."""
    clock = types.SimpleNamespace(time=world.wall_s, monotonic=world.loop.time)
    dice = world.split_dice()

    def made_uuid() -> UUID:
        return UUID(int=dice.getrandbits(128), version=4)

    async def installed(_: object) -> None:
        """The schema is there."""

    def crash(_: object, __: str, event: dict[str, Any]) -> Any:
        if event["event"] in ("settle.crashed", "replica.loop_failed", "batches.refused", "resource.named_otherwise"):
            world.violation(f"{event['event']}: {event.get('exc_info') or event}")
        raise structlog.DropEvent

    SimAlerts.world = SimNudger.world = world
    before = structlog.get_config()
    with contextlib.ExitStack() as stack:
        for module in (batches, nudges, recovery, waits):
            stack.enter_context(mock.patch.object(module, "time", clock))
        for target, name, value in (
            (transport, "Wire", lambda *_: SimWire(world)),
            (transactions, "uuid7", lambda now_ms: ids.uuid7(now_ms, dice.randbytes(10))),
            (waits, "uuid4", made_uuid),
            (replica, "uuid4", made_uuid),
            (replica, "random", types.SimpleNamespace(SystemRandom=world.split_dice)),
            (replica, "Alerts", SimAlerts),
            (replica, "Nudger", SimNudger),
            (tc_store, "_driver", SimDriver(world)),
            (tc_store.Store, "_install", installed),
            (asyncio, "Event", SimEvent),
        ):
            stack.enter_context(mock.patch.object(target, name, value))
        structlog.configure(processors=[crash], wrapper_class=structlog.make_filtering_bound_logger(40))
        try:
            yield
        finally:
            structlog.configure(**before)
