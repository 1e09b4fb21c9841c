"""`logs`: what the programs wrote, of one or of all, with the program's name before each line."""

from __future__ import annotations

import time
from pathlib import Path

from rich.markup import escape

from deploy.console import out, plain_words
from deploy.embedded.problems import ExitCode, RuntimeProblem
from deploy.embedded.system import EmbeddedSystem, data_folder

FOLLOW_POLL_S = 0.25
TAIL_MAX_BYTES = 4_000_000
CHUNK_BYTES = 1_000_000


def show(data: Path | None, program: str | None, follow: bool, lines: int) -> None:
    """Prints the ends of the logs, and what comes with `follow`."""
    with plain_words():
        folder = EmbeddedSystem(data_folder(data)).layout.logs
        files = log_files(folder)
        names = sorted({name for name, _ in files})
        if program is not None:
            files = [(name, path) for name, path in files if name == program]
            if not files:
                known = f"there are {', '.join(names)}" if names else "nothing was started there yet"
                raise RuntimeProblem(f"there is no log of {program!r} in {folder}: {known}.", ExitCode.USAGE)
        elif not files:
            raise RuntimeProblem(f"there are no logs in {folder}: nothing was started there yet.", ExitCode.NOT_RUNNING)
        prefixed = len({name for name, _ in files}) > 1
        offsets = {path: _print_tail(path, name if prefixed else "", lines) for name, path in files}
        while follow:
            time.sleep(FOLLOW_POLL_S)
            for name, path in files:
                offsets[path] = _print_from(path, name if prefixed else "", offsets[path])


def log_files(folder: Path) -> list[tuple[str, Path]]:
    """The logs with the programs that they belong to: a program may have a folder of its own beside its file."""
    own = [(path.stem, path) for path in sorted(folder.glob("*.log"))]
    inner = [(path.parent.name, path) for path in sorted(folder.glob("*/*.log"))]
    return own + inner


def _print_tail(path: Path, name: str, lines: int) -> int:
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - TAIL_MAX_BYTES))
        text = file.read().decode(errors="replace")
    for line in text.splitlines()[-lines:] if lines else []:
        _print(name, line)
    return size


def _print_from(path: Path, name: str, offset: int) -> int:
    size = path.stat().st_size if path.exists() else 0
    if size <= offset:
        return size  # nothing new, or emptied since
    with path.open("rb") as file:
        file.seek(offset)
        part = file.read(CHUNK_BYTES)
    whole = part[: part.rfind(b"\n") + 1]
    for line in whole.decode(errors="replace").splitlines():
        _print(name, line)
    return offset + len(whole)


def _print(name: str, line: str) -> None:
    prefix = f"[cyan]{escape(name):12}[/cyan] " if name else ""
    out.print(prefix + escape(line), soft_wrap=True, highlight=False)
