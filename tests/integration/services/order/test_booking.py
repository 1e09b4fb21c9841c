"""Booking under pressure: what is refused, what is repeated, and who gets the last place."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import pytest

from tests.integration.services.order.market import Market, at_once, running_market
from tests.support.servers import TestPostgres

pytestmark = pytest.mark.asyncio(loop_scope="session")

RACERS = 20
PLACES = 3


async def race(market: Market) -> None:
    """Twenty owners at once for three places."""
    listing = await market.listing(PLACES)
    owners = await asyncio.gather(*(market.owner(cents=0) for _ in range(RACERS)))
    before = await market.rows()
    answers = await at_once(*(market.book(owner, listing) for owner in owners))
    won = [answer for answer in answers if answer.status == 201]
    assert len(won) == PLACES, [(answer.status, answer.body) for answer in answers]
    assert {answer.body["code"] for answer in answers if answer.status != 201} <= {"capacity-exhausted", "lock-busy"}
    assert await market.nights(listing) == [(PLACES, 0), (PLACES, 0)]
    await market.audit()
    after = await market.rows()
    assert after["order.orders"] - before["order.orders"] == PLACES
    assert after["order.provider_orders"] - before["order.provider_orders"] == PLACES
    assert after["pet.claimed_nights"] - before["pet.claimed_nights"] == PLACES * 2


async def test_exactly_three_of_twenty_get_three_places(market: Market) -> None:
    """Never more, never fewer, and nothing is left of the others."""
    await race(market)


async def test_without_the_gate_it_is_still_exactly_three(
    postgres: TestPostgres, valkey: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Redlock is the gate for traffic, not the proof of safety."""
    async with running_market(postgres, valkey, tmp_path_factory.mktemp("order"), redlock=False) as market:
        await race(market)


async def test_a_booking_that_fails_in_a_later_branch_leaves_no_row(market: Market) -> None:
    """The pet is elsewhere on one of the nights: nights, order and index are as if nobody had asked."""
    first, second, owner = await market.listing(1), await market.listing(1), await market.owner()
    await market.booked(owner, first)
    await market.audit()
    before = await market.rows()
    refused = await market.book(owner, second, begins_in_days=1)
    assert (refused.status, refused.body["code"]) == (409, "pet-already-booked")
    await market.audit()
    after = await market.rows()
    assert after == before
    assert set(await market.nights(second)) <= {(0, 0)}


async def test_overlapping_stays_in_the_last_place_exclude_each_other(market: Market) -> None:
    """Not only equal stays: one common night is enough."""
    listing = await market.listing(1)
    one, other = await market.owner(), await market.owner()
    await market.booked(one, listing, begins_in_days=0, nights=4)
    refused = await market.book(other, listing, begins_in_days=3, nights=4)
    assert (refused.status, refused.body["code"]) == (409, "capacity-exhausted")
    assert (await market.book(other, listing, begins_in_days=4, nights=4)).status == 201


async def test_the_same_key_books_once_however_often_it_comes(market: Market) -> None:
    """A repeated request gets the first answer; at the same moment it is told to wait."""
    listing, owner = await market.listing(5), await market.owner()
    request, key = market.quote(owner, listing), str(uuid4())
    answers = await at_once(*(owner.api.post("/api/orders", request, key=key) for _ in range(5)))
    fresh = [answer for answer in answers if answer.status == 201 and "idempotency-replayed" not in answer.headers]
    assert len(fresh) == 1, answers
    others = [answer for answer in answers if answer is not fresh[0]]
    assert all(
        answer.body == fresh[0].body if answer.status == 201 else answer.body["code"] == "idempotency-in-flight"
        for answer in others
    )
    later = await owner.api.post("/api/orders/", request, key=key)
    assert (later.status, later.body) == (201, fresh[0].body)
    assert later.headers["idempotency-replayed"] == "true"
    assert await market.nights(listing) == [(1, 0), (1, 0)]


async def test_a_key_belongs_to_one_request(market: Market) -> None:
    """Without a key 400, with a used key and another request 422; the refused one did nothing."""
    listing, owner = await market.listing(5), await market.owner()
    without = await owner.api.post("/api/orders", market.quote(owner, listing))
    assert (without.status, without.body["code"]) == (400, "idempotency-key-missing")
    key = str(uuid4())
    assert (await owner.api.post("/api/orders", market.quote(owner, listing), key=key)).status == 201
    other = await owner.api.post("/api/orders", market.quote(owner, listing, begins_in_days=9), key=key)
    assert (other.status, other.body["code"]) == (422, "idempotency-conflict")
    assert await market.nights(listing) == [(1, 0), (1, 0)]


async def test_a_key_whose_request_was_refused_may_try_again(market: Market) -> None:
    """A refusal is not kept: when a place is free again, the same key books it."""
    listing, owner, other = await market.listing(1), await market.owner(), await market.owner()
    taken = await market.booked(other, listing)
    request, key = market.quote(owner, listing), str(uuid4())
    assert (await owner.api.post("/api/orders", request, key=key)).status == 409
    await market.done(other, taken, "cancel")
    assert (await owner.api.post("/api/orders", request, key=key)).status == 201


async def test_only_a_genuine_quote_of_ones_own_books(market: Market) -> None:
    """Forged, foreign, expired, miscounted and self-made quotes are refused, each by its name."""
    listing, owner, other = await market.listing(1), await market.owner(), await market.owner()
    before = await market.rows()
    quotes = {
        "quote-invalid": {"quote": "x.y.z"},
        "quote-of-another": market.quote(other, listing),
        "quote-expired": market.quote(owner, listing, ttl_s=-1),
        "own-listing": market.quote(owner, listing, provider_id=str(owner.id)),
    }
    for code, request in quotes.items():
        answer = await owner.api.post("/api/orders", request, key=str(uuid4()))
        assert answer.body["code"] == code, answer
    for changes in ({"total_cents": 1}, {"policy": "never"}, {"time_zone": "Mars/Olympus"}, {"signer": "pet"}):
        answer = await market.book(owner, listing, **changes)
        assert (answer.status, answer.body["code"]) == (422, "quote-invalid"), (changes, answer)
    assert await market.rows() == before


async def test_a_listing_that_was_taken_down_takes_no_bookings(market: Market) -> None:
    """Neither does one whose provider was suspended, though the quote is still good."""
    listing, closed, owner = await market.listing(1), await market.listing(1), await market.owner()
    listing.audit_status = 3
    assert (await market.book(owner, listing)).body["code"] == "listing-unavailable"
    market.suspend(closed.provider)
    assert (await market.book(owner, closed)).body["code"] == "listing-unavailable"


async def test_a_bad_body_is_told_what_is_wrong_with_it(market: Market) -> None:
    """A client can send neither a price nor somebody else's name."""
    owner = await market.owner()
    for body in ({}, {"quote": 7}, {"quote": "x", "amount": 1}, {"quote": ""}):
        answer = await owner.api.post("/api/orders", body, key=str(uuid4()))
        assert (answer.status, answer.body["code"]) == (400, "invalid-request"), answer
