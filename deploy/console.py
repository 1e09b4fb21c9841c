"""What every command says and how: sentences on standard error, results on standard output, exit codes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from deploy.embedded.problems import RuntimeProblem

out = Console()
err = Console(stderr=True)


@contextmanager
def plain_words() -> Iterator[None]:
    """Ends the process with a RuntimeProblem's sentence and exit code instead of a traceback."""
    try:
        yield
    except RuntimeProblem as problem:
        sentence = str(problem)
        err.print(f"[bold red]pawstay:[/bold red] {escape(sentence[:1].upper() + sentence[1:])}", soft_wrap=True)
        raise SystemExit(int(problem.code)) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


@contextmanager
def progress(first: str) -> Iterator[Callable[[str], None]]:
    """Shows what is being done while it takes time; yields a function that changes the words."""
    with err.status(escape(first)) as status:
        said = first

        def say(step: str) -> None:
            nonlocal said
            if step != said:
                if not err.is_terminal:
                    err.print(escape(step), soft_wrap=True)
                said = step
            status.update(escape(step))

        yield say


def print_json(value: Any) -> None:
    """One JSON value on standard output, for programs."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, indent=2, default=str) + "\n")


def table(*columns: str) -> Table:
    """A table in the one style of all commands."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        made.add_column(column, no_wrap=number == 0)  # what a row is called by stays whole in a narrow window
    return made
