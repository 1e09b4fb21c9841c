"""The story of one run: what applications do, which faults come when, and how the world is healed and judged."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from typing import TYPE_CHECKING, Any

import msgspec

from coordinator.client import CoordinatorError, DeadlinePassed, LockConflict, OutcomeUnknown, TransactionRolledBack
from coordinator.client.errors import CallFailed
from coordinator.protocol.messages import Nudge, Settle
from coordinator.protocol.statuses import BranchState, Decision
from tests.simulation.database import Database
from tests.simulation.loop import Stuck
from tests.simulation.network import Cut, Refused
from tests.simulation.processes import Application, adding
from tests.simulation.world import DATABASES, Faults, Result, World, simulated

if TYPE_CHECKING:
    from random import Random

APPLICATIONS = ("app1", "app2", "owner1")
WORKERS = 3
STORY_S = 12.0
"""How long applications work and faults come, in virtual seconds."""

QUIET_WITHIN_S = 150.0
"""How long after the last fault everything has to be settled."""

STEPS_MAX = 3_000_000
"""A run that takes more goes round in circles."""


class Wanted(Exception):
    """The application wants no commit."""


def run_seed(seed: int) -> Result:
    """One run, from its seed alone."""
    world = World(seed)
    collected = gc.isenabled()
    gc.disable()  # what is collected when must not decide anything
    gc.freeze()  # and what was there before need not be looked through
    try:
        with simulated(world):
            try:
                world.loop.run_until_complete(world.loop.spawn(story(world), None))
            except Stuck as stuck:
                world.violation(f"stuck: {stuck}")
            result = world.result()
            world.loop.finish()
        return result
    finally:
        gc.unfreeze()
        if collected:
            gc.enable()


async def story(world: World) -> None:
    """Starts everything, lets faults come, heals, waits for quiet, and looks."""
    dice = world.split_dice()
    for name in world.replica_names:
        world.start_replica(name)
    for name in APPLICATIONS:
        employ(world, world.start_application(name))
    await trouble(world, dice)
    await heal(world)
    healed_s = world.loop.time()
    while left := world.checks.unquiet():
        if world.loop.time() - healed_s > QUIET_WITHIN_S or world.loop.steps > STEPS_MAX:
            for one in left[:5]:
                world.violation(f"not settled {QUIET_WITHIN_S:g} s after the last fault: {one}")
            return
        await asyncio.sleep(1.0)
    world.trace("quiet", world.loop.time() - healed_s)
    world.checks.quiet()


async def trouble(world: World, dice: Random) -> None:
    """Faults of the kinds and at the rate that this seed has."""
    severity = dice.choice((0.0, 0.3, 1.0, 1.0))
    faults = Faults(0.03 * severity, 0.05 * severity, 0.01 * severity, 0.05 * severity)
    world.faults = faults
    kinds = dice.sample(FAULTS, k=dice.randint(1, 5))
    world.trace("faults", severity, [kind.__name__ for kind in kinds])
    while world.loop.time() < STORY_S:
        await asyncio.sleep(dice.uniform(0.2, 2.5))
        if severity:
            dice.choice(kinds)(world, dice)


async def heal(world: World) -> None:
    """Ends all faults; whoever is dead comes back."""
    world.trace("heal")
    world.faults = Faults()
    world.network.parted.clear()
    for database in world.databases.values():
        database.up = True
    world.store.reconnect()
    for process in [*world.replicas.values(), *world.applications.values()]:
        if process.node.paused:
            world.loop.resume(process.node)
    for name in world.replica_names:
        if not world.replicas[name].node.alive:
            world.start_replica(name)
    for name in APPLICATIONS:
        if not world.applications[name].node.alive:
            world.start_application(name)


# Faults


def kill_one(world: World, dice: Random) -> None:
    """An application is killed and comes back."""
    name = dice.choice(APPLICATIONS)
    world.kill(name)
    world.loop.after(dice.uniform(0.1, 3.0), _restart_application, world, name)


def kill_replica(world: World, dice: Random) -> None:
    """A replica is killed and comes back."""
    name = dice.choice(world.replica_names)
    world.kill(name)
    world.loop.after(dice.uniform(0.1, 3.0), _restart_replica, world, name)


def pause_one(world: World, dice: Random) -> None:
    """A process stands still for a while, and does not know."""
    process: Any = dice.choice([*world.applications.values(), *world.replicas.values()])
    if process.node.alive and not process.node.paused:
        world.trace("pause", process.node.name)
        process.node.paused = True
        world.loop.after(dice.uniform(0.2, 6.0), world.loop.resume, process.node)


def part_two(world: World, dice: Random) -> None:
    """Nothing gets through between two for a while."""
    names = [*APPLICATIONS, *world.replica_names, *DATABASES, world.store.name]
    one, other = dice.sample(names, 2)
    world.trace("part", one, other)
    world.network.parted.add((one, other))
    world.loop.after(dice.uniform(0.5, 5.0), world.network.parted.discard, (one, other))


def restart_database(world: World, dice: Random) -> None:
    """A resource's server restarts."""
    database = world.databases[dice.choice(DATABASES)]
    world.trace("restart", database.name)
    database.restart()
    database.up = False
    world.loop.after(dice.uniform(0.05, 2.0), setattr, database, "up", True)


