"""At every step of book, pay, cancel and expire a process is killed, or a reply lost: every promise holds still."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from deploy.embedded.topology import CHECKOUT, inherited_environment
from tests.faults.crash import harness
from tests.faults.crash.cell import Cell, Kind, running_cell
from tests.faults.crash.injection import resolve
from tests.faults.crash.points import second_points, single_points
from tests.faults.crash.processes import Launcher
from tests.faults.crash.promises import broken, watched
from tests.faults.crash.quick import EARLY_HINTS, LATE_HINTS, QUICK
from tests.faults.crash.recovery import RECOVERY
from tests.faults.crash.steps import STEPS
from tests.faults.crash.stories import STORIES, Scene, scene_of
from tests.faults.crash.vocabulary import Arm, Fault, Point
from tests.support.servers import TestPostgres

POINTS_MIN = 100
RUN_TIMEOUT_S = 1500
WATCHED_S = 0.1
KILLED_PROCESSES = {"coordinator", "order", "capacity", "pet", "payment", "worker", "messenger"}


@pytest.mark.parametrize("target", sorted({step.target for step in (*STEPS, *RECOVERY)}))
def test_every_step_is_code_that_exists(target: str) -> None:
    """A dotted name in the list of steps leads to a function of the product, or of its queue."""
    _, _, found = resolve(target)
    assert callable(getattr(found, "__func__", found))


@pytest.mark.parametrize("target", sorted({*QUICK, *EARLY_HINTS, *LATE_HINTS}))
def test_every_wait_that_is_shortened_is_what_the_list_says(target: str) -> None:
    """Who changes one is reminded that the order of the shortened ones follows from it."""
    _, _, found = resolve(target)
    assert {changes[target][0] for changes in (QUICK, EARLY_HINTS, LATE_HINTS) if target in changes} == {found}


def test_the_list_covers_every_story_and_process_before_and_after() -> None:
    """At least POINTS_MIN points; each name stands for one step, and what can be lost says what its caller sees."""
    points = single_points()
    assert len(points) >= POINTS_MIN
    assert {point.story for point in points} == set(STORIES)
    assert {point.first.process for point in points} == KILLED_PROCESSES
    assert {point.first.fault for point in points} == set(Fault)
    assert len({point.name for point in points}) == len(points)
    names = [step.name for step in (*STEPS, *RECOVERY)]
    losing = [step for step in (*STEPS, *RECOVERY) if {Fault.LOSE_REQUEST, Fault.LOSE_REPLY} & set(step.faults)]
    assert [step.name for step in losing if step.lost is None] == []
    assert {point.then.step for point in second_points() if point.then is not None} <= set(names)


@pytest.mark.slow
@pytest.mark.timeout(RUN_TIMEOUT_S + 30)
def test_every_point_is_reached_and_recovered_from() -> None:
    """All single points and the second kills, by the command that a person would use."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "deploy.cli", "test", "crash-points", "--json"],
        cwd=CHECKOUT,
        env=inherited_environment(),
        capture_output=True,
        text=True,
        timeout=RUN_TIMEOUT_S,
        check=False,
    )
    assert done.stdout, done.stderr[-6000:]
    said = json.loads(done.stdout)
    failed = [step for step in said["steps"] if not step["recovered"]]
    assert (failed, said["violations"], done.returncode) == ([], 0, 0), done.stderr[-6000:]
    assert said["points"] == said["recovered"] == len(single_points()) + len(second_points()) == len(said["steps"])


@pytest.fixture
async def cell(postgres: TestPostgres, valkey: str, tmp_path: Path) -> AsyncIterator[Cell]:
    """One cell, in which nothing is armed."""
    async with Launcher().running(tmp_path / "launcher.log") as launcher:
        async with running_cell("cell", Kind(), launcher, postgres, valkey, tmp_path / "cell") as made:
            yield made


UNGUARDED = "ALTER TABLE nights DROP CONSTRAINT nights_never_oversold;"
"""Even a service gone mad could not oversell a night: PostgreSQL would not take the row."""

