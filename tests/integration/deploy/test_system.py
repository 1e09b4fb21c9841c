"""The whole embedded system, as its operator meets it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from deploy.embedded.programs import ProcessRecord
from deploy.embedded.state import Phase, SystemState
from deploy.embedded.system import EmbeddedSystem
from deploy.embedded.topology import CHECKOUT
from services.catalog import SERVICES
from tests.support.commands import pawstay, processes_below
from tests.support.servers import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

GONE_TIMEOUT_S = 30
UP_TIMEOUT_S = 120


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedSystem]:
    """A system that is up, in a folder with spaces in its name; it is down and gone afterwards."""
    found = EmbeddedSystem(tmp_path_factory.mktemp("pawstay") / "my data")
    try:
        found.up(free_port())
        yield found
    finally:
        found.down()
        assert processes_below(found.folder) == []


def wait_gone(record: ProcessRecord) -> None:
    deadline = time.monotonic() + GONE_TIMEOUT_S
    while record.process() is not None:
        assert time.monotonic() < deadline, f"{record} is still alive"
        time.sleep(0.05)


def records(state: SystemState) -> list[ProcessRecord]:
    return [record for program in state.programs if (record := program.record()) is not None]


def get(url: str) -> int:
    with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 - our own gateway
        return int(answer.status)


def test_a_system_that_is_up_answers_through_its_gateway_and_says_so(system: EmbeddedSystem, tmp_path: Path) -> None:
    """`status --json` names every program as up, and the gateway answers."""
    said = pawstay("status", "--json", "--data", str(system.folder), folder=tmp_path)
    shown = json.loads(said.out)
    assert said.code == 0
    assert {program["phase"] for program in shown["programs"]} == {"up"}
    assert get(f"{shown['gateway_url']}/healthz") == 200


def test_the_operator_of_a_running_system_needs_no_settings(system: EmbeddedSystem, tmp_path: Path) -> None:
    """The coordinator and the operator's key are found in the data folder."""
    data = ["--data", str(system.folder)]
    page = json.loads(pawstay("transactions", "list", "--json", *data, folder=tmp_path).out)
    assert set(page) == {"items", "next_cursor"}
    said = pawstay("transactions", "retry", "01a21248-280c-7e81-acff-2ba8d04d1984", *data, folder=tmp_path)
    assert (said.code, "Nothing is known of" in said.text) == (1, True), said


def test_a_second_up_says_that_it_is_up(system: EmbeddedSystem, tmp_path: Path) -> None:
    """Nothing is started twice, and it is no error."""
    said = pawstay("up", "--detach", "--data", str(system.folder), folder=tmp_path)
    assert said.code == 0
    assert f"already up at {system.gateway_url}" in said.text


@pytest.mark.parametrize("program", ["coordinator", "services", "worker", "gateway", "valkey", "main", "shard-0"])
def test_a_program_that_is_killed_comes_back(system: EmbeddedSystem, program: str) -> None:
    """kill -9 of any program is healed by the supervisor, and the gateway answers again."""
    killed = system.kill(program)
    system.wait_healed(program, killed)
    assert get(f"{system.gateway_url}/healthz") == 200


async def test_services_start_anew_with_changed_settings_and_take_them_back(system: EmbeddedSystem) -> None:
    """`restart_with` reaches the environment of the service processes; an empty mapping undoes it."""
    before = system.running().program("services")
    await system.restart_with({"PAWSTAY_REDLOCK": "off"})
    changed = json.loads(system.layout.environments_file.read_text())
    assert changed["order"]["PAWSTAY_REDLOCK"] == "off"
    after = system.running().program("services")
    assert before is not None
    assert after is not None
    assert before.pid != after.pid
    await system.restart_with({})
    restored = json.loads(system.layout.environments_file.read_text())
    assert "PAWSTAY_REDLOCK" not in restored["order"]


def test_every_log_can_be_read(system: EmbeddedSystem, tmp_path: Path) -> None:
    """`logs` shows a program's lines, and names the programs when asked for one that is not there."""
    assert "ready to accept connections" in pawstay("logs", "main", "--data", str(system.folder), folder=tmp_path).out
    wrong = pawstay("logs", "mian", "--data", str(system.folder), folder=tmp_path)
    assert wrong.code == 2
    assert "shard-0" in wrong.text


async def test_what_was_written_survives_the_death_of_everything(system: EmbeddedSystem) -> None:
    """All processes die at once, supervisor first; `up` comes back with the data, on the same ports."""
    dsn = system.databases()["capacity"]
    connection = await asyncpg.connect(dsn)
    await connection.execute("CREATE TABLE IF NOT EXISTS kept (n int); INSERT INTO kept VALUES (42)")
    await connection.close()
    state = system.running()
    everything = [state.supervisor(), *records(state)]
    for record in everything:
        process = record.process()
        if process is not None:
            process.send_signal(signal.SIGKILL)
    for record in everything:
        wait_gone(record)
    await asyncio.to_thread(system.up, int(state.gateway_url.rsplit(":", 1)[1]))
    connection = await asyncpg.connect(dsn)
    try:
        assert await connection.fetchval("SELECT n FROM kept") == 42
    finally:
        await connection.close()


def test_a_killed_supervisor_takes_its_programs_along_and_down_leaves_nothing(
    system: EmbeddedSystem, tmp_path: Path
) -> None:
    """After kill -9 of the supervisor `down` ends what is left; then nothing runs, and every command says so."""
    state = system.running()
    os.kill(state.supervisor_pid, signal.SIGKILL)
    wait_gone(state.supervisor())
    system.down()
    for record in records(state):
        wait_gone(record)
    assert processes_below(system.folder) == []
    again = pawstay("down", "--data", str(system.folder), folder=tmp_path)
    assert (again.code, "Nothing runs" in again.text) == (0, True)
    shown = pawstay("status", "--data", str(system.folder), folder=tmp_path)
    assert (shown.code, "Nothing runs" in shown.text) == (3, True)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel must tell of a parent's death")
def test_a_demo_that_is_killed_takes_along_what_it_started(tmp_path: Path) -> None:
    """After kill -9 of the demo nothing goes on running that nobody asked for."""
    started = EmbeddedSystem(tmp_path / "demo")
    command = [sys.executable, "-P", "-m", "deploy.cli", "demo", "--data", str(started.folder)]
    demo = subprocess.Popen(
        [*command, "--port", str(free_port())], cwd=CHECKOUT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + UP_TIMEOUT_S
        while (state := started.state()) is None or state.phase is not Phase.UP:
            assert time.monotonic() < deadline, "the demo's system did not come up"
            assert demo.poll() is None
            time.sleep(0.05)
        demo.kill()
        demo.wait()
        for record in (state.supervisor(), *records(state)):
            wait_gone(record)
    finally:
        demo.kill()
        demo.wait()
        started.down()
    assert processes_below(started.folder) == []


def test_with_split_each_service_has_a_process_and_down_stops_them_all(tmp_path: Path) -> None:
    """The same system in one process a service; a clean `down` leaves no process."""
    split = EmbeddedSystem(tmp_path / "split")
    try:
        state = split.up(free_port(), split=True)
        names = {program.name for program in state.programs if program.kind == "services"}
        assert names == {spec.name for spec in SERVICES}
        split.wait_healed("order", split.kill("order"))
        done = pawstay("down", "--data", str(split.folder), folder=tmp_path)
        assert (done.code, "PawStay is down" in done.text) == (0, True)
        assert [record for record in records(state) if record.process()] == []
    finally:
        split.down()
    assert processes_below(split.folder) == []
