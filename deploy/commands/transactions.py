"""`transactions`: what the coordinator knows, as its operator sees it."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from uuid import UUID

from rich.markup import escape
from rich.tree import Tree

from coordinator.protocol.ids import Xid, unix_ms_of
from deploy.console import out, plain_words, print_json, table
from deploy.embedded.problems import ExitCode, RuntimeProblem
from deploy.embedded.system import EmbeddedSystem, data_folder
from deploy.operator_calls import CoordinatorCalls, calls_by_settings

AGE = re.compile(r"(\d{1,9})([smhd])")
UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
CELL_MAX = 60
"""Characters of one value in a table; --json has it whole."""


def show_list(data: Path | None, as_json: bool, wanted: Mapping[str, object], older_than: str | None) -> None:
    """Prints a page of the newest transactions that are `wanted`."""
    with plain_words():
        asked = {**wanted, "older_than_s": None if older_than is None else age_s(older_than)}
        query = urlencode({key: value for key, value in asked.items() if value is not None})
        page = ask(data, "GET", f"/v1/transactions?{query}")
        if as_json:
            print_json(page)
            return
        if not page["items"]:
            out.print("No such transaction.")
            return
        shown = table("xid", "name", "caller", "decision", "settlement", "begun")
        for item in page["items"]:
            decision = _text(item["decision"]) + ("" if item["reason"] in (None, "asked") else f" ({item['reason']})")
            begun = datetime.fromtimestamp(unix_ms_of(Xid(UUID(item["xid"]))) / 1000, UTC)
            row = (item["xid"], item["name"], item["caller"], decision, item["settlement"], f"{begun:%m-%d %H:%M:%S}")
            shown.add_row(*(escape(_text(cell)) for cell in row))
        out.print(shown)
        if page["next_cursor"]:
            out.print(f"There are more; --cursor {page['next_cursor']} goes on.", soft_wrap=True)


def show_one(data: Path | None, xid: str, as_json: bool) -> None:
    """Prints one transaction with all that is known about it."""
    with plain_words():
        found = ask(data, "GET", path_of(xid))
        if as_json:
            print_json(found)
            return
        for key, value in found.items():
            if not isinstance(value, list):
                said = _instant(value) if key.endswith("_ms") else _text(value)
                out.print(f"[bold]{escape(_heading(key))}[/bold]  {escape(said)}", soft_wrap=True)
        _print_rows("branches", found["branches"])
        _print_rows("waits", found["waits"])
        for quarantine in found["quarantine"]:
            print_quarantine(quarantine)
        decisions = [
            {
                "decided_ms": one["decided_ms"],
                "by": one["by"],
                "resource": one["resource"],
                "action": one["action"],
                "outcome": outcome_text(one),
            }
            for one in found["resolutions"]
        ]
        _print_rows("decisions", decisions)


def retry(data: Path | None, xid: str, as_json: bool) -> None:
    """Makes the coordinator tell the resources again."""
    with plain_words():
        told = ask(data, "POST", f"{path_of(xid)}/retry")
        if as_json:
            print_json(told)
            return
        out.print(f"Told again: {escape(', '.join(told['told']))}.")


def wait_graph(data: Path | None, as_json: bool) -> None:
    """Prints who waits for whom, each holder with those that wait for it below."""
    with plain_words():
        graph = ask(data, "GET", "/v1/waits")
        if as_json:
            print_json(graph)
            return
        if not graph["items"]:
            out.print("Nobody waits.")
            return
        for tree in wait_trees(graph["items"], round(datetime.now(UTC).timestamp() * 1000)):
            out.print(tree)


def wait_trees(waits: list[dict[str, Any]], now_ms: int) -> list[Tree]:
    """One tree for each holder that waits for nobody; of a cycle one of its members stands at the top."""
    names: dict[str, str | None] = {}
    below: dict[str, list[dict[str, Any]]] = {}
    for wait in waits:
        names.setdefault(wait["holder"], wait["holder_name"])
        if wait["waiter"] is not None:
            names[wait["waiter"]] = wait["waiter_name"]
        below.setdefault(wait["holder"], []).append(wait)
    waiting = {wait["waiter"] for wait in waits}
    drawn: set[str] = set()

    def draw(tree: Tree, holder: str) -> None:
        drawn.add(holder)
        for wait in below.get(holder, []):
            since_s = max(now_ms - wait["since_ms"], 0) / 1000
            where = f"in {escape(wait['resource'])} for {since_s:.1f} s"
            waiter = wait["waiter"]
            if waiter is None:
                tree.add(f"a plain writer waits {where}")
                continue
            branch = tree.add(f"{_named(waiter, names[waiter])} waits {where}")
            if waiter not in drawn:
                draw(branch, waiter)

    trees = []
    for holder in [*(one for one in below if one not in waiting), *below]:
        if holder not in drawn:
            trees.append(Tree(_named(holder, names[holder])))
            draw(trees[-1], holder)
    return trees


def print_quarantine(quarantine: dict[str, Any]) -> None:
    """Prints what a person has to decide about in one resource: of each row the columns in which its images differ."""
    out.print(f"\n[bold]quarantined in {escape(quarantine['resource'])}[/bold]")
    if quarantine["reason"]:
        out.print(escape(quarantine["reason"]), soft_wrap=True)
    shown = table("row", "", "column", "before", "after", "now")
    for image in quarantine["images"]:
        row = f"{image['table']} {json.dumps(image['key'], ensure_ascii=False)}"
        state = "changed" if image["changed"] else ""
        for number, cells in enumerate(differing(image)):
            first = number == 0
            shown.add_row(escape(row) if first else "", state if first else "", *(escape(_cut(cell)) for cell in cells))
    out.print(shown)
    if quarantine["total"] > len(quarantine["images"]):
        out.print(f"{len(quarantine['images'])} of {quarantine['total']} rows are shown, the changed ones first.")
    out.print(f"digest  {escape(quarantine['shown'])}", soft_wrap=True)


def differing(image: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """The columns in which before, after and now are not all the same, each with the three values; never empty."""
    images = [image["before"], image["after"], image["now"]]
    columns: dict[str, None] = {}
    for one in images:
        columns |= dict.fromkeys(one or {})
    found = []
    for column in columns:
        values = [_value(one, column) for one in images]
        if len(set(values)) > 1:
            found.append((column, values[0], values[1], values[2]))
    return found or [("", "the same", "the same", "the same")]


def outcome_text(resolution: dict[str, Any]) -> str:
    """What came of a decision, in words."""
    outcome = resolution["outcome"]
    if outcome is None:
        return "on its way"
    if "error" in outcome:
        return f"refused: {outcome['error']}"
    return f"done: {outcome['restored']} rows put back, {outcome['kept']} left as they were found"


def coordinator(data: Path | None) -> CoordinatorCalls:
    """The coordinator that settings name, else that of the running system. Raises RuntimeProblem."""
    return calls_by_settings() or EmbeddedSystem(data_folder(data)).coordinator_calls()


def ask(data: Path | None, method: str, path: str, body: object = None) -> Any:
    """One call and its answer. Raises RuntimeProblem."""
    return asyncio.run(coordinator(data).call(method, path, body))


def path_of(xid: str) -> str:
    """Where the coordinator has a transaction. Raises RuntimeProblem for what is no xid."""
    try:
        return f"/v1/transactions/{UUID(xid)}"
    except ValueError:
        raise RuntimeProblem(
            f"{xid!r} is no xid: it is a UUID, as 'pawstay transactions list' shows it.", ExitCode.USAGE
        ) from None


def age_s(text: str) -> int:
    """Seconds of an age such as 90s, 10m, 2h or 7d. Raises RuntimeProblem."""
    found = AGE.fullmatch(text)
    if found is None:
        raise RuntimeProblem(f"{text!r} is no age: say it like 90s, 10m, 2h or 7d.", ExitCode.USAGE)
    return int(found[1]) * UNIT_S[found[2]]


def _print_rows(title: str, rows: list[dict[str, Any]]) -> None:
    if not rows:
        return
    shown = table(*(_heading(column) for column in rows[0]))
    for row in rows:
        cells = (_instant(value) if key.endswith("_ms") else _text(value) for key, value in row.items())
        shown.add_row(*(escape(cell) for cell in cells))
    out.print(f"\n[bold]{escape(title)}[/bold]")
    out.print(shown)


def _value(image: dict[str, Any] | None, column: str) -> str:
    if image is None:
        return "no row"
    return json.dumps(image[column], ensure_ascii=False) if column in image else ""


def _cut(text: str) -> str:
    return text if len(text) <= CELL_MAX else text[: CELL_MAX - 1] + "…"


def _named(xid: str, name: str | None) -> str:
    return f"{xid} ({escape(name)})" if name else xid


def _heading(key: str) -> str:
    return key.removesuffix("_ms").replace("_", " ")


def _instant(value: int | None) -> str:
    return "" if value is None else f"{datetime.fromtimestamp(value / 1000, UTC):%Y-%m-%d %H:%M:%S} UTC"


def _text(value: object) -> str:
    return "" if value is None else str(value)