def restart_store(world: World, dice: Random) -> None:
    """The coordinator's primary restarts."""
    world.trace("restart", world.store.name)
    world.store.restart()


def store_loses_standby(world: World, dice: Random) -> None:
    """The standby stops following; the primary may crash and come back meanwhile, and then the standby takes over."""
    store = world.store
    world.trace("standby away", store.name)
    store.standby_up = False
    if dice.random() < 0.8:
        at_s = dice.uniform(0.3, 2.0)
        world.loop.after(at_s, restart_store, world, dice)
        world.loop.after(at_s + dice.uniform(0.5, 3.0), _fail_over_if, world, store)
    else:
        world.loop.after(dice.uniform(0.5, 4.0), store.reconnect)


def fail_over(world: World, dice: Random) -> None:
    """The standby takes over; what had not reached it is lost."""
    world.failover()


def nudge_early(world: World, dice: Random) -> None:
    """A resource is nudged about a transaction that is not decided yet."""
    database = world.databases[dice.choice(DATABASES)]
    open_xids = sorted({xid for (xid, _), row in database.branches.items() if row.state is BranchState.OPEN})
    if open_xids:
        body = msgspec.json.encode(Nudge(database.name, [Settle(dice.choice(open_xids), int(Decision.UNDECIDED), [])]))
        world.trace("nudge early", database.name)
        world.loop.spawn(_nudge(world, dice.choice(world.owners[database.name]), body), None)


async def _nudge(world: World, name: str, body: bytes) -> None:
    with contextlib.suppress(Cut, Refused):
        await world.network.call(name, "POST", "/nudge", body, {})


def _fail_over_if(world: World, store: object) -> None:
    if world.store is store and world.faults != Faults():
        world.failover()


def _restart_application(world: World, name: str) -> None:
    if not world.applications[name].node.alive:
        employ(world, world.start_application(name))


def _restart_replica(world: World, name: str) -> None:
    if not world.replicas[name].node.alive:
        world.start_replica(name)


FAULTS = (
    kill_one,
    kill_replica,
    pause_one,
    part_two,
    restart_database,
    restart_store,
    store_loses_standby,
    fail_over,
    nudge_early,
)

# Work


def employ(world: World, application: Application) -> None:
    """Workers of an application: transfers, plain and global, until the story is over."""
    for _ in range(WORKERS):
        world.loop.spawn(work(world, application, world.split_dice()), application.node)


async def work(world: World, application: Application, dice: Random) -> None:
    """One worker."""
    await asyncio.sleep(dice.uniform(0.0, 0.3))
    while world.loop.time() < STORY_S:
        if dice.random() < 0.25:
            await plain(world, application, dice)
        else:
            await transfer(world, application, dice)
        await asyncio.sleep(dice.choice((0.0, 0.01, 0.3)))


async def plain(world: World, application: Application, dice: Random) -> None:
    """Moves money inside one database in a plain local transaction."""
    database = dice.choice(application.own)
    one, other = dice.sample(sorted(database.rows), 2)
    amount = dice.randint(1, 9)
    changes = [(one, -amount), (other, amount)]
    resource = application.resources[database.name]
    try:
        await application.coordinator.run_local(resource, adding(changes), wait_s=2.0)
        note(world, "plain")
    except LockConflict:
        note(world, "plain refused")
    except Exception as error:
        note(world, f"plain {type(error).__name__}")


async def transfer(world: World, application: Application, dice: Random) -> None:
    """Moves money over databases in a global transaction."""
    databases: list[Database] = [world.databases[name] for name in dice.choices(DATABASES, k=dice.randint(2, 4))]
    amounts = [dice.randint(1, 9) for _ in databases[1:]]
    changes = [(databases[0], -sum(amounts)), *zip(databases[1:], amounts, strict=True)]
    dice.shuffle(changes)
    wants = dice.random() < 0.85
    xid = None
    outcome = "unknown"
    try:
        async with application.coordinator.global_transaction("transfer", timeout_s=dice.uniform(0.5, 6.0)) as running:
            xid = running.xid
            for database, delta in changes:
                await application.change(database, dice.choice(sorted(database.rows)), delta)
                if dice.random() < 0.2:
                    await asyncio.sleep(dice.uniform(0.0, 0.4))
            if not wants:
                raise Wanted
        outcome = "committed"
    except OutcomeUnknown:
        outcome = "unknown"
    except (Wanted, TransactionRolledBack, LockConflict, DeadlinePassed, CallFailed) as error:
        outcome = "rolled back"
        note(world, type(error).__name__)
    except CoordinatorError as error:
        outcome = "rolled back" if xid is not None and running.rollback_only else f"unknown {type(error).__name__}"
    except Exception as error:
        outcome = f"failed {type(error).__name__}"
    note(world, outcome)
    if xid is not None:
        world.trace("ended", world.short(xid), outcome)
        world.checks.said(xid, "unknown" if outcome.startswith("unknown") else outcome)


def note(world: World, what: str) -> None:
    """Counts how things ended."""
    world.ended[what] = world.ended.get(what, 0) + 1
