"""The command line. Every command imports what it needs when it runs, so that `--help` is quick.

Exit codes are those of `deploy.embedded.problems.ExitCode`.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Optional

import typer

from deploy.embedded.ports import DEFAULT_GATEWAY_PORT

TRANSACTIONS_MAX = 200
"""As many as the coordinator puts on one page."""

EPILOG = (
    "Exit codes: 0 done, 1 a check failed, 2 wrong usage, 3 not running, 4 port taken, 5 folder unusable,"
    " 6 folder of another version or program, 7 a program did not start, 8 busy, 9 wrong setting."
)

app = typer.Typer(
    name="pawstay",
    help="PawStay: a pet-boarding marketplace on global transactions and shards, in one command.",
    epilog=EPILOG,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
shards_app = typer.Typer(help="The shards and what lies on them.", no_args_is_help=True)
transactions_app = typer.Typer(help="Global transactions, as the coordinator knows them.", no_args_is_help=True)
app.add_typer(shards_app, name="shards")
app.add_typer(transactions_app, name="transactions")

Data = Annotated[
    Optional[Path],  # noqa: UP045 - Typer reads it at run time
    typer.Option("--data", readable=False, help="The data folder.  [default: PAWSTAY_DATA, or ./data in the checkout]"),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]
Port = Annotated[int, typer.Option("--port", min=1, max=65_535, help="The gateway's port.")]
Split = Annotated[bool, typer.Option("--split", help="One process for each service.")]


def _services(incomplete: str) -> list[str]:
    from deploy.commands import completion

    return completion.services(incomplete)


def _programs(context: typer.Context, incomplete: str) -> list[str]:
    from deploy.commands import completion

    return completion.programs(context.params.get("data"), incomplete)


def _scenes(incomplete: str) -> list[str]:
    from deploy.commands import completion

    return completion.scenes(incomplete)


def _unsettled(context: typer.Context, incomplete: str) -> list[str]:
    from deploy.commands import completion

    return completion.unsettled(context.params.get("data"), incomplete)


def _quarantined(context: typer.Context, incomplete: str) -> list[str]:
    from deploy.commands import completion

    return completion.quarantined(context.params.get("data"), incomplete)


def _benchmarks(incomplete: str) -> list[str]:
    from deploy.commands import completion

    return completion.benchmarks(incomplete)


class DecisionName(StrEnum):
    """How a global transaction was decided."""

    UNDECIDED = "undecided"
    COMMITTED = "committed"
    ROLLED_BACK = "rolled_back"


class SettlementName(StrEnum):
    """How far the resources have followed the decision."""

    OPEN = "open"
    SETTLING = "settling"
    SETTLED = "settled"
    QUARANTINED = "quarantined"


@app.command()
def up(
    data: Data = None,
    port: Port = DEFAULT_GATEWAY_PORT,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Return when it is up; leave it running.")] = False,
    split: Split = False,
) -> None:
    """Start everything: databases, coordinator, services, worker and gateway."""
    from deploy.commands import lifecycle

    lifecycle.up(data, port, detach, split)


@app.command()
def down(data: Data = None) -> None:
    """Stop everything. The data stays."""
    from deploy.commands import lifecycle

    lifecycle.down(data)


@app.command()
def status(data: Data = None, as_json: AsJson = False) -> None:
    """Show every program: does it work, since when, and how often it was started again."""
    from deploy.commands import lifecycle

    lifecycle.status(data, as_json)


@app.command()
def logs(
    program: Annotated[
        Optional[str],  # noqa: UP045
        typer.Argument(help="One program; all of them if none is named.", autocompletion=_programs),
    ] = None,
    data: Data = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as lines come.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, max=100_000, help="Lines from the end.")] = 50,
) -> None:
    """Show the logs."""
    from deploy.commands import logs as command

    command.show(data, program, follow, lines)


@app.command()
def serve(
    service: Annotated[str, typer.Argument(help="A service, coordinator, worker, or all.", autocompletion=_services)],
) -> None:
    """Run one service in the foreground, with settings from PAWSTAY_ variables (what images use)."""
    from deploy.console import plain_words

    with plain_words():
        from deploy.serve import serve as run

        run(service)


@app.command(hidden=True)
def supervise(data: Data = None, port: Port = DEFAULT_GATEWAY_PORT, split: Split = False) -> None:
    """Be the supervisor of a data folder: what `up` starts."""
    from deploy.commands import lifecycle

    lifecycle.supervise(data, port, split)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def test(context: typer.Context) -> None:
    """Run the tests, or the check named first (crash-points); other arguments go to pytest."""
    from deploy.commands import checks

    raise SystemExit(checks.run(context.args))


@app.command()
def bench(
    names: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(help="Benchmarks; all of them if none is named.", autocompletion=_benchmarks),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure: run the benchmarks and compare with their goals."""
    from deploy.commands import bench as command

    command.run(names or [], as_json)


