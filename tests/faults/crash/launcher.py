"""Starts service processes as `pawstay serve` does, from one parent that has imported everything: a start is a fork.

`python -m tests.faults.crash.launcher FD` speaks lines of JSON over the socket FD: `{"name", "serve", "environment",
"log", "control", "early_hints"}` starts a process; the answers are `{"started": name, "pid"}` and `{"ended": name,
"pid", "status"}`, where a signal's number counts negative. When the socket closes, all that was started is killed.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import random
import select
import signal
import socket
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

from deploy.embedded.privileges import before_exec
from tests.faults.crash.injection import Control, install
from tests.faults.crash.quick import EARLY_HINTS, LATE_HINTS, QUICK, hurry
from tests.faults.crash.recovery import RECOVERY
from tests.faults.crash.steps import STEPS

IMPORTED = (
    *("uvicorn", "uvloop", "deploy.serve", "coordinator.tc.app", "coordinator.tc.__main__", "services.kit.worker"),
    *("uvicorn.protocols.http.auto", "uvicorn.protocols.http.httptools_impl", "uvicorn.lifespan.on", "pottery"),
    *(f"services.{name}.app" for name in ("order", "capacity", "pet", "payment")),
    *(f"services.{name}.worker" for name in ("order", "notification")),
)
READ_BYTES = 65_536


def main(line: socket.socket) -> None:
    """Serves one harness until it closes its end."""
    for name in IMPORTED:
        importlib.import_module(name)
    if threading.active_count() != 1:
        raise RuntimeError("an import has started a thread: what is forked from here would miss it")
    gc.collect()
    gc.freeze()
    heard, told = os.pipe()
    os.set_blocking(told, False)
    signal.set_wakeup_fd(told)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    running: dict[int, str] = {}
    rest = b""
    while True:
        ready, _, _ = select.select([line, heard], [], [])
        if heard in ready:
            os.read(heard, READ_BYTES)
            _reap(line, running)
        if line in ready:
            received = line.recv(READ_BYTES)
            if not received:
                _kill_all(running)
                return
            *lines, rest = (rest + received).split(b"\n")
            for one in lines:
                order = json.loads(one)
                pid = _fork(order, (line.fileno(), heard, told))
                running[pid] = order["name"]
                _say(line, {"started": order["name"], "pid": pid})


def _kill_all(running: dict[int, str]) -> None:
    for pid in running:
        os.kill(pid, signal.SIGKILL)
    for pid in running:
        os.waitpid(pid, 0)


def _reap(line: socket.socket, running: dict[int, str]) -> None:
    while running:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        _say(line, {"ended": running.pop(pid), "pid": pid, "status": os.waitstatus_to_exitcode(status)})


def _say(line: socket.socket, what: dict[str, Any]) -> None:
    line.sendall(json.dumps(what).encode() + b"\n")


def _fork(order: dict[str, Any], inherited: tuple[int, ...]) -> int:
    prepare = before_exec(unprivileged=False, death_signal=signal.SIGKILL)
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        prepare()
        for descriptor in inherited:
            os.close(descriptor)
        log = os.open(order["log"], os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
        random.seed()  # else all processes would throw the parent's dice
        _serve(order)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _serve(order: dict[str, Any]) -> None:
    from deploy.serve import serve

    hurry(QUICK)
    hurry(EARLY_HINTS if order["early_hints"] else LATE_HINTS)
    process = order["name"].rsplit("/", 1)[-1]
    install(Control(Path(order["control"]), process), (*STEPS, *RECOVERY))
    os.environ.update(order["environment"])
    serve(order["serve"], dict(os.environ))


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])))
