"""What a booking leaves in the logs: one trace from the gateway to the worker, and the xid on every branch."""

from __future__ import annotations

import asyncio
import json
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from deploy.demo.cast import Cast, tonight
from deploy.embedded.system import EmbeddedSystem

WRITTEN_WITHIN_S = 20.0
BRANCH_PATHS = {"/internal/holds", "/internal/claims"}


def lines_of(file: Path, trace_id: str) -> list[dict[str, Any]]:
    """The lines of one log that carry a trace."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if trace_id in line]


async def test_a_booking_is_one_trace_from_gateway_to_worker_and_its_branches_carry_the_xid(
    cast: Cast, system: EmbeddedSystem
) -> None:
    """Every log line of a branch, and the line of the decision, names the transaction that the booking was."""
    owner, provider = await cast.approved("owner"), await cast.approved_provider("provider")
    listing = await cast.listing(provider, "有迹可循", {"dog-M": 1})
    quote = await cast.quote(owner, listing, [await cast.pet(owner, "豆豆")], tonight() + timedelta(days=3), 2)
    answer = await owner.call("POST", "/api/orders", {"quote": quote["quote"]}, key="a-traced-booking")
    assert answer.status == 201, answer
    xid, trace_id = answer.body["xid"], answer.headers["X-Trace-Id"]
    logs = system.layout.logs
    deadline = time.monotonic() + WRITTEN_WITHIN_S
    while not (worked := lines_of(logs / "worker.log", trace_id)):
        assert time.monotonic() < deadline, "the worker wrote no line of the trace"
        await asyncio.sleep(0.1)
    at_the_door = lines_of(logs / "gateway" / "access.log", trace_id)
    served = lines_of(logs / "services.log", trace_id)
    assert [(line["method"], line["path"]) for line in at_the_door] == [("POST", "/api/orders")]
    branches = [line for line in served if line.get("path") in BRANCH_PATHS]
    assert {line["path"] for line in branches} == BRANCH_PATHS
    decided = [line for line in served if line["event"] == "transaction"]
    assert [(line["service"], line["name"], line["outcome"]) for line in decided] == [("order", "book", "committed")]
    assert {line.get("xid") for line in [*branches, *decided]} == {xid}
    assert {line["event"] for line in worked} >= {"message"}