@app.command()
def demo(
    data: Data = None,
    port: Port = DEFAULT_GATEWAY_PORT,
    split: Split = False,
    as_json: AsJson = False,
    keep: Annotated[bool, typer.Option("--keep", help="Leave running what the demo started.")] = False,
    scene: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--scene", help="Only this scene; repeatable.", autocompletion=_scenes),
    ] = None,
) -> None:
    """Do the main job against the running system (started if none runs) and say what was seen."""
    from deploy.commands import demo as command

    command.run(data, port, split, as_json, keep, tuple(scene or ()))


@shards_app.command("status")
def shards_status(data: Data = None, as_json: AsJson = False) -> None:
    """Show each shard: does it answer, how many buckets and rows it holds, how large it is."""
    from deploy.commands import shards as command

    command.status(data, as_json)


@transactions_app.command("list")
def transactions_list(
    data: Data = None,
    as_json: AsJson = False,
    decision: Annotated[Optional[DecisionName], typer.Option(help="Only those decided so.")] = None,  # noqa: UP045
    settlement: Annotated[Optional[SettlementName], typer.Option(help="Only those settled so far.")] = None,  # noqa: UP045
    name: Annotated[Optional[str], typer.Option(help="Only those of this name, such as book.")] = None,  # noqa: UP045
    resource: Annotated[Optional[str], typer.Option(help="Only those with a branch there.")] = None,  # noqa: UP045
    older_than: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="AGE", help="Only those begun longer ago: 90s, 10m, 2h, 7d."),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=TRANSACTIONS_MAX, help="At most so many.")] = 20,
    cursor: Annotated[Optional[str], typer.Option(help="Go on after this: the next_cursor of a page.")] = None,  # noqa: UP045
) -> None:
    """List global transactions, the newest first."""
    from deploy.commands import transactions as command

    wanted = {"name": name, "resource": resource, "limit": limit, "cursor": cursor}
    wanted |= {"decision": decision and decision.value, "settlement": settlement and settlement.value}
    command.show_list(data, as_json, wanted, older_than)


@transactions_app.command("show")
def transactions_show(
    xid: Annotated[str, typer.Argument(help="The global transaction's xid.", autocompletion=_unsettled)],
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Show one global transaction: branches, images of what is quarantined, what was decided, who waits."""
    from deploy.commands import transactions as command

    command.show_one(data, xid, as_json)


@transactions_app.command("retry")
def transactions_retry(
    xid: Annotated[str, typer.Argument(help="The global transaction's xid.", autocompletion=_unsettled)],
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Tell the resources of an unsettled transaction once more, at once."""
    from deploy.commands import transactions as command

    command.retry(data, xid, as_json)


@transactions_app.command("resolve")
def transactions_resolve(
    xid: Annotated[str, typer.Argument(help="The global transaction's xid.", autocompletion=_quarantined)],
    data: Data = None,
    as_json: AsJson = False,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the changed rows as they are now, undo the others.")
    ] = False,
    restore: Annotated[bool, typer.Option("--restore", help="Put all rows back as they were before.")] = False,
    retry: Annotated[bool, typer.Option("--retry", help="Undo, if every row is as it was left by now.")] = False,
    keep_all: Annotated[bool, typer.Option("--keep-all", help="Leave all rows as they are now.")] = False,
    resource: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Only in this resource.  [default: in each where something is quarantined]"),
    ] = None,
    row: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            metavar="ROW", help="With --keep, only this row; as shown: 'public.night {\"id\": 1}'. Repeatable."
        ),
    ] = None,
    shown: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="DIGEST", help="Only if the rows are as they were shown with this digest."),
    ] = None,
    by: Annotated[Optional[str], typer.Option(help="Who decides.  [default: the user of this machine]")] = None,  # noqa: UP045
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Decide what becomes of rows that were changed behind the triggers. Asks before it does anything."""
    from deploy.commands import resolve as command

    chosen = {"keep": keep, "restore": restore, "retry": retry, "keep_all": keep_all}
    actions = [name for name, wanted in chosen.items() if wanted]
    command.resolve(data, xid, actions, command.Wishes(resource, tuple(row or ()), shown, by), as_json, yes)


@transactions_app.command("wait-graph")
def transactions_wait_graph(data: Data = None, as_json: AsJson = False) -> None:
    """Show who waits for whom now."""
    from deploy.commands import transactions as command

    command.wait_graph(data, as_json)


def main() -> None:
    """The entry point of `pawstay`."""
    app(prog_name="pawstay")


if __name__ == "__main__":
    main()
