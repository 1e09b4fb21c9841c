"""What the supervisor says about itself, in a file that every command reads."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

import msgspec

from deploy.embedded.layout import write_private
from deploy.embedded.programs import ProcessRecord

STATE_VERSION = 1


class Phase(StrEnum):
    """Where the whole system is in its life."""

    STARTING = "starting"
    UP = "up"
    STOPPING = "stopping"
    DOWN = "down"
    FAILED = "failed"


class ProgramPhase(StrEnum):
    """Where one program is in its life."""

    WAITING = "waiting"
    STARTING = "starting"
    UP = "up"
    RESTARTING = "restarting"
    STOPPED = "stopped"


class ProgramState(msgspec.Struct, kw_only=True):
    """One program: its process (0 when it has none), how often it was started again, and what ended it last."""

    name: str
    kind: str  # postgres, valkey, nginx, coordinator, services, worker
    phase: ProgramPhase = ProgramPhase.WAITING
    pid: int = 0
    started_at: float = 0.0  # seconds since 1970, as the system has it
    stop_signal: int = 15
    stop_timeout_s: float = 10.0
    cwd: str = ""
    ports: dict[str, int] = {}
    restarts: int = 0
    last_exit: int | None = None

    def record(self) -> ProcessRecord | None:
        """The process to look for, or None when it has none."""
        return ProcessRecord(self.pid, self.started_at) if self.pid else None


class SystemState(msgspec.Struct, kw_only=True):
    """The whole system."""

    version: int = STATE_VERSION
    phase: Phase = Phase.STARTING
    step: str = ""  # what a start is busy with, for a person
    problem: str = ""  # why it failed, for a person
    problem_code: int = 0
    gateway_url: str = ""
    split: bool = False
    supervisor_pid: int = 0
    supervisor_started_at: float = 0.0
    since: float = 0.0  # seconds since 1970
    up_after_s: float = 0.0
    settings_generation: int = 0  # how many changes of settings are in force
    programs: list[ProgramState] = []

    def supervisor(self) -> ProcessRecord:
        """The supervisor's process."""
        return ProcessRecord(self.supervisor_pid, self.supervisor_started_at)

    def program(self, name: str) -> ProgramState | None:
        """The program called `name`."""
        return next((program for program in self.programs if program.name == name), None)


def read_state(path: Path) -> SystemState | None:
    """The state as last written, or None when there is none that can be read."""
    try:
        state = msgspec.json.decode(path.read_bytes(), type=SystemState)
    except (OSError, msgspec.DecodeError):
        return None
    return state if state.version == STATE_VERSION else None


def write_state(path: Path, state: SystemState) -> None:
    """Replaces the state; a reader sees the old or the new one, never a part."""
    write_private(path, msgspec.json.format(msgspec.json.encode(state)).decode())
