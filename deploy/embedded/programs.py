"""Programs as values, and the one place that starts and stops them.

A running program is known by its process id *and* the instant of its start: an id alone may have been given to
somebody else since, and a stranger must never be signalled.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import psutil

from deploy.embedded.privileges import before_exec
from deploy.embedded.problems import ExitCode, RuntimeProblem

READY_POLL_S = 0.02
STOP_TIMEOUT_S = 10.0
KILL_TIMEOUT_S = 5.0
START_TIME_SLACK_S = 0.05
LOG_TAIL_BYTES = 8000
LOG_TAIL_LINES = 6


@dataclass(frozen=True)
class Program:
    """What to run and how to stop it. `stop_signal` asks it to end in good order, in at most `stop_timeout_s`."""

    name: str
    argv: tuple[str, ...]
    log: Path
    cwd: Path
    env: Mapping[str, str] | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    stop_timeout_s: float = STOP_TIMEOUT_S
    unprivileged: bool = False

    def popen_arguments(self) -> dict[str, Any]:
        """The keyword arguments for `subprocess.Popen` and `asyncio.create_subprocess_exec` but for the output.

        The child has a session of its own (a Ctrl-C reaches the supervisor only) and dies with its parent.
        """
        return {
            "cwd": self.cwd,
            "env": dict(self.env) if self.env is not None else None,
            "stdin": subprocess.DEVNULL,
            "start_new_session": True,
            "preexec_fn": before_exec(unprivileged=self.unprivileged, death_signal=self.stop_signal),
        }


class Server(Protocol):
    """A server of the embedded runtime: PostgreSQL, Valkey or Nginx."""

    def prepare(self) -> None:
        """Makes its folder and configuration; does nothing that is done already. Raises RuntimeProblem."""

    def program(self) -> Program:
        """How it is run."""

    def ready(self) -> bool:
        """Whether it answers, asked without waiting."""


@dataclass(frozen=True)
class ProcessRecord:
    """A process as it is remembered in a file: its id and the instant of its start, in seconds since 1970."""

    pid: int
    started_at: float

    @classmethod
    def of(cls, pid: int) -> ProcessRecord | None:
        """The record of a living process, or None."""
        try:
            return cls(pid=pid, started_at=psutil.Process(pid).create_time())
        except psutil.NoSuchProcess:
            return None

    def process(self) -> psutil.Process | None:
        """The process, if it is alive and still the one that was recorded."""
        try:
            process = psutil.Process(self.pid)
            if self._differs_from(process):
                return None
            return None if process.status() == psutil.STATUS_ZOMBIE else process
        except psutil.NoSuchProcess:
            return None

    def replaced(self) -> bool:
        """Whether the id belongs to another process by now. A dead one that nobody reaped yet is still the same."""
        try:
            return self._differs_from(psutil.Process(self.pid))
        except psutil.NoSuchProcess:
            return False

    def _differs_from(self, process: psutil.Process) -> bool:
        return bool(abs(process.create_time() - self.started_at) > START_TIME_SLACK_S)


def start(program: Program) -> subprocess.Popen[bytes]:
    """Starts `program`; its output is appended to its log. Raises RuntimeProblem when it cannot be executed.

    To be called from a thread that lives as long as the program shall (see `before_exec`).
    """
    program.log.parent.mkdir(parents=True, exist_ok=True)
    with program.log.open("ab") as log:
        try:
            return subprocess.Popen(program.argv, stdout=log, stderr=subprocess.STDOUT, **program.popen_arguments())
        except (OSError, subprocess.SubprocessError) as error:
            raise RuntimeProblem(f"{program.name} cannot be started: {error}.", ExitCode.START_FAILED) from error


def stop_process(record: ProcessRecord, stop_signal: signal.Signals, timeout_s: float) -> bool:
    """Asks a process to end, and kills it when it has not after `timeout_s`. True when it obeyed.

    A dead process that nobody reaps counts as gone.
    """
    process = record.process()
    if process is None:
        return True
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(stop_signal)
    if _gone_within(record, timeout_s):
        return True
    with contextlib.suppress(psutil.NoSuchProcess):
        process.kill()
    _gone_within(record, KILL_TIMEOUT_S)
    return False


def _gone_within(record: ProcessRecord, timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while record.process() is not None:
        if time.monotonic() > deadline:
            return False
        time.sleep(READY_POLL_S)
    return True


def log_tail(path: Path) -> str:
    """The last lines of a log, or nothing when there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - LOG_TAIL_BYTES))
            lines = file.read().decode(errors="replace").strip().splitlines()
    except OSError:
        return ""
    return "\n".join(lines[-LOG_TAIL_LINES:])


@dataclass
class Running:
    """A server that this process started itself: used by tests, and wherever no supervisor is needed."""

    server: Server
    program: Program
    popen: subprocess.Popen[bytes] = field(repr=False)

    @classmethod
    def start(cls, server: Server, timeout_s: float = 30.0) -> Running:
        """Prepares and starts `server` and returns when it answers. Raises RuntimeProblem with the end of its log."""
        server.prepare()
        program = server.program()
        running = cls(server, program, start(program))
        deadline = time.monotonic() + timeout_s
        while not server.ready():
            if running.popen.poll() is not None or time.monotonic() > deadline:
                running.stop()
                raise RuntimeProblem(
                    f"{program.name} did not come up; the end of its log is:\n{log_tail(program.log)}",
                    ExitCode.START_FAILED,
                )
            time.sleep(READY_POLL_S)
        return running

    def kill(self) -> None:
        """Ends the server at once, as a crash would, and waits until it is gone."""
        self.popen.kill()
        self.popen.wait()

    def stop(self) -> None:
        """Stops the server in good order; does nothing when it is gone."""
        if self.popen.poll() is None:
            self.popen.send_signal(self.program.stop_signal)
            try:
                self.popen.wait(self.program.stop_timeout_s)
            except subprocess.TimeoutExpired:
                self.kill()
