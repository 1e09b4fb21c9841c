"""`transactions`: the coordinator's lists, read as the operator."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from uuid import UUID

from rich.markup import escape

from coordinator.protocol.ids import Xid, unix_ms_of
from deploy.console import out, plain_words, print_json, table
from deploy.embedded.system import EmbeddedSystem, data_folder


def show_list(
    data: Path | None, as_json: bool, decision: str | None, name: str | None, limit: int, limit_max: int
) -> None:
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
        shown = table("xid", "name", "caller", "decision", "settlement", "begun")
        for item in page["items"]:
            decision = _text(item["decision"]) + ("" if item["reason"] in (None, "asked") else f" ({item['reason']})")
            begun = datetime.fromtimestamp(unix_ms_of(Xid(UUID(item["xid"]))) / 1000, UTC)
            row = (item["xid"], item["name"], item["caller"], decision, item["settlement"], f"{begun:%m-%d %H:%M:%S}")
            shown.add_row(*(escape(_text(cell)) for cell in row))
        out.print(shown)
        if page.get("next_cursor"):
            further = min(limit * 10, limit_max)
            out.print(
                f"There are more; --limit {further} shows further back." if further > limit else "There are more."
            )


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
