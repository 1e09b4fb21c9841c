"""`pawstay transactions` against a coordinator that settings name: what a person sees, decides and is told."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import pytest

from coordinator.protocol.messages import Images, Report, ReportAnswer, Resolved, Wait
from coordinator.protocol.statuses import BranchState
from coordinator.tc.core.backoff import Backoff
from deploy.commands.transactions import age_s, differing
from deploy.embedded.problems import ExitCode, RuntimeProblem
from tests.integration.coordinator.tc.harness import (
    KEYS,
    QUICK,
    Caller,
    begin,
    branch_of,
    commit,
    eventually,
    new_xid,
    now_ms,
    resource_at,
    rollback,
    running,
    settings_for,
)
from tests.support.commands import Said, pawstay

ROW = {"table": "public.night", "key": {"id": 1}, "branch": None, "changed": True}
ROW |= {"before": {"id": 1, "free": 2}, "after": {"id": 1, "free": 1}, "now": {"id": 1, "free": 9}}


@dataclass
class Shell:
    """A person's shell, with the settings that lead to the coordinator."""

    tc: Caller
    folder: Path

    @property
    def environ(self) -> dict[str, str]:
        """The settings."""
        key = self.folder / "operator.jwk"
        key.write_text(KEYS["operator"].private_jwk())
        return {"PAWSTAY_COORDINATOR_URL": self.tc.url, "PAWSTAY_OPERATOR_KEY_FILE": str(key)}

    async def run(self, *arguments: str) -> Said:
        """Runs `pawstay transactions`."""
        return await asyncio.to_thread(pawstay, "transactions", *arguments, folder=self.folder, environ=self.environ)

    async def json(self, *arguments: str) -> Any:
        """What it prints for a program."""
        said = await self.run(*arguments, "--json")
        assert said.code == 0, said
        return json.loads(said.out)


@pytest.fixture
async def shell(database: str, tmp_path: Path) -> AsyncIterator[Shell]:
    """A shell beside a running coordinator."""
    never = Backoff(first_s=60.0, cap_s=60.0)  # what is told again here is told because a person wants it
    async with running(settings_for(database, replace(QUICK, renudge=never))) as tc:
        yield Shell(tc, tmp_path)


class Capacity:
    """A resource with one quarantined branch. It answers the next decision with `outcome`, once it is nudged."""

    def __init__(self, tc: Caller, outcome: dict[str, Any]) -> None:
        self.xid = new_xid()
        self.decided: list[str] = []
        self._tc = tc
        self._branch = branch_of("capacity")
        self._outcome = outcome

    async def begin(self) -> None:
        """Rolls back, and reports that it could not be undone."""
        await self._tc.say(rollback(self.xid, self._branch))
        await self._report(BranchState.QUARANTINED, None)

    async def work(self, nudges: list[Any]) -> None:
        """Looks for a decision whenever it is nudged."""
        while True:
            await eventually(lambda: any(not nudge.settle for nudge in nudges))
            nudges.clear()
            waiting = (await self._report(BranchState.QUARANTINED, None)).resolution
            if waiting is not None:
                self.decided.append(waiting.action)
                done = "error" not in self._outcome
                state = BranchState.UNDONE if done else BranchState.QUARANTINED
                await self._report(state, Resolved(waiting.resolution_id, self._outcome))

    async def _report(self, state: BranchState, resolved: Resolved | None) -> ReportAnswer:
        states = [(self._branch.branch, int(state))]
        report = Report(self.xid, "capacity", states, "d1", None, Images("d1", 1, [ROW]), resolved)
        url, body = f"{self._tc.url}/v1/quarantine", msgspec.json.encode(report)
        async with self._tc.http.post(url, data=body, headers=self._tc.headers) as response:
            return msgspec.json.decode(await response.read(), type=ReportAnswer)


@contextlib.asynccontextmanager
async def capacity_of(tc: Caller, outcome: dict[str, Any]) -> AsyncIterator[Capacity]:
    """A quarantined transaction of a resource that carries decisions out."""
    async with resource_at("capacity", tc) as resource:
        made = Capacity(tc, outcome)
        await made.begin()
        resource.heard.clear()
        working = asyncio.create_task(made.work(resource.heard))
        try:
            yield made
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)


