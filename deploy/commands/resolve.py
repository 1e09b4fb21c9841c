"""`transactions resolve`: a person's decision about a quarantine, from the question to what came of it."""

from __future__ import annotations

import asyncio
import getpass
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import typer
from rich.markup import escape

from deploy.commands.transactions import coordinator, outcome_text, path_of, print_quarantine
from deploy.console import err, out, plain_words, print_json
from deploy.embedded.problems import ExitCode, RuntimeProblem
from deploy.operator_calls import CoordinatorCalls

OUTCOME_WAIT_S = 15.0
"""How long the command waits for a resource to carry a decision out."""

OUTCOME_POLL_S = 0.25

WORDS = {
    "keep": "Leave the changed rows as they are now, and undo the others",
    "restore": "Put all rows back as they were before, over what was written since",
    "retry": "Undo, if every row is as it was left by now",
    "keep_all": "Leave all rows as they are now",
}


@dataclass(frozen=True)
class Wishes:
    """What narrows a decision: one resource, rows as they are shown, the digest that was seen; and who decides."""

    resource: str | None
    rows: tuple[str, ...]
    shown: str | None
    by: str | None


def resolve(data: Path | None, xid: str, actions: list[str], wishes: Wishes, as_json: bool, yes: bool) -> None:
    """Shows what is quarantined, asks, decides in each resource, and says what came of it.

    Exit code 1 when a resource refused the decision or has not carried it out in time.
    """
    with plain_words():
        action, kept = _checked(actions, wishes)
        calls = coordinator(data)
        path = path_of(xid)
        found = asyncio.run(calls.call("GET", path))
        targets = _targets(found, wishes)
        if not yes:
            _confirm(targets, action, as_json)
        body = {"action": action, "by": wishes.by or _user(), "kept": kept}
        done = []
        for target in targets:
            shown = None if action == "retry" else wishes.shown or target["shown"]
            decision = {**body, "resolution_id": str(uuid4()), "resource": target["resource"], "shown": shown}
            done.append(asyncio.run(_decide(calls, f"{path}/resolve", decision)))
        if as_json:
            print_json({"items": done})
        else:
            for one in done:
                out.print(f"[bold]{escape(one['resource'])}[/bold]  {escape(outcome_text(one))}", soft_wrap=True)
        late = [one["resource"] for one in done if one["outcome"] is None]
        if late:
            raise RuntimeProblem(
                f"{', '.join(late)} has not carried it out within {OUTCOME_WAIT_S:.0f} s. The decision stands and is"
                f" carried out when it comes back; 'pawstay transactions show {xid}' says so.",
                ExitCode.FAILED,
            )
        if any("error" in one["outcome"] for one in done):
            raise SystemExit(int(ExitCode.FAILED))


async def _decide(calls: CoordinatorCalls, path: str, decision: dict[str, Any]) -> dict[str, Any]:
    """The decision with its outcome, or without one when it did not come in OUTCOME_WAIT_S."""
    until = time.monotonic() + OUTCOME_WAIT_S
    found: dict[str, Any] = await calls.call("POST", path, decision)
    while found["outcome"] is None and time.monotonic() < until:
        await asyncio.sleep(OUTCOME_POLL_S)
        found = await calls.call("GET", f"/v1/resolutions/{found['resolution_id']}")
    return found


def _checked(actions: list[str], wishes: Wishes) -> tuple[str, list[dict[str, Any]] | None]:
    if len(actions) != 1:
        raise RuntimeProblem("say one of --keep, --restore, --retry and --keep-all.", ExitCode.USAGE)
    if wishes.rows and actions[0] != "keep":
        raise RuntimeProblem("--row goes with --keep only: it names the rows that are kept.", ExitCode.USAGE)
    return actions[0], [_row(text) for text in wishes.rows] or None


def _row(text: str) -> dict[str, Any]:
    name, _, key = text.partition(" {")
    try:
        found = json.loads("{" + key)
    except ValueError:
        found = None
    if not name or not found or not isinstance(found, dict):
        raise RuntimeProblem(
            f"{text!r} is no row: say it as it is shown, like 'public.night {{\"id\": 1}}'.", ExitCode.USAGE
        )
    return {"table": name, "key": found}


def _targets(found: dict[str, Any], wishes: Wishes) -> list[dict[str, Any]]:
    """What is quarantined, by resource, as far as the decision is about it. Raises RuntimeProblem."""
    if found["settlement"] != "QUARANTINED":
        raise RuntimeProblem(
            f"nothing of {found['xid']} is quarantined: it is {found['settlement'].lower()}.", ExitCode.FAILED
        )
    names = {branch["resource"] for branch in found["branches"] if branch["state"] == "QUARANTINED"}
    if wishes.resource is not None and wishes.resource not in names:
        raise RuntimeProblem(
            f"nothing of {found['xid']} is quarantined in {wishes.resource}, but in {', '.join(sorted(names))}.",
            ExitCode.FAILED,
        )
    targets = [one for one in found["quarantine"] if wishes.resource in (None, one["resource"])]
    unseen = names - {one["resource"] for one in found["quarantine"]}
    if unseen and (not targets or wishes.resource is None):
        raise RuntimeProblem(
            f"{', '.join(sorted(unseen))} has not reported its rows yet: look again in a moment.", ExitCode.FAILED
        )
    if len(targets) > 1 and (wishes.rows or wishes.shown):
        raise RuntimeProblem("it is quarantined in several resources: name one with --resource.", ExitCode.USAGE)
    return targets


def _confirm(targets: list[dict[str, Any]], action: str, as_json: bool) -> None:
    if as_json or not sys.stdin.isatty():
        raise RuntimeProblem("nobody can be asked here: say --yes to decide without a question.", ExitCode.USAGE)
    for target in targets:
        print_quarantine(target)
    names = ", ".join(target["resource"] for target in targets)
    if not typer.confirm(f"\n{WORDS[action]}, in {names}?"):
        err.print("Nothing was decided.")
        raise SystemExit(int(ExitCode.FAILED))


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "unknown"
