"""Reviews of finished stays: blind until both are in, published once, replied to once."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import pytest

from services.kit.auth import AccountStatus
from services.review.config import BLIND_DAYS, SPEC
from services.review.use_cases import Reviews
from tests.support.services import eventually, later, queued, replica
from tests.support.system import Answer, System

pytestmark = pytest.mark.asyncio(loop_scope="module")

COMPLETED = 3


@dataclass(frozen=True)
class Stay:
    """A stay of which both sides may tell."""

    id: UUID
    owner: UUID
    provider: UUID
    listing: UUID


def new_stay(system: System, stays: dict[UUID, Any], *, status: int = COMPLETED, listing: UUID | None = None) -> Stay:
    stay = Stay(system.new_id(), system.new_id(), system.new_id(), listing or uuid4())
    stays[stay.id] = {
        "id": stay.id,
        "owner_id": stay.owner,
        "provider_id": stay.provider,
        "listing_id": stay.listing,
        "status": status,
    }
    return stay


async def write(system: System, who: UUID, stay: Stay, rating: int = 5) -> Answer:
    body = {"order_id": str(stay.id), "rating": rating, "text": "很好"}
    return await system.as_person("review", who).post("/api/reviews", body)


async def shown(system: System, **params: UUID) -> list[dict[str, Any]]:
    answer = await system.client("review").get("/api/reviews", **{k: str(v) for k, v in params.items()})
    assert answer.status == 200, answer
    return list(answer.body["items"])


async def told(system: System, *people: UUID) -> list[str]:
    """Who was sent a notification, one entry for each message; waits until the outbox is empty.

    A message that left twice (a relay was stopped between sending and forgetting it) is one: so its reader sees it.
    """

    async def left() -> bool:
        return not await system.fetch("review", "SELECT 1 FROM outbox")

    await eventually(left)
    messages = {m["message_id"]: m["kwargs"]["recipient"] for m in await queued(system.redis_url, "notification")}
    return sorted(recipient for recipient in messages.values() if UUID(recipient) in people)


async def ratings_sent(system: System, listing: UUID) -> list[tuple[int, int]]:
    await told(system)
    messages = {m["message_id"]: m["kwargs"] for m in await queued(system.redis_url, "boarding")}
    found = [messages[number] for number in sorted(messages) if messages[number]["listing_id"] == str(listing)]
    return [(m["count"], m["mean_x100"]) for m in found]


async def test_the_first_review_stays_hidden_and_the_second_publishes_both(
    system: System, stays: dict[UUID, Any]
) -> None:
    """Neither side can read the other's before its own is in; then each is told once, and the listing is rated."""
    stay = new_stay(system, stays)
    first = await write(system, stay.owner, stay, rating=4)
    assert (first.status, first.body["published_at"]) == (201, None)
    assert await shown(system, service_id=stay.listing) == await shown(system, user_id=stay.provider) == []
    second = await write(system, stay.provider, stay, rating=2)
    assert second.body["published_at"] is not None
    assert [r["rating"] for r in await shown(system, service_id=stay.listing)] == [4]
    assert [r["rating"] for r in await shown(system, user_id=stay.owner)] == [2]
    people = sorted([str(stay.owner), str(stay.provider)])
    assert await told(system, stay.owner, stay.provider) == people
    assert await ratings_sent(system, stay.listing) == [(1, 400)]


async def test_two_sides_at_the_same_time_publish_both_exactly_once(system: System, stays: dict[UUID, Any]) -> None:
    """Whoever comes second sees the first: no pair stays hidden, none is announced twice."""
    pairs = [new_stay(system, stays) for _ in range(8)]
    await asyncio.gather(*(write(system, who, stay) for stay in pairs for who in (stay.owner, stay.provider)))
    for stay in pairs:
        assert len(await shown(system, service_id=stay.listing)) == 1
        assert len(await shown(system, user_id=stay.owner)) == 1
        assert len(await told(system, stay.owner, stay.provider)) == 2


async def test_after_fourteen_days_a_review_is_shown_alone(system: System, stays: dict[UUID, Any]) -> None:
    """Not a moment earlier; the other side's, when it comes after all, is shown at once and announced alone."""
    stay = new_stay(system, stays)
    await write(system, stay.owner, stay)
    async with replica(system, SPEC, later(days=BLIND_DAYS, hours=-1)) as early:
        await Reviews(early).publish_due()
    assert await shown(system, service_id=stay.listing) == []
    async with replica(system, SPEC, later(days=BLIND_DAYS)) as due:
        await asyncio.gather(*(Reviews(due).publish_due() for _ in range(3)))
    assert len(await shown(system, service_id=stay.listing)) == 1
    assert await told(system, stay.owner, stay.provider) == [str(stay.provider)]
    late = await write(system, stay.provider, stay)
    assert late.body["published_at"] is not None
    assert await told(system, stay.owner, stay.provider) == sorted([str(stay.owner), str(stay.provider)])


