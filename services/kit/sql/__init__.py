"""The tables that the kit needs in a service's database, for the service's migrations to execute."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

KIT_TABLES = ("outbox", "inbox", "idempotency_keys")

_TOKEN = re.compile(r"--[^\n]*|'(?:[^']|'')*'|(\$\w*\$).*?\1|;", re.DOTALL)


def kit_sql(name: Literal["outbox", "inbox", "idempotency"]) -> str:
    """The DDL of one of the kit's tables."""
    return (Path(__file__).parent / f"{name}.sql").read_text(encoding="utf-8")


def statements(script: str) -> list[str]:
    """The statements of an SQL script, one by one: the driver prepares them, and can prepare only one at a time.

    Semicolons in comments, quoted strings and dollar-quoted bodies end nothing. For `op.execute` wrap each in `text` or
    escape colons as it asks.
    """
    parts: list[str] = []
    start = 0
    for match in _TOKEN.finditer(script):
        if match.group() == ";":
            parts.append(script[start : match.start()].strip())
            start = match.end()
    parts.append(script[start:].strip())
    return [part for part in parts if _TOKEN.sub("", part).strip()]
