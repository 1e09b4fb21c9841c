"""Runs the command line as a person does: in a process of its own, from another folder."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deploy.embedded.topology import CHECKOUT

COMMAND_TIMEOUT_S = 150


@dataclass(frozen=True)
class Said:
    """What a command answered: exit code, standard output, standard error."""

    code: int
    out: str
    err: str

    @property
    def text(self) -> str:
        """Both outputs as one line, whatever width they were wrapped at."""
        return " ".join(f"{self.out} {self.err}".split())


def pawstay(*arguments: str, folder: Path, environ: Mapping[str, str] | None = None) -> Said:
    """Runs `pawstay` with `arguments` in `folder` and returns what it said."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "deploy.cli", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT), "COLUMNS": "200", **(environ or {})},
        capture_output=True,
        text=True,
        timeout=COMMAND_TIMEOUT_S,
        check=False,
    )
    return Said(done.returncode, done.stdout, done.stderr)


def processes_below(folder: Path) -> list[str]:
    """The command lines of all processes that name `folder` or stand in it."""
    import psutil

    found = []
    for process in psutil.process_iter():
        try:
            line = " ".join(process.cmdline())
            if process.pid != os.getpid() and (str(folder) in line or str(folder) in process.cwd()):
                found.append(line)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found
