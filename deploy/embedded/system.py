"""One embedded system from outside: start it, stop it, look at it. What the command line and the demo use."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.embedded.binaries import Binaries
from deploy.embedded.layout import Layout, write_private
from deploy.embedded.ports import DEFAULT_GATEWAY_PORT, check_gateway_port
from deploy.embedded.privileges import before_exec
from deploy.embedded.problems import ExitCode, RuntimeProblem
from deploy.embedded.programs import ProcessRecord, stop_process
from deploy.embedded.secrets import COORDINATOR
from deploy.embedded.state import Phase, ProgramPhase, SystemState, read_state
from deploy.embedded.topology import CHECKOUT, DATABASES, Topology, inherited_environment
from deploy.operator_calls import CoordinatorCalls

DATA_VARIABLE = "PAWSTAY_DATA"
START_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 90.0
RELOAD_TIMEOUT_S = 90.0
POLL_S = 0.05
SUPERVISOR_LOG = "supervisor"


def data_folder(named: Path | None, environ: Mapping[str, str] = os.environ) -> Path:
    """The data folder: the one named, else PAWSTAY_DATA, else `data` in the checkout. Absolute, links resolved.

    Raises RuntimeProblem for one that this user may not look into: whether something runs there cannot be said.
    """
    chosen = named or (Path(environ[DATA_VARIABLE]) if environ.get(DATA_VARIABLE) else CHECKOUT / "data")
    folder = chosen.expanduser().resolve()
    Layout(folder).check_access()
    return folder


@dataclass(frozen=True)
class EmbeddedSystem:
    """The system in one data folder, running or not."""

    folder: Path

    @property
    def layout(self) -> Layout:
        """What lies where."""
        return Layout(self.folder)

    def state(self) -> SystemState | None:
        """What the supervisor last said, or None when none lives. A dead supervisor's words are not repeated."""
        state = read_state(self.layout.state_file)
        if state is None or state.supervisor().process() is None:
            return None
        return state

    def running(self) -> SystemState:
        """The state of a system that is up. Raises RuntimeProblem when it is not."""
        state = self.state()
        if state is None or state.phase not in (Phase.UP, Phase.STARTING):
            raise RuntimeProblem(
                f"PawStay is not running in {self.folder}: start it with 'pawstay up'.", ExitCode.NOT_RUNNING
            )
        return state

    def spawn(self, port: int, split: bool, *, detached: bool) -> subprocess.Popen[bytes]:
        """Starts a supervisor; unless it is `detached`, it ends with this process. Raises RuntimeProblem.

        What can be refused at once is refused here, before anything is started.
        """
        self.layout.prepare()
        if not self.layout.locked():
            from deploy.embedded.supervisor import end_leftovers  # here: it imports what only a start needs

            end_leftovers(self.layout)
            check_gateway_port(port)
        command = [sys.executable, "-P", "-m", "deploy.cli", "supervise", "--data", str(self.folder)]
        command += ["--port", str(port), *(["--split"] if split else [])]
        with self.layout.log_of(SUPERVISOR_LOG).open("ab") as log:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd=self.layout.run,
                env=inherited_environment(),
                preexec_fn=before_exec(unprivileged=False, death_signal=None if detached else signal.SIGTERM),
            )

    def wait_up(self, supervisor: subprocess.Popen[bytes], step: Callable[[str], None] = lambda _: None) -> SystemState:
        """Returns when everything works; tells `step` what the start is busy with. Raises RuntimeProblem."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            state = read_state(self.layout.state_file)
            ours = state is not None and state.supervisor_pid == supervisor.pid
            if state is not None and ours and state.phase is Phase.UP:
                return state
            if state is not None and ours and state.step:
                step(state.step)
            if supervisor.poll() is not None:
                state = read_state(self.layout.state_file)
                if state is not None and state.supervisor_pid == supervisor.pid and state.problem:
                    raise RuntimeProblem(state.problem, ExitCode(state.problem_code))
                raise RuntimeProblem(
                    f"PawStay did not start; {self.layout.log_of(SUPERVISOR_LOG)} says why.", ExitCode.START_FAILED
                )
            time.sleep(POLL_S)
        supervisor.terminate()
        raise RuntimeProblem(f"PawStay was not up after {START_TIMEOUT_S:.0f} s.", ExitCode.START_FAILED)

    def up(
        self,
        port: int = DEFAULT_GATEWAY_PORT,
        *,
        split: bool = False,
        detached: bool = True,
        step: Callable[[str], None] = lambda _: None,
    ) -> SystemState:
        """Starts the system in the background and returns when it works. Raises RuntimeProblem.

        Unless it is `detached`, it ends with this process, however that ends (Linux).
        """
        return self.wait_up(self.spawn(port, split, detached=detached), step)

    def down(self) -> bool:
        """Stops everything, also what a killed supervisor left behind. False when nothing was running."""
        self.layout.check_version()
        if not self.folder.exists():
            return False
        stopped = False
        deadline = time.monotonic() + STOP_TIMEOUT_S
        # The folder may be held by a supervisor that has not written its state yet, or by the last threads of a
        # killed one: both are a matter of a moment.
        while self.state() is not None or self.layout.locked():
            state = self.state()
            if state is not None:
                stop_process(state.supervisor(), signal.SIGTERM, STOP_TIMEOUT_S)
                stopped = True
            if time.monotonic() > deadline:
                raise RuntimeProblem(f"another command is at work in {self.folder}: try again.", ExitCode.BUSY)
            time.sleep(POLL_S)
        if not self.layout.state_file.exists():
            return stopped
        from deploy.embedded.supervisor import end_leftovers  # here: it imports what only a start needs

        return bool(end_leftovers(self.layout)) or stopped

    def topology(self) -> Topology:
        """How the running system is put together. Raises RuntimeProblem when it is not running."""
        state = self.running()
        ports = {name: port for program in state.programs for name, port in program.ports.items()}
        nowhere = Path(os.devnull)  # nothing is started from here
        return Topology(
            layout=self.layout,
            binaries=Binaries(nowhere, nowhere, nowhere),
            ports=ports,
            gateway_port=int(state.gateway_url.rsplit(":", 1)[1]),
            split=state.split,
        )

    # What a story told against the system needs to reach behind the gateway.

    @property
    def gateway_url(self) -> str:
        """Where people reach it."""
        return self.running().gateway_url

    @property
    def admin_password(self) -> str:
        """The password of the first administrator."""
        return self.topology().secrets.admin_password_file.read_text().strip()

    def databases(self) -> Mapping[str, str]:
        """Every service's database (`capacity`, `order@shard-0`, ...) with an administrator's DSN."""
        topology = self.topology()
        return {d.resource: topology.database_url(d, admin=True) for d in DATABASES if d.service is not None}

    def pid_of(self, program: str) -> int:
        """The process id of a program that runs now. Raises LookupError when it does not."""
        found = self.running().program(program)
        if found is None or not found.pid:
            raise LookupError(f"{program} has no process at the moment")
        return found.pid

    def coordinator_pid(self) -> int:
        """The process id of the coordinator that runs now."""
        return self.pid_of(COORDINATOR)

    def kill(self, program: str) -> ProcessRecord:
        """Kills a program as a crash would (SIGKILL); the supervisor starts it again."""
        pid = self.pid_of(program)
        record = ProcessRecord.of(pid) or ProcessRecord(pid, time.time())
        os.kill(pid, signal.SIGKILL)
        return record

    def wait_healed(self, program: str, killed: ProcessRecord, timeout_s: float = RELOAD_TIMEOUT_S) -> None:
        """Returns when `program` works again in a process other than `killed`. Raises RuntimeProblem."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            state = self.state()
            found = state.program(program) if state is not None else None
            if found is not None and found.phase is ProgramPhase.UP and found.record() not in (None, killed):
                return
            time.sleep(POLL_S)
        raise RuntimeProblem(f"{program} did not come back within {timeout_s:.0f} s.", ExitCode.START_FAILED)

    def coordinator_calls(self) -> CoordinatorCalls:
        """The running coordinator, as an operator calls it. Raises RuntimeProblem when nothing runs."""
        topology = self.topology()
        token = topology.secrets.operator_token(COORDINATOR)
        return CoordinatorCalls(topology.url_of(COORDINATOR), token, "look at 'pawstay logs coordinator'")

    async def coordinator_json(self, path: str) -> Any:
        """What the coordinator answers an operator at `path`. Raises RuntimeProblem with its own words."""
        return await self.coordinator_calls().call("GET", path)

    async def restart_with(self, environment: Mapping[str, str]) -> None:
        """Starts the service processes anew with `environment` on top of theirs; they work when it returns.

        An empty mapping takes back what an earlier call changed. Raises RuntimeProblem when they do not come back.
        """
        state = self.running()
        write_private(self.layout.overrides_file, json.dumps(dict(environment)))
        os.kill(state.supervisor_pid, signal.SIGHUP)
        deadline = time.monotonic() + RELOAD_TIMEOUT_S
        while self.running().settings_generation <= state.settings_generation:
            if time.monotonic() > deadline:
                raise RuntimeProblem("the services did not come back with their new settings.", ExitCode.START_FAILED)
            await asyncio.sleep(POLL_S)