async def test_pages_are_filtered_and_go_on_where_they_ended(shell: Shell) -> None:
    """By settlement, decision, resource, name and age, with a cursor; in words and for programs."""
    old, young, other = new_xid(age_s=3600), new_xid(), new_xid()
    await shell.tc.say(commit(old, branch_of("capacity")), commit(young, branch_of("capacity")))
    await shell.tc.say(commit(other, branch_of("order"), name="pay"), begin(new_xid()))

    async def found(*arguments: str) -> list[str]:
        return [item["xid"] for item in (await shell.json("list", *arguments))["items"]]

    assert await found("--settlement", "settling", "--resource", "capacity") == [str(young), str(old)]
    assert await found("--older-than", "30m") == [str(old)]
    assert await found("--name", "pay", "--decision", "committed") == [str(other)]
    page = await shell.json("list", "--resource", "capacity", "--limit", "1")
    assert await found("--resource", "capacity", "--cursor", page["next_cursor"]) == [str(old)]
    said = await shell.run("list", "--resource", "capacity", "--limit", "1")
    assert str(young) in said.out
    assert f"--cursor {page['next_cursor']} goes on" in said.text


async def test_a_quarantine_is_shown_decided_and_shown_as_decided(shell: Shell) -> None:
    """Only the columns that differ; the outcome in words; the audit with who decided."""
    async with capacity_of(shell.tc, {"state": 2, "kept": 0, "restored": 1}) as capacity:
        xid = str(capacity.xid)
        said = await shell.run("show", xid)
        assert 'public.night {"id": 1} changed free 2 1 9' in said.text
        assert "digest d1" in said.text
        refused = await shell.run("resolve", xid, "--restore")
        assert (refused.code, "say --yes" in refused.text) == (ExitCode.USAGE, True)
        said = await shell.run("resolve", xid, "--restore", "--yes", "--by", "ada")
        assert (said.code, "done: 1 rows put back, 0 left" in said.text) == (0, True), said
        assert capacity.decided == ["restore"]
    shown = await shell.json("show", xid)
    assert (shown["settlement"], shown["resolutions"][0]["by"]) == ("SETTLED", "ada")
    said = await shell.run("show", xid)
    assert "ada capacity restore done: 1 rows put back" in said.text
    said = await shell.run("resolve", xid, "--keep", "--yes")
    assert (said.code, "it is settled" in said.text) == (ExitCode.FAILED, True)


async def test_a_decision_that_the_resource_refuses_ends_with_its_words(shell: Shell) -> None:
    """Exit code 1, in words and for programs; with a digest of before it does not even get there."""
    async with capacity_of(shell.tc, {"state": 3, "error": "a row was changed again"}) as capacity:
        xid = str(capacity.xid)
        said = await shell.run("resolve", xid, "--keep", "--row", 'public.night {"id": 1}', "--yes", "--json")
        [one] = json.loads(said.out)["items"]
        assert (said.code, one["outcome"]["error"]) == (ExitCode.FAILED, "a row was changed again")
        assert one["kept"] == [{"table": "public.night", "key": {"id": 1}}]
        said = await shell.run("resolve", xid, "--keep", "--shown", "d0", "--yes")
        assert (said.code, "have changed since they were shown" in said.text) == (ExitCode.FAILED, True)
        assert capacity.decided == ["keep"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--yes"], "ay one of --keep"),
        (["--keep", "--restore"], "ay one of --keep"),
        (["--restore", "--row", 'public.night {"id": 1}'], "--row goes with --keep only"),
        (["--keep", "--row", "night 1"], "is no row"),
    ],
)
async def test_a_decision_that_makes_no_sense_is_refused_before_anybody_is_asked(
    tmp_path: Path, arguments: list[str], words: str
) -> None:
    """A wrong flag is told at once."""
    said = await asyncio.to_thread(pawstay, "transactions", "resolve", str(new_xid()), *arguments, folder=tmp_path)
    assert (said.code, words in said.text) == (ExitCode.USAGE, True), said


async def test_a_retry_reaches_the_resource_and_says_which(shell: Shell) -> None:
    """What is settled has nothing to retry."""

    async def nudge_failed() -> bool:
        return bool((await shell.tc.get("/v1/statistics"))[1]["replica"]["nudges_failed"])

    async with resource_at("capacity", shell.tc) as capacity:
        capacity.failing = True
        xid = new_xid()
        await shell.tc.say(commit(xid, branch_of("capacity")))
        await eventually(nudge_failed)
        capacity.failing = False
        said = await shell.run("retry", str(xid))
        assert (said.code, "Told again: capacity." in said.text) == (0, True), said
        await eventually(lambda: xid in capacity.xids())
        await eventually(lambda: _settled(shell.tc, xid))
    said = await shell.run("retry", str(xid))
    assert (said.code, "settled already" in said.text) == (ExitCode.FAILED, True)


