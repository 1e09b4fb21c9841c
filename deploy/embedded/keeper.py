"""Keeps one program alive: starts it, waits until it works, starts it again when it ends, stops it in good order."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from deploy.embedded.problems import ExitCode, RuntimeProblem
from deploy.embedded.programs import START_TIME_SLACK_S, ProcessRecord, Program, log_tail
from deploy.embedded.state import ProgramPhase, ProgramState
from deploy.embedded.topology import Part

READY_POLL_S = 0.05
READY_TIMEOUT_S = 60.0
GROUP_GONE_WITHIN_S = 5.0
"""A program that does not work after so long is started anew."""

FIRST_START_ATTEMPTS_MAX = 4
"""A program that never worked is given up after so many starts; one that did is started again for ever."""

RESTART_DELAY_MIN_S = 0.1
RESTART_DELAY_MAX_S = 10.0
STEADY_AFTER_S = 30.0
"""A program that worked for so long is forgiven its earlier ends."""


def restart_delay_s(failures: int) -> float:
    """How long to wait before the next start after `failures` ends in a row: doubled each time, bounded."""
    return min(RESTART_DELAY_MAX_S, RESTART_DELAY_MIN_S * 2.0 ** min(failures, 16))


class Keeper:
    """One program under care. `changed` is called whenever its state is another."""

    def __init__(self, part: Part, changed: Callable[[], None]) -> None:
        self.part = part
        self.state = ProgramState(name=part.name, kind=part.kind, ports=dict(part.ports))
        self._changed = changed
        self._process: asyncio.subprocess.Process | None = None
        self._program: Program | None = None
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._up: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def start(self) -> None:
        """Starts the program and returns when it works. Raises RuntimeProblem with the end of its log."""
        self._task = asyncio.create_task(self._keep(), name=f"keep {self.part.name}")
        await asyncio.shield(self._up)

    async def wait_up(self) -> None:
        """Returns when the program works (again)."""
        await asyncio.shield(self._up)

    async def _keep(self) -> None:
        failures, ever_up = 0, False
        while not self._stop.is_set():
            began = time.monotonic()
            problem = None
            try:
                await self._run_once()
                ever_up = True
            except RuntimeProblem as error:
                problem = error
            except OSError as error:
                problem = RuntimeProblem(f"{self.part.name} cannot be started: {error}.", ExitCode.START_FAILED)
            if self._stop.is_set():
                break
            failures = 0 if time.monotonic() - began > STEADY_AFTER_S else failures + 1
            if problem is not None and not ever_up and failures >= FIRST_START_ATTEMPTS_MAX:
                self._up.set_exception(problem)
                return
            self.state.restarts += 1
            self._set(ProgramPhase.RESTARTING)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), restart_delay_s(failures - 1))

    async def _run_once(self) -> None:
        """One life of the program, from its preparation to its end. Raises RuntimeProblem when it never worked."""
        await asyncio.to_thread(self.part.prepare)
        if self._stop.is_set():
            return
        program = self._program = self.part.describe()
        process = self._process = await self._spawn(program)
        record = ProcessRecord.of(process.pid) or ProcessRecord(process.pid, time.time())
        self.state.started_at = record.started_at
        self.state.pid = process.pid
        self.state.stop_signal, self.state.stop_timeout_s = int(program.stop_signal), program.stop_timeout_s
        self.state.cwd = str(program.cwd)
        self._set(ProgramPhase.STARTING)
        worked = await self._wait_ready(process)
        if worked:
            self._set(ProgramPhase.UP)
            if not self._up.done():
                self._up.set_result(None)
            await process.wait()
        else:
            await self._end(process)
        ended = time.time()
        self.state.last_exit = process.returncode
        self.state.pid = 0
        if not self._stop.is_set() and self._up.done() and self._up.exception() is None:
            self._up = asyncio.get_running_loop().create_future()
        await asyncio.to_thread(end_group, record, ended)
        if not worked and not self._stop.is_set():
            raise RuntimeProblem(
                f"{program.name} did not come up (see {program.log}); its log ends with:\n{log_tail(program.log)}",
                ExitCode.START_FAILED,
            )

    async def _spawn(self, program: Program) -> asyncio.subprocess.Process:
        program.log.parent.mkdir(parents=True, exist_ok=True)
        with program.log.open("ab") as log:
            try:
                return await asyncio.create_subprocess_exec(
                    *program.argv, stdout=log, stderr=subprocess.STDOUT, **program.popen_arguments()
                )
            except subprocess.SubprocessError as error:
                raise RuntimeProblem(f"{program.name} cannot be started: {error}.", ExitCode.START_FAILED) from error

    async def _wait_ready(self, process: asyncio.subprocess.Process) -> bool:
        deadline = time.monotonic() + READY_TIMEOUT_S
        while process.returncode is None and not self._stop.is_set():
            if await asyncio.to_thread(self.part.ready, process.pid):
                return process.returncode is None
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(READY_POLL_S)
        return False

    def _set(self, phase: ProgramPhase) -> None:
        self.state.phase = phase
        self._changed()

    async def stop(self) -> None:
        """Stops the program for good; returns when it is gone."""
        self._stop.set()
        # A life that is just beginning sees the event and ends its process itself.
        if self._process is not None:
            await self._end(self._process)
        if self._task is not None:
            await self._task
        if not self._up.done():
            self._up.cancel()
        elif not self._up.cancelled():
            self._up.exception()  # seen: nobody else may be waiting for it
        self.state.pid = 0
        self._set(ProgramPhase.STOPPED)

    async def restart(self) -> None:
        """Ends the running process in good order; its successor is described anew. Returns when that works."""
        process = self._process
        if process is not None and process.returncode is None:
            if self._up.done():
                self._up = asyncio.get_running_loop().create_future()
            await self._end(process)
        await self.wait_up()

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        program = self._program
        if program is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(program.stop_signal)
        try:
            await asyncio.wait_for(process.wait(), program.stop_timeout_s)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


def end_group(record: ProcessRecord, ended_at: float | None = None, folder: Path | None = None) -> int:
    """Kills what a dead process left of its process group, such as Nginx's workers; returns how many it killed.

    They are gone when it returns, and with them the ports that they held.

    Only processes that began while their leader lived (it began at `record.started_at` and ended at `ended_at`) and,
    with `folder`, that stand in it are meant: the number of the group may have been given away since.
    """
    killed = []
    slack_s = START_TIME_SLACK_S
    for process in psutil.process_iter():
        try:
            if process.pid == record.pid or os.getpgid(process.pid) != record.pid:
                continue
            began = process.create_time()
            if began < record.started_at - slack_s or (ended_at is not None and began > ended_at + slack_s):
                continue
            if folder is not None and Path(process.cwd()) != folder.resolve():
                continue
            process.send_signal(signal.SIGKILL)
            killed.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, ProcessLookupError, PermissionError):
            continue
    deadline = time.monotonic() + GROUP_GONE_WITHIN_S
    while any(_holds_on(process) for process in killed) and time.monotonic() < deadline:
        time.sleep(READY_POLL_S)
    return len(killed)


def _holds_on(process: psutil.Process) -> bool:
    """Whether a killed process still has its files and ports: one that nobody reaps has not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