async def test_the_fourteenth_day_and_the_second_review_together_announce_each_once(
    system: System, stays: dict[UUID, Any]
) -> None:
    """Whichever publishes a review, its subject hears of it once."""
    old = [new_stay(system, stays) for _ in range(6)]
    for stay in old:
        await write(system, stay.owner, stay)
    async with replica(system, SPEC, later(days=BLIND_DAYS)) as due:
        await asyncio.gather(Reviews(due).publish_due(), *(write(system, stay.provider, stay) for stay in old))
    for stay in old:
        assert await told(system, stay.owner, stay.provider) == sorted([str(stay.owner), str(stay.provider)])


async def test_a_listings_rating_counts_every_shown_review(system: System, stays: dict[UUID, Any]) -> None:
    """Also of stays that are published at the same time; the summary names its formula."""
    listing = uuid4()
    same = [new_stay(system, stays, listing=listing) for _ in range(4)]
    for stay, rating in zip(same, (5, 4, 4, 2), strict=True):
        await write(system, stay.owner, stay, rating)
    await asyncio.gather(*(write(system, stay.provider, stay) for stay in same))
    sent = await ratings_sent(system, listing)
    assert sorted(number for number, _ in sent) == [1, 2, 3, 4]
    assert (4, 375) in sent
    summary = (await system.client("review").get("/api/reviews/summary", service_id=str(listing))).body
    assert (summary["count"], summary["mean"], summary["score"]) == (4, 3.75, 3.89)
    assert "count" in summary["formula"]


async def test_only_the_two_sides_of_a_completed_stay_review_it_and_once(
    system: System, stays: dict[UUID, Any]
) -> None:
    """A stranger and an unknown stay are 404, an unfinished stay and a second review 409."""
    stay = new_stay(system, stays)
    assert (await write(system, system.new_id(), stay)).status == 404
    unknown = Stay(system.new_id(), stay.owner, stay.provider, stay.listing)
    assert (await write(system, stay.owner, unknown)).status == 404
    running = new_stay(system, stays, status=2)
    refused = await write(system, running.owner, running)
    assert (refused.status, refused.body["code"]) == (409, "stay-not-completed")
    answers = await asyncio.gather(*(write(system, stay.owner, stay) for _ in range(3)))
    assert sorted(answer.status for answer in answers) == [201, 409, 409]


async def test_whoever_was_reviewed_replies_once(system: System, stays: dict[UUID, Any]) -> None:
    """Of several replies at once one is kept; a stranger, and anybody while it is hidden, finds nothing."""
    stay = new_stay(system, stays)
    review = (await write(system, stay.owner, stay)).body["id"]

    async def reply(who: UUID, text: str) -> Answer:
        return await system.as_person("review", who).put(f"/api/reviews/{review}/reply", {"text": text})

    assert (await reply(stay.provider, "谢谢")).status == 404
    await write(system, stay.provider, stay)
    assert (await reply(stay.owner, "我")).status == 404
    answers = await asyncio.gather(*(reply(stay.provider, f"谢谢{number}") for number in range(3)))
    assert sorted(answer.status for answer in answers) == [200, 409, 409]
    kept = next(answer for answer in answers if answer.status == 200)
    [seen] = await shown(system, service_id=stay.listing)
    assert seen["reply"] == kept.body["reply"]


async def test_a_shown_review_can_be_reported_and_a_hidden_one_not(system: System, stays: dict[UUID, Any]) -> None:
    """A report of the same person replaces the one before."""
    stay = new_stay(system, stays)
    review = (await write(system, stay.owner, stay)).body["id"]
    reporter = system.as_person("review", system.new_id())
    path = f"/api/reviews/{review}/report"
    assert (await reporter.post(path, {"reason": "广告"})).status == 404
    await write(system, stay.provider, stay)
    for reason in ("广告", "辱骂"):
        assert (await reporter.post(path, {"reason": reason})).status == 202
    found = await system.fetch("review", "SELECT reason FROM reports WHERE review_id = $1", UUID(review))
    assert [row["reason"] for row in found] == ["辱骂"]


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"rating": 0}, "/rating"),
        ({"rating": 6}, "/rating"),
        ({"rating": 4.5}, "/rating"),
        ({"text": ""}, "/text"),
        ({"order_id": "x"}, "/order_id"),
        ({"direction": "of_owner"}, "/direction"),
        ({"published_at": "2026-01-01T00:00:00Z"}, "/published_at"),
    ],
)
async def test_a_review_that_does_not_fit_is_a_400_that_points_at_the_field(
    system: System, change: dict[str, Any], pointer: str
) -> None:
    """Ratings are whole stars from one to five; nothing else can be said."""
    body = {"order_id": str(uuid4()), "rating": 5, "text": "好", **change}
    answer = await system.as_person("review", system.new_id()).post("/api/reviews", body)
    assert (answer.status, [error["pointer"] for error in answer.body["errors"]]) == (400, [pointer])


async def test_somebody_who_is_not_approved_writes_nothing(system: System, stays: dict[UUID, Any]) -> None:
    """Reading needs nobody, writing an approved account."""
    stay = new_stay(system, stays)
    token = system.access_token(stay.owner, status=AccountStatus.PENDING)
    body = {"order_id": str(stay.id), "rating": 5, "text": "好"}
    assert (await system.client("review", token).post("/api/reviews", body)).status == 403
    assert (await system.client("review").post("/api/reviews", body)).status == 401
    assert (await system.client("review").get("/api/reviews")).status == 400
