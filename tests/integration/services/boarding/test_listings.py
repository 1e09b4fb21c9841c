"""What providers and administrators do with listings, and what the cache knows of it."""

from __future__ import annotations

import asyncio
from datetime import date
from typing import Any
from uuid import UUID, uuid4

import dramatiq
import pytest

from services.boarding.actors import RATING
from services.boarding.config import QUEUE
from services.kit.broker import make_broker
from services.kit.cache import MARK
from services.kit.problems import Problem
from tests.integration.services.boarding.offers import DRAFT, PATH, ahead, provider
from tests.integration.services.capacity.callers import Caller
from tests.support.services import eventually, queued, redis_of
from tests.support.system import Answer, System

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def decide(admin: Caller, listing_id: UUID, verb: str, reason: str = "") -> Any:
    return await admin.once(f"/internal/listings/{listing_id}/{verb}", {"reason": reason})


async def shown(system: System, listing_id: UUID) -> Answer:
    return await system.client("boarding").get(f"{PATH}/{listing_id}")


async def cached(system: System, listing_id: UUID) -> bool:
    """Whether there is a value in the cache."""
    async with redis_of(system.redis_url) as redis:
        raw = await redis.get(f"service:{listing_id}")
    return raw is not None and not bytes(raw).startswith(MARK)


async def told(system: System, user_id: UUID) -> list[str]:
    """The kinds of notifications for somebody, oldest first."""
    messages = await queued(system.redis_url, "notification")
    mine = [m for m in messages if m["kwargs"]["recipient"] == str(user_id)]
    return [m["kwargs"]["kind"] for m in sorted(mine, key=lambda m: str(m["message_id"]))]


async def relayed(system: System) -> None:
    """Returns once the outbox is empty."""

    async def empty() -> bool:
        return not await system.fetch("boarding", "SELECT FROM outbox")

    await eventually(empty)


async def test_a_listing_goes_from_draft_to_approved_and_its_provider_hears_of_it(
    system: System, admin: Caller
) -> None:
    """Others find it only when it is approved; every decision tells the provider once, with the reason."""
    somebody = provider(system)
    listing_id = await somebody.draft()
    assert (await shown(system, listing_id)).status == 404
    assert (await somebody.do("get", listing_id, "")).body["audit_status"] == -1
    assert (await somebody.do("post", listing_id, "submit")).body["audit_status"] == 0
    assert (await shown(system, listing_id)).status == 404
    assert (await decide(admin, listing_id, "reject", "图片不清楚"))["audit_status"] == 2
    assert (await somebody.do("post", listing_id, "submit")).body["audit_status"] == 0
    assert await decide(admin, listing_id, "approve") == {
        "id": str(listing_id),
        "provider_id": str(somebody.id),
        "title": DRAFT["title"],
        "audit_status": 1,
        "price_cents": 10_000,
        "city": "上海",
        "time_zone": "Asia/Shanghai",
    }
    await relayed(system)
    assert (await shown(system, listing_id)).body["title"] == DRAFT["title"]
    assert (await decide(admin, listing_id, "take-down", "投诉"))["audit_status"] == 3
    await relayed(system)
    assert (await shown(system, listing_id)).status == 404
    assert (await decide(admin, listing_id, "restore"))["audit_status"] == 1
    await relayed(system)
    assert (await shown(system, listing_id)).status == 200
    kinds = ["listing_rejected", "listing_approved", "listing_taken_down", "listing_restored"]
    assert await told(system, somebody.id) == kinds
    texts = [m["kwargs"]["text"] for m in await queued(system.redis_url, "notification")]
    assert f"《{DRAFT['title']}》：投诉" in texts


async def test_a_step_that_does_not_lead_on_is_refused(system: System, admin: Caller) -> None:
    """A 409 that names the state, and nothing is changed."""
    listing_id = await provider(system).draft()
    for verb in ("approve", "reject", "take-down", "restore"):
        with pytest.raises(Problem) as refused:
            await decide(admin, listing_id, verb)
        assert (refused.value.status, refused.value.code) == (409, "illegal-transition")
    with pytest.raises(Problem) as missing:
        await decide(admin, uuid4(), "approve")
    assert missing.value.status == 404
    pending = provider(system)
    waiting = await pending.pending()
    assert (await pending.do("post", waiting, "submit")).body["code"] == "illegal-transition"


async def test_an_approval_that_is_rolled_back_leaves_the_listing_pending_and_tells_nobody(
    system: System, admin: Caller
) -> None:
    """Neither the outbox nor the queue has a word of it."""
    somebody = provider(system)
    listing_id = await somebody.pending()
    async with admin.undone():
        assert (await admin.call(f"/internal/listings/{listing_id}/approve", {}))["audit_status"] == 1
    await system.quiet()
    assert (await somebody.do("get", listing_id, "")).body["audit_status"] == 0
    await relayed(system)
    assert await told(system, somebody.id) == []
    assert (await decide(admin, listing_id, "approve"))["audit_status"] == 1


