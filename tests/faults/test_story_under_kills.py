"""The demo's story, told while every process of the system is killed in turn."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.commands.demo import Target
from deploy.demo import Report, run
from deploy.embedded.programs import ProcessRecord
from deploy.embedded.system import EmbeddedSystem
from tests.support.servers import free_port

STORY = ("search", "stay", "failing-booking", "race", "cancelled-stay")
PAUSE_S = 0.7
"""Between one process that came back and the next kill."""

HAS_A_PROCESS_WITHIN_S = 60.0

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def split_system(tmp_path: Path) -> Iterator[EmbeddedSystem]:
    """The whole system, one process for each service, in a folder and on ports of its own."""
    system = EmbeddedSystem(tmp_path / "data")
    system.up(free_port(), split=True)
    try:
        yield system
    finally:
        system.down()


def target_of(system: EmbeddedSystem) -> Target:
    """What the story is told against."""
    return Target(system, system.gateway_url, system.admin_password)


def failures(report: Report) -> list[str]:
    """The scenes that did not hold, with what was seen."""
    return [f"{scene.name}: {scene.detail}" for scene in report.scenes if scene.verdict != "ok"]


def kill_when_it_runs(system: EmbeddedSystem, name: str) -> ProcessRecord:
    """SIGKILL for one program; one that is just being started again is killed as soon as it has a process."""
    deadline = time.monotonic() + HAS_A_PROCESS_WITHIN_S
    while True:
        try:
            return system.kill(name)
        except (LookupError, ProcessLookupError):
            if time.monotonic() > deadline:
                raise
            time.sleep(PAUSE_S)


async def kill_all_in_turn(system: EmbeddedSystem, killed: list[str]) -> None:
    """SIGKILL for each program, the next one when the last works again."""
    for name in [program.name for program in system.running().programs]:
        await asyncio.sleep(PAUSE_S)
        record = await asyncio.to_thread(kill_when_it_runs, system, name)
        killed.append(name)
        await asyncio.to_thread(system.wait_healed, name, record)


async def test_the_story_passes_while_every_process_is_killed_once(split_system: EmbeddedSystem) -> None:
    """Databases, Redis, gateway, coordinator, worker, each service: kill -9 of any, and every promise holds."""
    killed: list[str] = []
    nemesis = asyncio.create_task(kill_all_in_turn(split_system, killed))
    rounds = 0
    while not nemesis.done() or rounds == 0:
        report = Report(console=None)
        await run(target_of(split_system), report, STORY)
        rounds += 1
        assert failures(report) == [], f"round {rounds}, killed so far: {killed}"
    await nemesis
    names = {program.name for program in split_system.running().programs}
    assert set(killed) == names
    assert {"coordinator", "gateway", "main", "shard-0", "shard-1", "valkey", "worker"} < names
    assert all(program.restarts >= 1 for program in split_system.running().programs)
    quiet = Report(console=None)
    await run(target_of(split_system), quiet, STORY)
    assert failures(quiet) == []
