"""What a shell may put in the place of a half-written value. Says nothing when it cannot know: never an error."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from deploy.embedded.problems import RuntimeProblem


def services(incomplete: str) -> list[str]:
    """What `serve` takes."""
    from deploy.serve import SERVED

    return _beginning(SERVED, incomplete)


def programs(data: Path | None, incomplete: str) -> list[str]:
    """The programs that have a log in the data folder."""
    from deploy.commands.logs import log_files
    from deploy.embedded.system import EmbeddedSystem, data_folder

    try:
        found = log_files(EmbeddedSystem(data_folder(data)).layout.logs)
    except (RuntimeProblem, OSError):
        return []
    return _beginning(sorted({name for name, _ in found}), incomplete)


def scenes(incomplete: str) -> list[str]:
    """The scenes of the demo."""
    from deploy.demo import SCENES

    return _beginning((scene.name for scene in SCENES), incomplete)


def benchmarks(incomplete: str) -> list[str]:
    """The benchmarks by name."""
    from deploy.commands.bench import benchmarks as known

    return _beginning(known(), incomplete)


def _beginning(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]
