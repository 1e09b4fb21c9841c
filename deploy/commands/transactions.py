"""`transactions`: the coordinator's lists, read as the operator."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from rich.markup import escape

from deploy.console import out, plain_words, print_json, table
from deploy.embedded.system import EmbeddedSystem, data_folder


def show_list(data: Path | None, as_json: bool, decision: str | None, name: str | None, limit: int) -> None:
    """Prints the newest transactions."""
    with plain_words():
        wanted = {"decision": decision, "name": name, "limit": limit}
        query = urlencode({key: value for key, value in wanted.items() if value is not None})
        page = _ask(data, f"/v1/transactions?{query}")
        if as_json:
            print_json(page)
            return
        if not page["items"]:
            out.print("No such transaction.")
            return
        keys = [key for key, value in page["items"][0].items() if not isinstance(value, list | dict)]
        shown = table(*(key.replace("_", " ") for key in keys))
        for item in page["items"]:
            shown.add_row(*(escape(_text(item.get(key))) for key in keys))
        out.print(shown)


def show_one(data: Path | None, xid: str, as_json: bool) -> None:
    """Prints one transaction with its branches."""
    with plain_words():
        found = _ask(data, f"/v1/transactions/{xid}")
        if as_json:
            print_json(found)
            return
        lists = {key: value for key, value in found.items() if isinstance(value, list)}
        for key, value in found.items():
            if key not in lists:
                out.print(f"[bold]{escape(key.replace('_', ' '))}[/bold]  {escape(_text(value))}", soft_wrap=True)
        for key, rows in lists.items():
            if rows and isinstance(rows[0], dict):
                shown = table(*(column.replace("_", " ") for column in rows[0]))
                for row in rows:
                    shown.add_row(*(escape(_text(value)) for value in row.values()))
                out.print(f"\n[bold]{escape(key)}[/bold]")
                out.print(shown)


def _ask(data: Path | None, path: str) -> Any:
    return asyncio.run(EmbeddedSystem(data_folder(data)).coordinator_json(path))


def _text(value: object) -> str:
    return "" if value is None else str(value)
