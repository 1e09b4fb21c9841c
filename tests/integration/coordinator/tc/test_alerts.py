"""What a person is told without asking, and how."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import uuid4

import structlog.testing
from aiohttp import web

from coordinator.protocol.messages import Confirm, Pulse
from coordinator.protocol.statuses import BranchState
from coordinator.tc.core.backoff import Backoff
from tests.integration.coordinator.tc.harness import (
    QUICK,
    Caller,
    branch_of,
    commit,
    eventually,
    new_xid,
    now_ms,
    rollback,
    running,
    settings_for,
)
from tests.integration.coordinator.tc.test_desk import post

LIMITS = replace(
    QUICK, unsettled_alert_s=0.2, silent_alert_s=0.4, webhook_retry=Backoff(first_s=0.1, cap_s=0.2, attempts_max=3)
)
SECRET = "between us"


@dataclass
class Webhook:
    """Takes alerts. Answers 500 as often as `failing` says; holds the answer back while `hanging`."""

    url: str = ""
    taken: list[dict[str, Any]] = field(default_factory=list)
    tries: int = 0
    failing: int = 0
    hanging: bool = False

    async def alerted(self, request: web.Request) -> web.Response:
        """One call."""
        body = await request.read()
        parts = dict(part.split("=") for part in request.headers["X-Coordinator-Signature"].split(","))
        expected = hmac.new(SECRET.encode(), f"{parts['t']}.".encode() + body, hashlib.sha256).hexdigest()
        assert parts["v1"] == expected
        self.tries += 1
        if self.hanging:
            await asyncio.sleep(30)
        if self.tries <= self.failing:
            return web.Response(status=500)
        self.taken.append(json.loads(body))
        return web.Response()


@asynccontextmanager
async def webhook() -> AsyncIterator[Webhook]:
    """A webhook on a free port."""
    made = Webhook()
    app = web.Application()
    app.router.add_post("/alerts", made.alerted)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, shutdown_timeout=0.1).start()
        made.url = f"http://127.0.0.1:{runner.addresses[0][1]}/alerts"
        yield made
    finally:
        await runner.cleanup()


async def figures(tc: Caller) -> dict[str, float]:
    """What /metrics says, asked without a token."""
    async with tc.http.get(f"{tc.url}/metrics") as response:
        assert response.status == 200
        assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
        lines = [line for line in (await response.text()).splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


async def beat(tc: Caller, resource: str) -> None:
    """A life sign of a resource that has only one mark."""
    mark = uuid4()
    status, _ = await post(tc, "/v1/resources/pulse", Pulse(resource, mark, 1, mark, mark, now_ms()))
    assert status == 200


async def test_each_cause_is_told_once_by_log_figure_and_webhook_over_all_replicas(database: str) -> None:
    """Unsettled past the bound, quarantined at once, silent with open branches; over when the cause is over."""
    async with webhook() as hook:
        settings = replace(settings_for(database, LIMITS), alert_webhook_url=hook.url, alert_webhook_secret=SECRET)
        with structlog.testing.capture_logs() as logs:
            async with running(settings) as tc, running(settings):
                stuck, branch, dirty, bad = new_xid(), branch_of("capacity"), new_xid(), branch_of("order")
                await tc.say(commit(stuck, branch), rollback(dirty, bad))
                await tc.say(Confirm(dirty, "order", [(bad.branch, BranchState.QUARANTINED)]))
                await eventually(lambda: len(hook.taken) == 3)
                await asyncio.sleep(2.5)  # longer than any pause between two looks: nothing comes twice
                seen = await figures(tc)
                await tc.say(Confirm(stuck, "capacity", [(branch.branch, BranchState.FORGOTTEN)]))
                await tc.say(Confirm(dirty, "order", [(bad.branch, BranchState.UNDONE)]))
                await beat(tc, "capacity")

                async def over() -> bool:
                    found = await figures(tc)
                    return (
                        sum(value for name, value in found.items() if name.startswith("coordinator_alerts_open")) == 0
                    )

                await eventually(over)
    told = {
        ("transaction.unsettled", str(stuck)),
        ("transaction.quarantined", str(dirty)),
        ("resource.silent", "capacity"),
    }
    assert sorted((alert["kind"], alert["subject"]) for alert in hook.taken) == sorted(told)
    assert sorted(line["event"] for line in logs if line.get("alert")) == sorted(kind for kind, _ in told)
    assert {kind: seen[f'coordinator_alerts_open{{kind="{kind}"}}'] for kind, _ in told} == {
        kind: 1 for kind, _ in told
    }
    assert seen['coordinator_transactions{state="quarantined"}'] == 1
    [silent] = [alert["detail"] for alert in hook.taken if alert["kind"] == "resource.silent"]
    assert (silent["transactions"], silent["heard_at"]) == (1, None)


async def test_a_webhook_that_fails_is_called_again_and_given_up_in_the_end(database: str) -> None:
    """The alert comes with a later try; one that never gets through is said in the log, and the tries end."""
    async with webhook() as hook:
        hook.failing = 2
        settings = replace(
            settings_for(database, replace(LIMITS, silent_alert_s=60.0)),
            alert_webhook_url=hook.url,
            alert_webhook_secret=SECRET,
        )
        with structlog.testing.capture_logs() as logs:
            async with running(settings) as tc:
                first, second = new_xid(), new_xid()
                await tc.say(rollback(first, branch_of("capacity")))
                await eventually(
                    lambda: [alert["subject"] for alert in hook.taken if alert["attempt"] == 3] == [str(first)]
                )
                hook.failing = 10**6
                await tc.say(rollback(second, branch_of("capacity")))
                await eventually(lambda: any(line["event"] == "alert.webhook_given_up" for line in logs))
                tries = hook.tries
                await asyncio.sleep(1.0)
                assert hook.tries == tries


async def test_a_webhook_that_hangs_holds_nothing_up(database: str) -> None:
    """Decisions and further alerts go on while a call is open."""
    async with webhook() as hook:
        hook.hanging = True
        settings = replace(settings_for(database, LIMITS), alert_webhook_url=hook.url, alert_webhook_secret=SECRET)
        with structlog.testing.capture_logs() as logs:
            async with running(settings) as tc:
                await tc.say(rollback(new_xid(), branch_of("capacity")))
                await eventually(lambda: hook.tries > 0)
                other = new_xid()
                await tc.say(rollback(other, branch_of("capacity")))
                await eventually(lambda: any(line.get("xid") == str(other) and line.get("alert") for line in logs))
                assert (await tc.get("/ready"))[0] == 200


async def test_a_resource_that_did_the_opposite_reaches_the_webhook(database: str) -> None:
    """Once, with the branches, however often it says so."""
    async with webhook() as hook:
        settings = replace(settings_for(database, LIMITS), alert_webhook_url=hook.url, alert_webhook_secret=SECRET)
        async with running(settings) as tc:
            xid, branch = new_xid(), branch_of("capacity")
            await tc.say(commit(xid, branch))
            for _ in range(2):
                await tc.say(Confirm(xid, "capacity", [(branch.branch, BranchState.UNDONE)]))
            await eventually(lambda: hook.taken)
            assert (await figures(tc))['coordinator_alerts_open{kind="transaction.diverged"}'] == 1
    assert [(alert["kind"], alert["detail"]["branches"]) for alert in hook.taken] == [
        ("transaction.diverged", [str(branch.branch)])
    ]