DAMAGE = {
    "capacity": (
        (f"{UNGUARDED} UPDATE nights SET held = total + 1", "nights are above their total"),
        ("UPDATE nights SET held = total + 2", "above their total for a moment"),
        ("UPDATE nights SET held = 0", "counted otherwise than they are held"),
        ("UPDATE holds SET state = 2", "its hold is [2], not [0]"),
        ("UPDATE holds SET order_id = gen_random_uuid()", "capacity.holds speaks of orders that are not there"),
    ),
    "pet": (("DELETE FROM claimed_nights", "its nights of the pet is 0, not 2"),),
    "payment": (
        ("UPDATE ledger_entries SET amount_cents = amount_cents + 1 WHERE line = 1", "the ledger sums to 1"),
        ("UPDATE ledger_entries SET amount_cents = amount_cents + 2 WHERE line = 1", "summed to 2 for a moment"),
        ("UPDATE wallets SET balance_cents = 7", "the owner's wallet is [7]"),
    ),
    "order@shard-0": (
        ("UPDATE orders SET status = 6", "was acknowledged, but it is 6"),
        ("DELETE FROM order_details", "its details is 0, not 1"),
        ("UPDATE orders SET owner_id = gen_random_uuid()", "orders by status are {}"),
    ),
    "order@shard-1": (("UPDATE provider_orders SET status = 1", "its status in the index is [1], not [0]"),),
    "notification": (
        ("DELETE FROM notifications WHERE number = (SELECT min(number) FROM notifications)", "nobody told"),
        (
            "INSERT INTO notifications (id, recipient, kind, title, text, order_id)"
            " SELECT gen_random_uuid(), recipient, kind, title, text, order_id FROM notifications",
            "too often",
        ),
        (
            "UPDATE notifications SET order_id = gen_random_uuid()",
            "notification.notifications speaks of orders that are not there",
        ),
    ),
}
"""What is done to a database behind everybody's back, and what the checker says to it."""


@pytest.mark.slow
async def test_the_checker_sees_every_kind_of_damage(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole booking passes; each planted fault is named, and a point whose step never comes does not count."""
    story = STORIES["book"]
    scene = await scene_of(cell)
    await story.tell(scene)
    assert await cell.quiet() == []
    assert await broken(scene, story) + scene.problems == []
    for database, damages in DAMAGE.items():
        for statement, words in damages:
            found = await broken_by(cell, database, statement, scene)
            assert any(words in one for one in found), (statement, found)
    monkeypatch.setattr(harness, "REACHED_WITHIN_S", 0.5)
    never = Point("book", Arm("escrow is drawn", "payment", Fault.KILL_BEFORE))
    result = await harness.run_point(cell, never)
    assert (result.met, result.broken, result.recovered) == ([False], [], False)


async def broken_by(cell: Cell, database: str, statement: str, scene: Scene) -> list[str]:
    """What the checker finds after `statement` ran with triggers off; all is put back afterwards."""
    connection = await asyncpg.connect(cell.eyes.dsns[database])
    try:
        await connection.execute("SET session_replication_role = replica")
        kept = await _copy(connection, statement)
        await connection.execute(statement)
        found: list[str] = []
        async with watched(cell, found):
            found += await broken(scene, STORIES["book"])
            await asyncio.sleep(WATCHED_S)
        await _put_back(connection, kept)
        return found
    finally:
        await connection.close()


async def _copy(connection: asyncpg.Connection, statement: str) -> str:
    words = statement.split()
    table = words[words.index("UPDATE" if "UPDATE" in words else "INTO" if "INTO" in words else "FROM") + 1]
    await connection.execute(f"CREATE TEMPORARY TABLE kept AS TABLE {table}")
    return table


async def _put_back(connection: asyncpg.Connection, table: str) -> None:
    async with connection.transaction():
        await connection.execute(f"DELETE FROM {table}")
        await connection.execute(f"INSERT INTO {table} OVERRIDING SYSTEM VALUE TABLE kept")
    await connection.execute("DROP TABLE kept")
