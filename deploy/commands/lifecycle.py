"""`up`, `down`, `status`: the life of an embedded system."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.markup import escape

from deploy.console import err, out, plain_words, print_json, progress, table
from deploy.embedded.problems import ExitCode
from deploy.embedded.state import Phase, ProgramPhase, SystemState
from deploy.embedded.system import EmbeddedSystem, data_folder

START_WAIT_S = 180.0
STOP_WAIT_S = 90.0
POLL_S = 0.1


def up(data: Path | None, port: int, detach: bool, split: bool) -> None:
    """Starts the system; says so when it is up already."""
    with plain_words():
        system = EmbeddedSystem(data_folder(data))
        with progress("Looking for what runs") as step:
            up_already = _is_up_already(system, step)
        if up_already:
            return
        supervisor = system.spawn(port, split, detached=detach)
        try:
            with progress("Starting PawStay") as step:
                state = system.wait_up(supervisor, step)
            _say_up(system, state, detach)
            if not detach:
                raise SystemExit(supervisor.wait())
        except KeyboardInterrupt:
            with progress("Stopping PawStay"):
                supervisor.terminate()
                supervisor.wait(STOP_WAIT_S)
            err.print("PawStay is down.")


def _is_up_already(system: EmbeddedSystem, step: Callable[[str], None]) -> bool:
    """Says it and returns True when it is; waits for one that is just starting or stopping."""
    deadline = time.monotonic() + START_WAIT_S
    while (state := system.state()) is not None and time.monotonic() < deadline:
        if state.phase is Phase.UP:
            out.print(
                f"PawStay is already up at {state.gateway_url} (data in {escape(str(system.folder))}).", soft_wrap=True
            )
            return True
        step(f"PawStay is {state.phase} in {system.folder} already: waiting for it")
        time.sleep(POLL_S)
    return False


def _say_up(system: EmbeddedSystem, state: SystemState, detach: bool) -> None:
    folder = escape(str(system.folder))
    out.print(
        f"PawStay is up at [bold]{state.gateway_url}[/bold] after {state.up_after_s:.1f} s"
        f" (documentation at {state.gateway_url}/docs, data in {folder}).",
        soft_wrap=True,
    )
    out.print(
        f"The administrator is [bold]admin[/bold]; the password is in {folder}/secrets/admin-password.", soft_wrap=True
    )
    out.print("Stop it with 'pawstay down'." if detach else "Stop it with Ctrl-C.")


def down(data: Path | None) -> None:
    """Stops the system; says so when nothing runs."""
    with plain_words():
        system = EmbeddedSystem(data_folder(data))
        with progress("Stopping PawStay"):
            stopped = system.down()
        out.print("PawStay is down." if stopped else f"Nothing runs in {escape(str(system.folder))}.", soft_wrap=True)


def supervise(data: Path | None, port: int, split: bool) -> None:
    """Is the supervisor until it is told to stop."""
    with plain_words():
        from deploy.embedded.supervisor import supervise as run

        raise SystemExit(run(EmbeddedSystem(data_folder(data)).layout, port, split))


def status(data: Path | None, as_json: bool) -> None:
    """Shows the programs. Exit code 3 when nothing runs, 1 when something does not work."""
    with plain_words():
        system = EmbeddedSystem(data_folder(data))
        state = system.state()
        if state is None or state.phase is Phase.DOWN:
            if as_json:
                print_json({"phase": Phase.DOWN, "data": str(system.folder), "programs": []})
            else:
                out.print(f"Nothing runs in {escape(str(system.folder))}: start it with 'pawstay up'.", soft_wrap=True)
            raise SystemExit(int(ExitCode.NOT_RUNNING))
        programs = [_program(program) for program in state.programs]
        if as_json:
            print_json(
                {
                    "phase": state.phase,
                    "gateway_url": state.gateway_url,
                    "data": str(system.folder),
                    "split": state.split,
                    "supervisor_pid": state.supervisor_pid,
                    "up_after_s": state.up_after_s,
                    "programs": programs,
                }
            )
        else:
            _print_status(system, state, programs)
        works = state.phase is Phase.UP and all(program["phase"] == ProgramPhase.UP for program in programs)
        raise SystemExit(int(ExitCode.OK if works else ExitCode.FAILED))


def _program(program: Any) -> dict[str, Any]:
    record = program.record()
    process = record.process() if record is not None else None
    return {
        "name": program.name,
        "kind": program.kind,
        "phase": program.phase,
        "pid": program.pid,
        "ports": program.ports,
        "restarts": program.restarts,
        "last_exit": program.last_exit,
        "up_s": round(time.time() - program.started_at, 1) if process is not None else 0.0,
        "memory_mb": process.memory_info().rss // 1_000_000 if process is not None else 0,
    }


def _print_status(system: EmbeddedSystem, state: SystemState, programs: list[dict[str, Any]]) -> None:
    step = f": {state.step}" if state.step else ""
    out.print(
        f"PawStay is {state.phase}{escape(step)} at {state.gateway_url} (data in {escape(str(system.folder))}).",
        soft_wrap=True,
    )
    shown = table("program", "state", "pid", "ports", "running for", "memory", "restarts")
    for program in programs:
        ports = ", ".join(str(port) for port in program["ports"].values())
        colour = "green" if program["phase"] == ProgramPhase.UP else "yellow"
        shown.add_row(
            program["name"],
            f"[{colour}]{program['phase']}[/{colour}]",
            str(program["pid"] or ""),
            ports if len(program["ports"]) < 4 else f"{min(program['ports'].values())} ... ({len(program['ports'])})",
            str(timedelta(seconds=int(program["up_s"]))),
            f"{program['memory_mb']} MB",
            str(program["restarts"]),
        )
    out.print(shown)
