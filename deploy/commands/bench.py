"""`bench`: runs what lies in `tests/benchmarks/`.

A benchmark is a Python file there that, run as a program, prints one JSON object on standard output:
`{"name", "figures": {figure: number}, "goals": {figure: [">=" or "<=", number]}, "runs", "machine"}`. Its name is the
file's, with hyphens for underscores. What it wants to say besides goes to standard error.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.markup import escape

from deploy.console import err, out, plain_words, progress, table
from deploy.embedded.problems import ExitCode, RuntimeProblem
from deploy.embedded.topology import CHECKOUT, inherited_environment

FOLDER = CHECKOUT / "tests" / "benchmarks"
BENCHMARK_TIMEOUT_S = 1800


def run(names: list[str], as_json: bool) -> None:
    """Runs the named benchmarks, or all; exit code 1 when a goal is missed. `as_json`: one object a line."""
    with plain_words():
        known = benchmarks()
        unknown = [name for name in names if name not in known]
        if unknown:
            there = f"there are {', '.join(known)}" if known else "there is none yet"
            raise RuntimeProblem(f"there is no benchmark {', '.join(unknown)}: {there}.", ExitCode.USAGE)
        missed = False
        for name in names or list(known):
            with progress(f"Measuring {name}"):
                result = measure(known[name])
            if as_json:
                print(json.dumps(result, ensure_ascii=False), flush=True)
            else:
                _print(result)
            missed = missed or any(not reached(result, figure) for figure in result.get("goals", {}))
        raise SystemExit(int(ExitCode.FAILED if missed else ExitCode.OK))


def benchmarks() -> dict[str, Path]:
    """The benchmarks by name."""
    files = sorted(path for path in FOLDER.glob("*.py") if not path.name.startswith("_"))
    return {path.stem.replace("_", "-"): path for path in files}


def measure(path: Path) -> dict[str, Any]:
    """What one benchmark found. Raises RuntimeProblem when it fails or prints something else."""
    done = subprocess.run(
        [sys.executable, "-P", str(path)],
        cwd=CHECKOUT,
        env=inherited_environment(),
        stdout=subprocess.PIPE,
        text=True,
        timeout=BENCHMARK_TIMEOUT_S,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeProblem(f"{path.name} failed with exit code {done.returncode}.", ExitCode.FAILED)
    try:
        result = json.loads(done.stdout)
        if not isinstance(result["figures"], dict):
            raise TypeError("figures")
    except (ValueError, KeyError, TypeError) as error:
        raise RuntimeProblem(f"{path.name} printed no benchmark object.", ExitCode.FAILED) from error
    return dict(result)


def reached(result: dict[str, Any], figure: str) -> bool:
    """Whether a figure keeps its goal; one that was not measured does not."""
    relation, goal = result["goals"][figure]
    value = result["figures"].get(figure)
    if value is None:
        return False
    return bool(value >= goal) if relation == ">=" else bool(value <= goal)


def _print(result: dict[str, Any]) -> None:
    out.print(
        f"[bold]{escape(str(result.get('name')))}[/bold]  {result.get('runs')} runs,"
        f" {escape(str(result.get('machine')))}"
    )
    shown = table("figure", "measured", "goal", "")
    for figure, value in result["figures"].items():
        goal = result.get("goals", {}).get(figure)
        verdict = "" if goal is None else "[green]ok[/green]" if reached(result, figure) else "[red]missed[/red]"
        shown.add_row(escape(figure), f"{value:g}", "" if goal is None else f"{goal[0]} {goal[1]:g}", verdict)
    out.print(shown)
    err.print()