async def test_two_decisions_at_once_are_one_decision(system: System, admin: Caller) -> None:
    """The other one waits, sees the first, and is refused."""
    listing_id = await provider(system).pending()

    async def approve(verb: str) -> str:
        async def once() -> str:
            await decide(admin, listing_id, verb)
            return verb

        return await admin.until_answered(once)

    outcomes = await asyncio.gather(approve("approve"), approve("reject"), approve("approve"))
    assert sorted(outcomes).count("illegal-transition") == 2


async def test_decisions_are_for_the_admin_service_inside_a_transaction(system: System, admin: Caller) -> None:
    """Other services, people and calls outside of a transaction are refused."""
    somebody = provider(system)
    path = f"/internal/listings/{await somebody.pending()}/approve"
    assert (await system.as_service("boarding", "order").post(path, {})).status == 403
    assert (await somebody.api.post(path, {})).status == 401
    outside = await system.as_service("boarding", "admin").post(path, {})
    assert (outside.status, outside.body["code"]) == (400, "transaction-missing")


async def test_somebody_elses_listing_is_not_there(system: System) -> None:
    """404 for every change, as for a listing that does not exist; owners of pets may not publish."""
    listing_id = await provider(system).offered()
    other = provider(system)
    for where in (listing_id, uuid4()):
        for method, what, body in (
            ("patch", "", {"title": "x"}),
            ("put", "capacity", {"pools": {"dog-M": 1}}),
            ("put", "blocked-dates", {"nights": []}),
            ("post", "submit", None),
        ):
            answer = await other.do(method, where, what, body)
            assert (answer.status, answer.body["code"]) == (404, "not-found"), (what, answer.body)
    assert (await system.as_person("boarding", uuid4()).post(PATH, DRAFT)).status == 403
    assert (await system.client("boarding").post(PATH, DRAFT)).status == 401


async def test_a_provider_sees_their_own_listings_in_pages(system: System) -> None:
    """Each once, in any state; nobody else's."""
    somebody = provider(system)
    made = [str(await somebody.draft()) for _ in range(3)]
    first = (await somebody.api.get(PATH, limit="2")).body
    rest = (await somebody.api.get(PATH, limit="2", cursor=first["next_cursor"])).body
    assert [item["service_id"] for item in first["items"] + rest["items"]] == made
    assert rest["next_cursor"] is None


async def test_an_administrator_sees_what_waits(system: System) -> None:
    """In pages by state; other services may not ask."""
    listing_id = await provider(system).pending()
    api = system.as_service("boarding", "admin")
    found, cursor = set(), ""
    while True:
        page = (await api.get("/internal/listings", audit_status="0", limit="2", **cursor_of(cursor))).body
        found |= {item["service_id"] for item in page["items"]}
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert str(listing_id) in found
    assert (await api.get("/internal/listings", audit_status="70000")).status == 400
    assert (await api.get(f"/internal/listings/{listing_id}")).body["audit_status"] == 0
    assert (await api.get(f"/internal/listings/{uuid4()}")).status == 404
    assert (await system.as_service("boarding", "order").get("/internal/listings")).status == 403


def cursor_of(cursor: str) -> dict[str, str]:
    return {"cursor": cursor} if cursor else {}


@pytest.mark.parametrize(
    ("changes", "pointer"),
    [
        ({"price_cents": 0}, "/price_cents"),
        ({"latitude": 91}, "/latitude"),
        ({"title": ""}, "/title"),
        ({"title": "a\0b"}, "/title"),
        ({"policy": "never"}, "/policy"),
        ({"colour": "red"}, "/colour"),
        ({"time_zone": "Mars/Olympus"}, "/time_zone"),
        ({"time_zone": "../etc/passwd"}, "/time_zone"),
        ({"schedule": {"min_nights": 5, "max_nights": 4}}, "/schedule/min_nights"),
        ({"capacity": {"dog-M": -1}}, "/capacity"),
        ({"prices": {"weekend_percent": 501}}, "/prices/weekend_percent"),
    ],
)
async def test_a_body_that_does_not_fit_is_refused_with_a_pointer(
    system: System, changes: dict[str, Any], pointer: str
) -> None:
    """A 400 that names the member, and no listing."""
    somebody = provider(system)
    answer = await somebody.api.post(PATH, {**DRAFT, **changes})
    assert (answer.status, answer.body["code"]) == (400, "invalid-request"), answer.body
    assert any(error["pointer"].startswith(pointer) for error in answer.body["errors"]), answer.body
    assert (await somebody.api.get(PATH)).body["items"] == []


