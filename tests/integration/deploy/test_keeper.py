"""The keeper: one program kept alive."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from deploy.embedded.binaries import find_nginx
from deploy.embedded.keeper import Keeper
from deploy.embedded.nginx import NginxServer
from deploy.embedded.problems import ExitCode, RuntimeProblem
from deploy.embedded.programs import Program
from deploy.embedded.state import ProgramPhase
from deploy.embedded.topology import Part
from tests.support.servers import free_port

WAIT_TIMEOUT_S = 20
NGINX_CONF = """
daemon off; user root; pid "{folder}/nginx.pid"; error_log stderr;
events {{}}
http {{ access_log off; server {{ listen 127.0.0.1:{port}; return 200 "ok"; }} }}
"""


def python_part(folder: Path, code: str, *, stop_timeout_s: float = 5.0) -> Part:
    program = Program(
        name="part",
        argv=(sys.executable, "-c", code),
        log=folder / "part.log",
        cwd=folder,
        stop_timeout_s=stop_timeout_s,
    )
    return Part(
        name="part", kind="services", ports={}, describe=lambda: program, ready=lambda _: (folder / "ready").exists()
    )


async def until(holds: Callable[[], bool]) -> None:
    """Waits until something holds of which nobody sends word."""
    async with asyncio.timeout(WAIT_TIMEOUT_S):
        while not holds():  # noqa: ASYNC110 - a state that is only looked at
            await asyncio.sleep(0.02)


async def healed(keeper: Keeper, killed: int) -> None:
    await until(lambda: keeper.state.pid not in (killed, 0) and keeper.state.phase is ProgramPhase.UP)


RUNS = "import pathlib, time; pathlib.Path('ready').touch(); time.sleep(60)"
FALLS = "import sys; sys.exit('out of biscuits')"
DEAF = "import pathlib, signal, time; signal.signal(15, signal.SIG_IGN); pathlib.Path('ready').touch(); time.sleep(60)"


async def test_a_program_that_never_works_is_given_up_with_the_end_of_its_log(tmp_path: Path) -> None:
    """Starting raises one problem that holds the program's last words."""
    keeper = Keeper(python_part(tmp_path, FALLS), lambda: None)
    with pytest.raises(RuntimeProblem, match="out of biscuits") as failed:
        await keeper.start()
    assert failed.value.code is ExitCode.START_FAILED
    await keeper.stop()


async def test_a_program_that_dies_is_started_again_and_counted(tmp_path: Path) -> None:
    """kill -9 leads to another process of the same program."""
    keeper = Keeper(python_part(tmp_path, RUNS), lambda: None)
    await keeper.start()
    first = keeper.state.pid
    os.kill(first, signal.SIGKILL)
    await healed(keeper, first)
    assert keeper.state.restarts == 1
    assert keeper.state.last_exit == -signal.SIGKILL
    await keeper.stop()
    assert keeper.state.phase == "stopped"


async def test_a_program_that_does_not_hear_is_killed_in_the_end(tmp_path: Path) -> None:
    """Stopping ends within the program's own limit, and no process is left."""
    keeper = Keeper(python_part(tmp_path, DEAF, stop_timeout_s=0.3), lambda: None)
    await keeper.start()
    pid = keeper.state.pid
    await keeper.stop()
    assert not psutil.pid_exists(pid)


async def test_stopping_before_a_program_works_ends_it(tmp_path: Path) -> None:
    """A stop during the start leaves no process."""
    keeper = Keeper(python_part(tmp_path, "import time; time.sleep(60)"), lambda: None)
    starting = asyncio.create_task(keeper.start())
    await until(lambda: keeper.state.pid != 0)
    pid = keeper.state.pid
    await keeper.stop()
    assert not psutil.pid_exists(pid)
    with pytest.raises(asyncio.CancelledError):
        await starting


async def test_workers_that_outlive_their_nginx_do_not_keep_the_port(tmp_path: Path) -> None:
    """After kill -9 of the master its workers still listen; they are ended, and the next master gets the port."""
    port = free_port()
    server = NginxServer(
        name="gateway",
        binary=find_nginx(os.environ),
        folder=tmp_path / "nginx",
        log_dir=tmp_path,
        port=port,
        log=tmp_path / "nginx.log",
        configuration=NGINX_CONF.format(folder=tmp_path / "nginx", port=port),
    )
    keeper = Keeper(
        Part(
            name="gateway",
            kind="nginx",
            ports={"gateway": port},
            describe=server.program,
            prepare=server.prepare,
            ready=lambda _: server.ready(),
        ),
        lambda: None,
    )
    await keeper.start()
    first = keeper.state.pid
    workers = psutil.Process(first).children()
    assert workers
    os.kill(first, signal.SIGKILL)
    await healed(keeper, first)
    assert not [worker for worker in workers if worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE]
    await keeper.stop()
