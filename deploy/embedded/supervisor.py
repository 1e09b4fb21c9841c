"""The supervisor: one process that starts all programs of an embedded system, keeps them alive, and stops them.

SIGTERM or SIGINT stops everything. SIGHUP gives the services the settings in `run/overrides.json` and starts them anew.
When the supervisor itself is killed, the kernel ends its programs (Linux); what is left all the same is ended by the
next `up` or `down`, which find it in the state file.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

from deploy.embedded.binaries import find_binaries
from deploy.embedded.gateway import docs_folder, gateway_part
from deploy.embedded.keeper import Keeper, end_group
from deploy.embedded.layout import Layout
from deploy.embedded.ports import choose_ports
from deploy.embedded.problems import ExitCode, RuntimeProblem
from deploy.embedded.programs import ProcessRecord, Program, log_tail, stop_process
from deploy.embedded.provision import PLAN_VARIABLE, DatabasePlan, ProvisionPlan, write_plan
from deploy.embedded.state import Phase, SystemState, read_state, write_state
from deploy.embedded.topology import (
    DATABASES,
    DOCUMENTED_PORTS,
    POSTGRES_SERVERS,
    ROLES,
    SHARD_MAP,
    SHARDS,
    VALKEY,
    Topology,
    inherited_environment,
)
from services.catalog import SERVICES

PROVISION_TIMEOUT_S = 120.0
LOCK_WAIT_S = 5.0
LOCK_POLL_S = 0.05
LOG_MAX_BYTES = 20_000_000
LOG_CHECK_INTERVAL_S = 60.0
DOCS_ATTEMPTS_MAX = 5
DOCS_RETRY_S = 2.0


def supervise(layout: Layout, gateway_port: int, split: bool) -> int:
    """Runs the system until it is told to stop; an exit code. The reason of a failure is left in the state file."""
    layout.prepare()
    lock = _take(layout)
    end_leftovers(layout)
    me = ProcessRecord.of(os.getpid()) or ProcessRecord(os.getpid(), time.time())
    state = SystemState(
        split=split,
        gateway_url=f"http://127.0.0.1:{gateway_port}",
        supervisor_pid=me.pid,
        supervisor_started_at=me.started_at,
        since=time.time(),
    )
    write_state(layout.state_file, state)
    try:
        return asyncio.run(_Supervisor(layout, state).run(gateway_port, split))
    except RuntimeProblem as problem:
        state.phase, state.problem, state.problem_code = Phase.FAILED, str(problem), int(problem.code)
        write_state(layout.state_file, state)
        return int(problem.code)
    finally:
        os.close(lock)


def _take(layout: Layout) -> int:
    """Takes the folder; waits for a killed supervisor whose threads still hold it for a moment."""
    deadline = time.monotonic() + LOCK_WAIT_S
    while (lock := layout.lock()) is None:
        state = read_state(layout.state_file)
        if time.monotonic() > deadline or (state is not None and state.supervisor().process() is not None):
            raise RuntimeProblem(f"PawStay is already running in {layout.root}.", ExitCode.BUSY)
        time.sleep(LOCK_POLL_S)
    return lock


def end_leftovers(layout: Layout) -> list[str]:
    """Ends whatever a killed supervisor left running in this folder; returns the names.

    To be called by who holds the folder's lock, or knows that nobody does.
    """
    state = read_state(layout.state_file)
    if state is None:
        return []
    ended = []
    for program in reversed(state.programs):
        record = program.record()
        if record is None:
            continue
        lived = record.process() is not None
        if lived:
            ended.append(program.name)
            stop_process(record, signal.Signals(program.stop_signal), program.stop_timeout_s)
        elif record.replaced():
            continue  # the id is somebody else's by now, and so may be its group
        if end_group(record, folder=Path(program.cwd)) and not lived:
            ended.append(program.name)
    return ended


def rotate_logs(folder: Path, max_bytes: int = LOG_MAX_BYTES) -> None:
    """Keeps each log below a bound: the programs append, so a copy is taken and the file is emptied.

    What cannot be done now, on a full disk, is left for the next time; it never ends the one who asks.
    """
    for path in folder.rglob("*.log"):
        with contextlib.suppress(OSError):
            if path.stat().st_size > max_bytes:
                shutil.copyfile(path, path.with_suffix(".log.1"))
                os.truncate(path, 0)


class _Supervisor:
    """The life of one system, inside one event loop."""

    def __init__(self, layout: Layout, state: SystemState) -> None:
        self._layout = layout
        self._state = state
        self._began = time.monotonic()
        self._stop = asyncio.Event()
        self._reload = asyncio.Event()
        self._keepers: list[Keeper] = []
        self._background: set[asyncio.Task[None]] = set()

    async def run(self, gateway_port: int, split: bool) -> int:
        """Starts everything, waits to be told to stop, stops everything."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._reload.set)
        stopping = asyncio.create_task(self._stop.wait())
        starting = asyncio.create_task(self._start(gateway_port, split))
        try:
            await asyncio.wait({stopping, starting}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                topology = starting.result()
                self._in_background(self._rotate_logs())
                self._in_background(self._serve_reloads())
                self._in_background(self._write_docs(topology))
                await self._stop.wait()
            return int(ExitCode.OK)
        finally:
            for task in (stopping, starting, *self._background):
                task.cancel()
            await asyncio.gather(stopping, starting, *self._background, return_exceptions=True)
            await self._shut_down()

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _start(self, gateway_port: int, split: bool) -> Topology:
        topology = self._plan(gateway_port, split)
        self._step("Starting three PostgreSQL servers and Valkey")
        await self._bring_up([Keeper(part, self._changed) for part in topology.servers()])
        self._step("Bringing the databases to their newest form")
        await self._provision(topology)
        self._step("Starting the coordinator, the services, the worker and the gateway")
        parts = [*topology.processes(), gateway_part(topology)]
        await self._bring_up([Keeper(part, self._changed) for part in parts])
        self._state.up_after_s = round(time.monotonic() - self._began, 2)
        self._state.step = ""
        self._state.phase = Phase.UP
        self._changed()
        return topology

    def _plan(self, gateway_port: int, split: bool) -> Topology:
        layout = self._layout
        topology = Topology(
            layout=layout,
            binaries=find_binaries(os.environ),
            ports=choose_ports(gateway_port, DOCUMENTED_PORTS, layout.ports_file),
            gateway_port=gateway_port,
            split=split,
        )
        layout.overrides_file.unlink(missing_ok=True)
        services = [spec.name for spec in SERVICES]
        topology.secrets.ensure(services, [*ROLES, "postgres", VALKEY])
        return topology

    async def _bring_up(self, keepers: Sequence[Keeper]) -> None:
        """Starts some programs at the same time. Raises the first RuntimeProblem."""
        self._keepers += keepers
        self._state.programs += [keeper.state for keeper in keepers]
        await asyncio.gather(*(keeper.start() for keeper in keepers))

    async def _provision(self, topology: Topology) -> None:
        layout = self._layout
        file = layout.run / "provision.json"
        write_plan(file, provision_plan(topology))
        program = Program(
            name="provision",
            argv=(sys.executable, "-P", "-m", "deploy.embedded.provision"),
            log=layout.log_of("provision"),
            cwd=layout.run,
            env={**inherited_environment(), PLAN_VARIABLE: str(file)},
        )
        with program.log.open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *program.argv, stdout=log, stderr=log, **program.popen_arguments()
            )
        try:
            await asyncio.wait_for(process.wait(), PROVISION_TIMEOUT_S)
        except (TimeoutError, asyncio.CancelledError):
            process.kill()
            await process.wait()
            raise
        finally:
            file.unlink(missing_ok=True)
        if process.returncode != 0:
            raise RuntimeProblem(
                f"the databases could not be brought to their newest form (see {program.log});"
                f" its log ends with:\n{log_tail(program.log)}",
                ExitCode.START_FAILED,
            )

    async def _shut_down(self) -> None:
        """Stops in the reverse order: the gateway takes no more, then those who write, then where they write to."""
        self._state.phase = Phase.STOPPING
        self._changed()
        tiers: Sequence[Sequence[str]] = (
            ("nginx",),
            ("worker", "services"),
            ("coordinator",),
            ("valkey", "postgres"),
        )
        for kinds in tiers:
            await asyncio.gather(*(keeper.stop() for keeper in self._keepers if keeper.part.kind in kinds))
        self._state.phase = Phase.DOWN
        self._changed()

    async def _serve_reloads(self) -> None:
        while True:
            await self._reload.wait()
            self._reload.clear()
            await asyncio.gather(
                *(keeper.restart() for keeper in self._keepers if keeper.part.kind in ("services", "worker"))
            )
            self._state.settings_generation += 1
            self._changed()

    async def _rotate_logs(self) -> None:
        while True:
            await asyncio.to_thread(rotate_logs, self._layout.logs)
            await asyncio.sleep(LOG_CHECK_INTERVAL_S)

    async def _write_docs(self, topology: Topology) -> None:
        """The documentation page, from what the services say of themselves. The system works without it."""
        from gateway.docs import DocumentMissing, fetch_documents, write
        from gateway.openapi import merge

        for _ in range(DOCS_ATTEMPTS_MAX):
            try:
                documents = await fetch_documents({spec.name: topology.url_of(spec.name) for spec in SERVICES})
                await asyncio.to_thread(write, docs_folder(self._layout), merge(documents))
                return
            except DocumentMissing as error:
                print(f"documentation page: {error}", file=sys.stderr, flush=True)
                await asyncio.sleep(DOCS_RETRY_S)

    def _step(self, step: str) -> None:
        self._state.step = step
        self._changed()

    def _changed(self) -> None:
        with contextlib.suppress(OSError):  # a full disk must not end the supervisor; the next change writes again
            write_state(self._layout.state_file, self._state)


def provision_plan(topology: Topology) -> ProvisionPlan:
    """What has to be in the servers."""
    shard_map = next(database for database in DATABASES if database.name == SHARD_MAP)
    passwords: Mapping[str, str] = {role: topology.secrets.password(role) for role in ROLES}
    return ProvisionPlan(
        servers={server: topology.postgres(server).dsn() for server in POSTGRES_SERVERS},
        passwords=dict(passwords),
        databases=[
            DatabasePlan(d.server, d.name, d.role, d.service, topology.database_url(d, admin=True)) for d in DATABASES
        ],
        shards=list(SHARDS),
        shard_map_dsn=topology.database_url(shard_map, admin=True),
        shard_map_reader=shard_map.role,
    )
