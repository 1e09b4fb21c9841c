"""The how-to page does what it says."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import Any

from sharding import ShardId
from tests.support.servers import TestPostgres

PAGE = Path(__file__).resolve().parents[3] / "docs" / "how-to" / "use-sharding.md"


async def test_every_block_of_the_how_to_runs(postgres: TestPostgres) -> None:
    """One after the other, in one program, on three empty databases."""
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    assert len(blocks) == 8
    names: dict[str, Any] = {
        "__name__": "page",
        **{name: postgres.create_database() for name in ("CATALOG", "NORTH", "SOUTH")},
    }
    for block in blocks:
        code = compile(block, str(PAGE), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
        running = eval(code, names)  # noqa: S307 - the page is ours
        if inspect.iscoroutine(running):
            await running
    assert set(names["shards"].ids) == {ShardId("north"), ShardId("south")}
