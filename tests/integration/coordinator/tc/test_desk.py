"""The operator's desk: reports of quarantines, decisions about them, retries, life signs, and who waits for whom."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import msgspec
import pytest

from coordinator.protocol.messages import Confirm, Images, Pulse, PulseAnswer, Report, ReportAnswer, Resolved, Wait
from coordinator.protocol.statuses import BranchState, Decision, Settlement
from coordinator.tc.store import Store
from coordinator.tc.views import Filter
from tests.integration.coordinator.tc.harness import (
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
)

HISTORY = """
INSERT INTO tc.global_transaction (xid, name, caller, deadline, decision, reason, decided_at, settlement, settled_at)
SELECT gen_random_uuid(), 'book', 'order', now(), 1, 'asked', now(), 2, now() FROM generate_series(1, 2000)
"""

ROWS = [{"table": "public.night", "key": {"id": 1}, "before": {"free": 2}, "after": {"free": 1}, "now": {"free": 9}}]


async def post(tc: Caller, path: str, body: object) -> tuple[int, Any]:
    """Status and body of a call."""
    async with tc.http.post(tc.url + path, data=msgspec.json.encode(body), headers=tc.headers) as response:
        return response.status, await response.json(content_type=None)


async def report(tc: Caller, xid: UUID, branch: UUID, state: BranchState, **more: Any) -> ReportAnswer:
    """What `capacity` hears when it reports one branch."""
    message = Report(xid, "capacity", [(branch, int(state))], more.pop("digest", "d1"), **more)
    status, body = await post(tc, "/v1/quarantine", message)
    assert status == 200, body
    return msgspec.convert(body, ReportAnswer)


async def quarantined(tc: Caller, digest: str = "d1") -> tuple[UUID, UUID]:
    """A rolled-back transaction with one branch that its resource reported as quarantined."""
    xid, branch = new_xid(), branch_of("capacity")
    await tc.say(rollback(xid, branch))
    images = Images(digest, 1, ROWS)
    answer = await report(tc, xid, branch.branch, BranchState.QUARANTINED, digest=digest, images=images)
    assert answer == ReportAnswer()
    return xid, branch.branch


def decision(action: str = "restore", shown: str | None = "d1", **more: Any) -> dict[str, Any]:
    """A decision of ada about `capacity`."""
    made = {"resolution_id": uuid4(), "resource": "capacity", "action": action, "by": "ada", "shown": shown}
    return {**made, **more}


async def resolve(tc: Caller, xid: UUID, body: dict[str, Any]) -> tuple[int, Any]:
    """Status and body of a decision by the operator."""
    return await post(tc.named("operator"), f"/v1/transactions/{xid}/resolve", body)


async def test_images_are_kept_until_the_end_and_decisions_for_good(tc: Caller) -> None:
    """Shown while it is quarantined; what was decided on them stays with the transaction."""
    xid, branch = await quarantined(tc)
    _, body = await tc.get(f"/v1/transactions/{xid}")
    assert (body["settlement"], body["quarantine"][0]["images"], body["quarantine"][0]["shown"]) == (
        "QUARANTINED", ROWS, "d1",
    )  # fmt: skip
    assert (await report(tc, xid, branch, BranchState.QUARANTINED)).show is False
    assert (await report(tc, xid, branch, BranchState.QUARANTINED, digest="d2")).show is True
    made = decision()
    status, taken = await resolve(tc, xid, made)
    assert (status, taken["done_ms"], taken["by"], taken["caller"]) == (200, None, "ada", "operator")
    waiting = (await report(tc, xid, branch, BranchState.QUARANTINED)).resolution
    assert waiting is not None
    assert (waiting.resolution_id, waiting.action, waiting.shown) == (made["resolution_id"], "restore", "d1")
    done = Resolved(waiting.resolution_id, {"state": 2, "kept": 0, "restored": 1})
    assert await report(tc, xid, branch, BranchState.UNDONE, resolved=done) == ReportAnswer()
    _, body = await tc.get(f"/v1/transactions/{xid}")
    assert (body["settlement"], body["quarantine"]) == ("SETTLED", [])
    [audited] = body["resolutions"]
    assert (audited["images"], audited["outcome"]) == (ROWS, done.outcome)
    assert await tc.get(f"/v1/resolutions/{made['resolution_id']}") == (200, audited)


async def test_a_decision_that_is_nudged_is_answered_with_its_outcome(tc: Caller) -> None:
    """The resource is made to look at once; who decides hears what came of it in the same call."""
    async with resource_at("capacity", tc) as capacity:
        xid, branch = await quarantined(tc)
        capacity.heard.clear()
        deciding = asyncio.create_task(resolve(tc, xid, decision()))
        await eventually(lambda: any(not nudge.settle for nudge in capacity.heard))
        waiting = (await report(tc, xid, branch, BranchState.QUARANTINED)).resolution
        assert waiting is not None
        done = Resolved(waiting.resolution_id, {"state": 2, "kept": 0, "restored": 1})
        await report(tc, xid, branch, BranchState.UNDONE, resolved=done)
        status, body = await deciding
    assert (status, body["outcome"]) == (200, done.outcome)


async def test_of_two_decisions_at_once_one_is_taken_over_both_replicas(tcs: tuple[Caller, Caller]) -> None:
    """The other hears who was first and what was decided; the same one again is no other."""
    xid, _ = await quarantined(tcs[0])
    made = [decision("keep"), decision("restore", by="bob")]
    answers = await asyncio.gather(*(resolve(tc, xid, body) for tc, body in zip(tcs, made, strict=True)))
    assert sorted(status for status, _ in answers) == [200, 409]
    first = 0 if answers[0][0] == 200 else 1
    refused = answers[1 - first][1]
    assert refused["code"] == "decided-already"
    assert ["ada: keep", "bob: restore"][first] in refused["detail"]
    status, again = await resolve(tcs[1 - first], xid, made[first])
    assert (status, again["resolution_id"]) == (200, str(made[first]["resolution_id"]))
    assert len((await tcs[0].get(f"/v1/transactions/{xid}"))[1]["resolutions"]) == 1


async def test_a_wrong_decision_says_why_and_is_not_taken_down(tc: Caller) -> None:
    """Unknown, not quarantined, changed since, not shown yet, not the operator, and what makes no sense."""
    xid, branch = await quarantined(tc)
    settling, unseen, unseen_branch = new_xid(), new_xid(), branch_of("capacity")
    await tc.say(rollback(settling, branch_of("capacity")), rollback(unseen, unseen_branch))
    await tc.say(Confirm(unseen, "capacity", [(unseen_branch.branch, BranchState.QUARANTINED)]))
    kept = [{"table": "public.night", "key": {"id": 1}}]
    wrong: list[tuple[UUID, dict[str, Any], int, str]] = [
        (new_xid(), decision(), 404, "not-found"),
        (settling, decision(), 409, "not-quarantined"),
        (xid, decision(resource="elsewhere"), 409, "not-quarantined"),
        (xid, decision(shown="d0"), 409, "changed"),
        (unseen, decision(), 409, "not-shown"),
        (xid, decision("forget"), 400, "bad-request"),
        (xid, decision(shown=None), 400, "bad-request"),
        (xid, decision(by=""), 400, "bad-request"),
        (xid, decision(kept=kept), 400, "bad-request"),
        (xid, decision("keep", kept=[]), 400, "bad-request"),
        (xid, decision("keep", kept=[{"table": "x"}]), 400, "bad-request"),
        (xid, {"action": "keep"}, 400, "bad-request"),
    ]
    for subject, body, status, code in wrong:
        answered, problem = await resolve(tc, subject, body)
        assert (answered, problem["code"]) == (status, code), (body, problem)
        assert len(problem["detail"]) > 20
    status, problem = await post(tc, f"/v1/transactions/{xid}/resolve", decision())
    assert (status, problem["code"]) == (403, "operator-only")
    for subject in (xid, settling, unseen):
        assert (await tc.get(f"/v1/transactions/{subject}"))[1]["resolutions"] == []
    assert (await report(tc, xid, branch, BranchState.QUARANTINED)).resolution is None


async def test_a_refused_decision_leaves_room_for_the_next(tc: Caller) -> None:
    """Its outcome is written down; the transaction stays quarantined and can be decided again."""
    xid, branch = await quarantined(tc)
    made = decision()
    await resolve(tc, xid, made)
    refused = Resolved(made["resolution_id"], {"state": 3, "error": "a row was changed again"})
    images = Images("d2", 1, ROWS)
    answer = await report(tc, xid, branch, BranchState.QUARANTINED, digest="d2", images=images, resolved=refused)
    assert answer.resolution is None
    late = Resolved(made["resolution_id"], {"state": 2})
    await report(tc, xid, branch, BranchState.QUARANTINED, digest="d2", resolved=late)
    assert (await resolve(tc, xid, decision()))[1]["code"] == "changed"
    assert (await resolve(tc, xid, decision("keep", "d2")))[0] == 200
    _, body = await tc.get(f"/v1/transactions/{xid}")
    assert [one["outcome"] for one in body["resolutions"]] == [refused.outcome, None]


async def test_a_retry_tells_the_open_branches_at_once(tc: Caller) -> None:
    """Also after the nudges have come to their end; what needs no retry says why."""
    operator = tc.named("operator")
    async with resource_at("capacity", tc) as capacity:

        async def nudge_failed() -> bool:
            return bool((await tc.get("/v1/statistics"))[1]["replica"]["nudges_failed"])

        capacity.failing = True
        xid, undecided, quarantine = new_xid(), new_xid(), (await quarantined(tc))[0]
        await tc.say(commit(xid, branch_of("capacity")), begin(undecided))
        await eventually(nudge_failed)
        capacity.failing = False
        capacity.heard.clear()
        status, body = await post(operator, f"/v1/transactions/{xid}/retry", None)
        assert (status, body) == (200, {"told": ["capacity"]})
        await eventually(lambda: xid in capacity.xids())

        async def settled() -> bool:
            return await tc.settlement(xid) == "SETTLED"

        await eventually(settled)
    for subject, code in (
        (xid, "settled"),
        (undecided, "undecided"),
        (quarantine, "quarantined"),
        (new_xid(), "not-found"),
    ):
        _, problem = await post(operator, f"/v1/transactions/{subject}/retry", None)
        assert problem["code"] == code
    assert (await post(tc, f"/v1/transactions/{xid}/retry", None))[0] == 403


async def test_who_waits_for_whom_is_shown_over_both_replicas(tcs: tuple[Caller, Caller]) -> None:
    """Waiter and holder by id and name, the longest wait first; a plain writer has no id."""
    holder, waiter = new_xid(), new_xid()
    await tcs[0].say(begin(holder, name="book"), begin(waiter, name="pay"))
    waiting = [
        asyncio.create_task(tcs[0].wait(Wait(holder, now_ms(30), waiter, now_ms(30), "capacity", 20_000))),
        asyncio.create_task(tcs[1].wait(Wait(waiter, now_ms(30), None, None, "order", 20_000))),
    ]

    async def both() -> bool:
        return len((await tcs[1].get("/v1/waits"))[1]["items"]) == 2

    await eventually(both)
    _, graph = await tcs[1].get("/v1/waits")
    shown = {(w["waiter"], w["waiter_name"], w["holder"], w["holder_name"], w["resource"]) for w in graph["items"]}
    assert shown == {
        (str(waiter), "pay", str(holder), "book", "capacity"),
        (None, None, str(waiter), "pay", "order"),
    }
    await tcs[0].say(rollback(holder), rollback(waiter))
    await asyncio.gather(*waiting)


@pytest.mark.parametrize("late", [False, True])
async def test_a_restored_database_is_noticed_and_a_late_life_sign_is_not_one(
    tc: Caller, database: str, late: bool
) -> None:
    """Marks that do not go on are asked for again; only if they still do not fit, an alert is opened, and once."""
    incarnation, marks = uuid4(), [uuid4() for _ in range(4)]

    async def pulse(place: int, known: UUID | None = None) -> PulseAnswer:
        message = Pulse("capacity", incarnation, place, marks[place], marks[place - 1], now_ms(), known)
        status, body = await post(tc, "/v1/resources/pulse", message)
        assert status == 200, body
        return msgspec.convert(body, PulseAnswer)

    for place in (1, 2, 2, 3):
        assert not (await pulse(place)).unfit
    answer = await pulse(1)
    assert (answer.unfit, answer.known) == (True, marks[3])
    for _ in range(2):
        again = await pulse(3 if late else 1, answer.known)
        assert not again.unfit
    connection = await asyncpg.connect(database)
    try:
        alerts = await connection.fetch("SELECT kind, subject FROM tc.alert")
    finally:
        await connection.close()
    assert [tuple(row) for row in alerts] == ([] if late else [("resource.went_back", "capacity")])


async def test_lists_are_filtered_by_resource_and_age(tc: Caller) -> None:
    """A resource narrows to where branches are known; age is that of the xid."""
    old, young, other = new_xid(age_s=100), new_xid(), new_xid()
    await tc.say(
        commit(old, branch_of("capacity")), commit(young, branch_of("capacity")), commit(other, branch_of("x"))
    )

    async def found(**query: str) -> set[str]:
        return {item["xid"] for item in (await tc.get("/v1/transactions", **query))[1]["items"]}

    assert await found(resource="capacity") == {str(old), str(young)}
    assert await found(resource="capacity", older_than_s="50", settlement="settling") == {str(old)}
    assert await found(older_than_s="1000") == set()
    assert (await tc.get("/v1/transactions", older_than_s="-1"))[0] == 400


async def test_what_is_not_finished_is_found_without_reading_history(database: str) -> None:
    """Lists of the unsettled and the undecided use their own index; a page deep in history begins at its cursor."""
    store = Store(database, uuid4(), QUICK)
    await store.open()
    try:
        await store.read(HISTORY)
        for wanted, index in (
            (Filter(settlement=Settlement.QUARANTINED), "unsettled"),
            (Filter(settlement=Settlement.SETTLING, resource="capacity"), "unsettled"),
            (Filter(decision=Decision.UNDECIDED), "undecided"),
            (Filter(settlement=Settlement.OPEN), "undecided"),
        ):
            plan = await store.read(f"EXPLAIN {wanted.sql()}", wanted.name, wanted.resource, None, 51)
            scans = [row[0] for row in plan if "Index Scan" in row[0] and "branch" not in row[0]]
            assert [index in scan for scan in scans] == [True], plan
        plan = await store.read(f"EXPLAIN {Filter().sql()}", None, None, new_xid(), 51)
        assert any("Index Cond: (xid <" in row[0] for row in plan), plan
    finally:
        await store.close()