async def test_a_change_touches_what_it_names(system: System) -> None:
    """The rest stays, in both tables; the answer and the next reader have it."""
    somebody = provider(system)
    listing_id = await somebody.offered()
    before = (await shown(system, listing_id)).body
    changes = {"title": "新名字", "prices": {"weekend_percent": 20, "extra_pet_percent": 50, "long_stay": []}}
    answer = await somebody.do("patch", listing_id, "", changes)
    assert answer.body == {**before, **changes}
    assert (await shown(system, listing_id)).body == {**before, **changes}
    assert (await somebody.do("patch", listing_id, "", {"policy": "never"})).status == 400
    wrong = {"schedule": {"min_nights": 9, "max_nights": 8}}
    assert (await somebody.do("patch", listing_id, "", wrong)).status == 400


async def test_places_that_are_taken_cannot_be_given_up(system: System) -> None:
    """409 with nothing changed; what is not taken can be given up, and new kinds of pets added."""
    somebody = provider(system)
    listing_id = await somebody.offered(capacity={"dog-M": 2, "cat-S": 1})
    sql = (
        "INSERT INTO nights (listing_id, pool, night, total, held, booked, fence) VALUES ($1, 'dog-M', $2, 2, 0, 2, 0)"
    )
    await system.fetch("capacity", sql, listing_id, date.fromisoformat(ahead(9)))
    refused = await somebody.do("put", listing_id, "capacity", {"pools": {"dog-M": 1}})
    assert (refused.status, refused.body["code"]) == (409, "capacity-in-use")
    assert (await shown(system, listing_id)).body["pools"] == ["cat-S", "dog-M"]
    pools = {"dog-M": 2, "dog-L": 3, "other-S": 0}
    assert (await somebody.do("put", listing_id, "capacity", {"pools": pools})).body == {"pools": pools}
    assert (await shown(system, listing_id)).body["pools"] == ["dog-L", "dog-M"]


async def test_closed_nights_are_replaced_as_a_whole(system: System) -> None:
    """Also when the same list comes several times at once; the past is not written."""
    somebody = provider(system)
    listing_id = await somebody.draft()
    first, second = {"nights": [ahead(5), ahead(6), ahead(5)]}, {"nights": [ahead(6), ahead(7), "2020-01-01"]}
    for body in (first, second):
        answers = await asyncio.gather(*(somebody.do("put", listing_id, "blocked-dates", body) for _ in range(4)))
        assert {answer.status for answer in answers} == {200}
    rows = await system.fetch("boarding", "SELECT night FROM blocked_dates WHERE listing_id = $1", listing_id)
    assert sorted(str(row["night"]) for row in rows) == [ahead(6), ahead(7)]


async def test_a_rating_is_taken_over_once_and_never_an_older_one(system: System) -> None:
    """Each message comes twice, in whatever order the worker takes them; one is about no listing."""
    listing_id = await provider(system).offered()
    assert (await shown(system, listing_id)).body["rating_count"] == 0
    ratings = [(listing_id, 5, 480), (listing_id, 4, 475), (listing_id, 3, 100), (uuid4(), 1, 500)]
    broker = make_broker(system.redis_url, processing=False)
    for about, count, mean in ratings * 2:
        args = {"listing_id": str(about), "count": count, "mean_x100": mean, "message_id": str(uuid4())}
        broker.enqueue(dramatiq.Message(QUEUE, RATING, (), args, {}))
    broker.close()

    async def rated() -> bool:
        body = (await shown(system, listing_id)).body
        return (body["rating_count"], body["rating"]) == (5, 4.8) and not await queued(system.redis_url, QUEUE)

    async with system.worker("boarding"):
        await eventually(rated)
    await relayed(system)
    assert (await shown(system, listing_id)).body["rating"] == 4.8


async def test_a_shown_listing_is_cached_until_it_changes(system: System, admin: Caller) -> None:
    """By its provider's change at once, by an administrator's decision once that is committed."""
    somebody = provider(system)
    listing_id = await somebody.offered()
    await relayed(system)
    assert not await cached(system, listing_id)
    await shown(system, listing_id)
    assert await cached(system, listing_id)
    await somebody.do("patch", listing_id, "", {"title": "改了"})
    assert (await shown(system, listing_id)).body["title"] == "改了"
    await relayed(system)
    await shown(system, listing_id)
    async with admin.coordinator.global_transaction("take-down", timeout_s=30.0):
        await admin.call(f"/internal/listings/{listing_id}/take-down", {})
        assert (await shown(system, listing_id)).status == 200, "undecided: what was cached before still holds"

    async def gone() -> bool:
        return (await shown(system, listing_id)).status == 404

    await eventually(gone)


async def test_what_an_undecided_decision_wrote_is_answered_and_not_cached(system: System, admin: Caller) -> None:
    """It is rolled back, and then nobody finds what never was: not even the next reader."""
    somebody = provider(system)
    listing_id = await somebody.pending()
    await relayed(system)
    async with admin.undone():
        await admin.call(f"/internal/listings/{listing_id}/approve", {})
        assert (await shown(system, listing_id)).body["audit_status"] == 1
        assert not await cached(system, listing_id)
    await system.quiet()
    assert (await shown(system, listing_id)).status == 404
    assert (await somebody.do("get", listing_id, "")).body["audit_status"] == 0
    assert await cached(system, listing_id)