async def _settled(tc: Caller, xid: UUID) -> bool:
    return await tc.settlement(xid) == "SETTLED"


async def test_waits_are_drawn_from_the_holder_down(shell: Shell) -> None:
    """Each waiter stands below the one that it waits for."""
    assert "Nobody waits." in (await shell.run("wait-graph")).text
    holder, waiter = new_xid(), new_xid()
    await shell.tc.say(begin(holder, name="book"), begin(waiter, name="pay"))
    waiting = [
        asyncio.create_task(shell.tc.wait(Wait(holder, now_ms(30), waiter, now_ms(30), "capacity", 20_000))),
        asyncio.create_task(shell.tc.wait(Wait(waiter, now_ms(30), None, None, "order", 20_000))),
    ]

    async def both() -> bool:
        return len((await shell.tc.get("/v1/waits"))[1]["items"]) == 2

    await eventually(both)
    lines = [line for line in (await shell.run("wait-graph")).out.splitlines() if line.strip()]
    assert lines[0] == f"{holder} (book)"
    assert f"{waiter} (pay) waits in capacity" in lines[1]
    assert "a plain writer waits in order" in lines[2]
    assert len((await shell.json("wait-graph"))["items"]) == 2
    await shell.tc.say(rollback(holder), rollback(waiter))
    await asyncio.gather(*waiting)


async def test_what_cannot_be_asked_says_why(shell: Shell) -> None:
    """An unknown transaction, no xid, a wrong age, a stopped coordinator, and settings that lead nowhere."""
    for arguments, code, words in (
        (["show", str(new_xid())], ExitCode.FAILED, "Nothing is known of"),
        (["show", "nothing/of/the kind"], ExitCode.USAGE, "is no xid"),
        (["resolve", str(new_xid()), "--keep", "--yes"], ExitCode.FAILED, "Nothing is known of"),
        (["list", "--older-than", "soon"], ExitCode.USAGE, "is no age"),
    ):
        said = await shell.run(*arguments)
        assert (said.code, words in said.text) == (code, True), said
    for change, code, words in (
        ({"PAWSTAY_COORDINATOR_URL": "ftp://x"}, ExitCode.SETTING_WRONG, "no http or https URL"),
        ({"PAWSTAY_OPERATOR_KEY_FILE": ""}, ExitCode.SETTING_WRONG, "PAWSTAY_OPERATOR_KEY_FILE is not set"),
        ({"PAWSTAY_OPERATOR_KEY_FILE": "/nowhere"}, ExitCode.SETTING_WRONG, "cannot be used"),
        ({"PAWSTAY_COORDINATOR_URL": "http://127.0.0.1:1"}, ExitCode.FAILED, "look whether it runs at"),
    ):
        environ = shell.environ | change
        said = await asyncio.to_thread(pawstay, "transactions", "list", folder=shell.folder, environ=environ)
        assert (said.code, words in said.text, "Traceback" in said.text) == (code, True, False), said


async def test_a_shell_completes_xids_that_wait_for_a_person(shell: Shell) -> None:
    """Those in quarantine; none, and no error, where no coordinator answers."""
    async with capacity_of(shell.tc, {}) as capacity:
        for url, completed in ((shell.tc.url, [str(capacity.xid)]), ("http://127.0.0.1:1", [])):
            environ = {**shell.environ, "PAWSTAY_COORDINATOR_URL": url, "_PAWSTAY_COMPLETE": "complete_bash"}
            environ |= {"COMP_WORDS": "./pawstay transactions resolve 0", "COMP_CWORD": "3"}
            said = await asyncio.to_thread(pawstay, folder=shell.folder, environ=environ)
            assert (said.code, said.out.split(), said.err) == (0, completed, "")


def test_only_columns_that_differ_are_shown() -> None:
    """A row that is not there says so; a row that is as it was shows that."""
    image = {"before": None, "after": {"a": 1, "b": None}, "now": {"a": 1, "b": 2}}
    assert differing(image) == [("a", "no row", "1", "1"), ("b", "no row", "null", "2")]
    assert differing({"before": {"a": 1}, "after": {"a": 1}, "now": {"a": 1}}) == [("", *["the same"] * 3)]


def test_ages_are_said_with_their_unit() -> None:
    """Seconds, minutes, hours and days; anything else is refused."""
    assert [age_s(text) for text in ("90s", "10m", "2h", "7d")] == [90, 600, 7200, 604800]
    for text in ("10", "m", "-1s", "1w", ""):
        with pytest.raises(RuntimeProblem, match="is no age"):
            age_s(text)
