"""What a shell may put in the place of a half-written value. Says nothing when it cannot know: never an error."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from deploy.embedded.problems import RuntimeProblem

CALL_TIMEOUT_S = 1.0
"""How long a shell may wait for a running system."""


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


def unsettled(data: Path | None, incomplete: str) -> list[str]:
    """Transactions that wait for their resources, or for a person."""
    return [*_transactions(data, "quarantined", incomplete), *_transactions(data, "settling", incomplete)]


def quarantined(data: Path | None, incomplete: str) -> list[str]:
    """Transactions that wait for a person."""
    return _transactions(data, "quarantined", incomplete)


def _transactions(data: Path | None, settlement: str, incomplete: str) -> list[str]:
    import asyncio
    from dataclasses import replace

    from deploy.commands.transactions import coordinator

    try:
        calls = replace(coordinator(data), timeout_s=CALL_TIMEOUT_S)
        page = asyncio.run(calls.call("GET", f"/v1/transactions?settlement={settlement}"))
    except (RuntimeProblem, OSError):
        return []
    return _beginning((item["xid"] for item in page["items"]), incomplete)


def _beginning(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]
