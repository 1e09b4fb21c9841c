"""The processes of a cell as its supervisor sees them: started, started again when they end, stopped, held still."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploy.embedded.privileges import before_exec
from deploy.embedded.topology import CHECKOUT, inherited_environment
from tests.support.system import eventually

READY_WITHIN_S = 60.0
POLL_S = 0.02


@dataclass
class Child:
    """One process: how it is started, and what became of it so far."""

    order: dict[str, Any]
    ready: Callable[[int], Awaitable[bool]]
    pid: int = 0
    ends: list[int] = field(default_factory=list)
    wanted: bool = True


class Launcher:
    """The parent of all processes, and the keeper of each."""

    def __init__(self) -> None:
        self._children: dict[str, Child] = {}
        self._writer: asyncio.StreamWriter | None = None

    @asynccontextmanager
    async def running(self, log: Path) -> AsyncIterator[Launcher]:
        """The launcher while it runs; with it end all that it started."""
        ours, theirs = socket.socketpair()
        with log.open("ab") as out:
            parent = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "tests.faults.crash.launcher", str(theirs.fileno())),
                pass_fds=[theirs.fileno()],
                cwd=CHECKOUT,
                env=inherited_environment(),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
                preexec_fn=before_exec(unprivileged=False, death_signal=signal.SIGKILL),
            )
        theirs.close()
        reader, self._writer = await asyncio.open_unix_connection(sock=ours)
        listening = asyncio.create_task(self._listen(reader))
        try:
            yield self
        finally:
            for child in self._children.values():
                child.wanted = False
            self._writer.close()
            await parent.wait()
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)

    def start(self, order: dict[str, Any], ready: Callable[[int], Awaitable[bool]]) -> None:
        """Starts a process and keeps it alive; `ready` says of a process id whether it works."""
        self._children[order["name"]] = Child(order, ready)
        self._say(order)

    async def works(self, name: str) -> None:
        """Returns when a process works. Raises TimeoutError."""
        child = self._children[name]

        async def ready() -> bool:
            return bool(child.pid) and await child.ready(child.pid)

        await eventually(ready, timeout_s=READY_WITHIN_S, pause_s=POLL_S)

    def ends(self, name: str) -> list[int]:
        """How a process ended so far: exit codes, signals as negative numbers."""
        return list(self._children[name].ends)

    def end(self, name: str) -> None:
        """Ends a process for good."""
        self._children[name].wanted = False
        self._signal(name, signal.SIGKILL)

    def hold(self, name: str) -> None:
        """Stops a process for a while, in the middle of whatever it does."""
        self._signal(name, signal.SIGSTOP)

    def let_go(self, name: str) -> None:
        """Lets it go on."""
        self._signal(name, signal.SIGCONT)

    def _signal(self, name: str, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            if pid := self._children[name].pid:
                os.kill(pid, number)

    def _say(self, order: dict[str, Any]) -> None:
        assert self._writer is not None
        self._writer.write(json.dumps(order).encode() + b"\n")

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        while line := await reader.readline():
            said = json.loads(line)
            if "started" in said:
                self._children[said["started"]].pid = said["pid"]
                continue
            child = self._children[said["ended"]]
            child.pid = 0
            child.ends.append(said["status"])
            if child.wanted:
                self._say(child.order)


async def http_works(port: int) -> bool:
    """Whether a service on this port says that it is ready."""
    try:
        async with asyncio.timeout(2):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(b"GET /ready HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n")
                return (await reader.readline()).split(b" ")[1:2] == [b"200"]
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False


def as_environment(values: Mapping[str, Any]) -> dict[str, str]:
    """Settings as the PAWSTAY_ variables that they are read from."""
    environment = {}
    for key, value in values.items():
        if value is not None:
            text = json.dumps(value) if isinstance(value, dict | list | bool) else str(value)
            environment[f"PAWSTAY_{key.upper()}"] = text
    return environment
