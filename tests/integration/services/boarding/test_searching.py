"""How guests find listings, what a stay costs, and which stays are free."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from services.boarding.config import QUOTE_KIND, QUOTE_TTL_S, SEARCH_PAGES_MAX, TOTAL_MAX_CENTS
from services.boarding.domain import distance_km
from services.kit.clock import system_clock
from services.kit.signing import BadSignature, Verifier
from tests.integration.services.boarding.offers import PATH, Provider, ahead, friday, pet, provider
from tests.support.system import Answer, System

pytestmark = pytest.mark.asyncio(loop_scope="module")

SEARCH = "/api/boarding/search"
PAGES_MAX = 60


async def search(system: System, **wish: Any) -> list[dict[str, Any]]:
    """Everything that is found, page by page."""
    api, found, sent = system.client("boarding"), [], {name: str(value) for name, value in wish.items()}
    for _ in range(PAGES_MAX):
        answer = await api.get(SEARCH, **sent)
        assert answer.status == 200, answer.body
        found += answer.body["items"]
        if answer.body["next_cursor"] is None:
            return found
        sent["cursor"] = answer.body["next_cursor"]
    raise AssertionError(f"more than {PAGES_MAX} pages")


async def ids(system: System, **wish: Any) -> list[UUID]:
    """The listings that are found."""
    return [UUID(item["service_id"]) for item in await search(system, **wish)]


async def take(system: System, listing_id: UUID, night: str, *, pool: str = "dog-M", taken: int = 2) -> None:
    """Books places of a night behind the capacity service's back."""
    sql = "INSERT INTO nights (listing_id, pool, night, total, held, booked, fence) VALUES ($1, $2, $3, $4, 0, $4, 0)"
    await system.fetch("capacity", sql, listing_id, pool, date.fromisoformat(night), taken)


@pytest.fixture
def city() -> str:
    """A city of the test's own."""
    return f"城{uuid4().hex}"


async def test_text_is_found_in_title_city_and_description(system: System, city: str) -> None:
    """Chinese as any other; what would be a pattern is taken as it is written."""
    somebody = provider(system)
    garden = await somebody.offered(city=city, title="花园洋房", description="安静")
    river = await somebody.offered(city=city, title="河边", description="离花园五分钟，100%满意")
    odd = await somebody.offered(city=city, title="a_b\\c", description="x")
    assert set(await ids(system, city=city, q="花园")) == {garden, river}
    assert await ids(system, city=city, q="0%满") == [river]
    assert set(await ids(system, q=city)) == {garden, river, odd}
    assert [await ids(system, city=city, q=q) for q in ("A_B\\", "%", "a.b")] == [[odd], [river], []]


async def test_only_approved_listings_are_found(system: System, city: str) -> None:
    """Drafts and those that wait are not."""
    somebody = provider(system)
    await somebody.draft(city=city)
    await somebody.pending(city=city)
    assert await ids(system, city=city) == []
    offered = await somebody.offered(city=city)
    assert await ids(system, city=city) == [offered]


async def test_wishes_cut_the_result(system: System, city: str) -> None:
    """Kind of pet, price, rating, instant booking, and all of them together; limits are inclusive."""
    somebody = provider(system)
    cheap = await somebody.offered(city=city, price_cents=5_000, capacity={"cat-S": 1})
    dear = await somebody.offered((3, 450), city=city, price_cents=50_000, instant_book=True)
    assert await ids(system, city=city, pool="cat-S") == [cheap]
    assert await ids(system, city=city, price_max=5_000) == [cheap]
    assert await ids(system, city=city, price_min=5_001) == [dear]
    assert await ids(system, city=city, rating_min=4.5) == [dear]
    assert await ids(system, city=city, rating_min=4.51) == []
    assert await ids(system, city=city, instant="true") == [dear]
    assert await ids(system, city=city, instant="true", pool="cat-S") == []


async def test_a_radius_is_a_circle_on_the_globe(system: System, city: str) -> None:
    """The database measures as the domain does; each listing says how far it is."""
    somebody, here = provider(system), (31.2304, 121.4737)
    places = {await somebody.offered(city=city, latitude=lat, longitude=121.5): lat for lat in (31.2, 31.3, 32.0)}
    wish = {"city": city, "lat": here[0], "lng": here[1]}
    found = {UUID(item["service_id"]): item["distance_km"] for item in await search(system, **wish)}
    assert found == {i: round(distance_km(here, (lat, 121.5)), 2) for i, lat in places.items()}
    near = [i for i, km in sorted(found.items(), key=lambda item: item[1]) if km <= 20]
    assert await ids(system, **wish, radius_km=20, sort="distance") == near
    assert len(near) == 2
    assert all(item["distance_km"] is None for item in await search(system, city=city))


async def test_with_dates_only_free_listings_are_found(system: System, city: str) -> None:
    """Every night must have room and be open; the day of leaving may be full or closed."""
    somebody = provider(system)
    free, full, closed, leaving = [await somebody.offered(city=city) for _ in range(4)]
    cats = await somebody.offered(city=city, capacity={"cat-S": 1})
    both = await somebody.offered(city=city, capacity={"cat-S": 1, "dog-M": 2})
    await take(system, full, ahead(11))
    await take(system, both, ahead(11))
    await take(system, leaving, ahead(12))
    for listing_id, night in ((closed, 10), (leaving, 12)):
        await somebody.do("put", listing_id, "blocked-dates", {"nights": [ahead(night)]})
    stay = {"city": city, "check_in": ahead(10), "check_out": ahead(12)}
    assert set(await ids(system, **stay, pool="dog-M")) == {free, leaving}
    assert set(await ids(system, **stay, pool="dog-M", units=2)) == {free, leaving}
    assert await ids(system, **stay, pool="dog-M", units=3) == []
    assert set(await ids(system, **stay)) == {free, leaving, cats, both}, "any kind that a listing takes will do"
    assert set(await ids(system, **stay, limit=1)) == {free, leaving, cats, both}


async def test_a_search_among_full_listings_ends_each_page_in_time(system: System, city: str) -> None:
    """It gives a short page with a cursor after so many candidates; followed, it finds the free one."""
    somebody = provider(system)
    for number in range(SEARCH_PAGES_MAX + 1):
        full = await somebody.offered(city=city, price_cents=1_000 + number)
        await take(system, full, ahead(10))
    free = await somebody.offered(city=city, price_cents=9_000)
    wish = {"city": city, "check_in": ahead(10), "check_out": ahead(11), "pool": "dog-M", "sort": "price", "limit": 1}
    first = (await system.client("boarding").get(SEARCH, **{name: str(value) for name, value in wish.items()})).body
    assert first["items"] == []
    assert first["next_cursor"] is not None
    assert await ids(system, **wish) == [free]


@pytest.mark.parametrize("sort", ["recommended", "price", "-rating", "distance"])
async def test_pages_neither_skip_nor_double_in_any_order(system: System, city: str, sort: str) -> None:
    """Many are equal in price, rating and place; pages of any size make up the same whole, with and without dates."""
    somebody = provider(system)
    for n in range(9):
        rating = (n % 3 * 7, 300 + n % 2 * 133)
        await somebody.offered(rating, city=city, price_cents=10_001 + n // 3, latitude=31 + n // 4 / 3)
    wish = {"city": city, "sort": sort, "lat": 31.7, "lng": 121.4}
    whole = await search(system, **wish)
    assert len({item["service_id"] for item in whole}) == 9
    values = {
        "price": [item["price_cents"] for item in whole],
        "-rating": [-item["rating"] for item in whole],
        "distance": [item["distance_km"] for item in whole],
        "recommended": [
            item["price_cents"] / 100 - item["rating"] * 100 * min(item["rating_count"], 20) / 20 for item in whole
        ],
    }[sort]
    assert values == sorted(values)
    for more in ({}, {"check_in": ahead(10), "check_out": ahead(11), "pool": "dog-M"}):
        for limit in (1, 2, 4, 9):
            assert await search(system, **wish, limit=limit, **more) == whole, limit


@pytest.mark.parametrize(
    "wish",
    [
        {"check_in": "2027-01-01"},
        {"check_in": "2027-01-02", "check_out": "2027-01-02"},
        {"sort": "distance"},
        {"radius_km": "5"},
        {"lat": "31"},
        {"lat": "91", "lng": "0"},
        {"lat": "nan", "lng": "0"},
        {"rating_min": "nan"},
        {"price_min": "99999999999999999999"},
        {"pool": "dog-XXL"},
        {"sort": "cheap"},
        {"q": "a\0b"},
        {"units": "0"},
        {"limit": "101"},
        {"cursor": "made-up"},
    ],
)
async def test_a_wish_that_makes_no_sense_is_refused(system: System, wish: dict[str, str]) -> None:
    """With a 400 that says why."""
    answer = await system.client("boarding").get(SEARCH, **wish)
    assert answer.status == 400, answer.body
    assert answer.body["detail"]


async def quoted(system: System, owner: UUID, listing_id: UUID, pets: list[str], first: date, nights: int) -> Answer:
    """Asks for a quote."""
    body = {"pet_ids": pets, "check_in": str(first), "check_out": str(first + timedelta(days=nights))}
    return await system.as_person("boarding", owner).post(f"{PATH}/{listing_id}/quotes", body)


async def priced(somebody: Provider) -> UUID:
    """A listing with all rules of prices."""
    tiers = [{"nights": 7, "percent_off": 10}, {"nights": 3, "percent_off": 5}]
    prices = {"weekend_percent": 50, "extra_pet_percent": 50, "long_stay": tiers}
    return await somebody.offered(capacity={"dog-M": 2, "cat-S": 2}, prices=prices, policy="three_day")


async def test_a_quote_is_a_signed_price_with_its_lines(system: System) -> None:
    """What the order service will read of it, to the member; only the boarding service can have said it."""
    somebody, owner = provider(system), uuid4()
    listing_id, first = await priced(somebody), friday()
    pets = [await pet(system, owner), await pet(system, owner, species="cat", weight_g=4_000)]
    answer = await quoted(system, owner, listing_id, pets, first, 3)
    assert answer.status == 200, answer.body
    lines = [
        {"label": "nights", "nights": 3, "amount_cents": 30_000},
        {"label": "weekend +50%", "nights": 2, "amount_cents": 10_000},
        {"label": "1 more pet(s) at 50%", "nights": 3, "amount_cents": 20_000},
        {"label": "3+ nights -5%", "nights": 3, "amount_cents": -3_000},
    ]
    shown = {name: answer.body[name] for name in ("lines", "total_cents", "currency")}
    assert shown == {"lines": lines, "total_cents": 57_000, "currency": "CNY"}
    public = {key.kid: key.key.public_key() for key in system.keys.values()}
    verifier = Verifier(public, system_clock)
    claims = verifier.verify(QUOTE_KIND, "boarding", answer.body["quote"])
    assert claims.pop("exp") - claims.pop("iat") == QUOTE_TTL_S
    assert claims == {
        "iss": "boarding",
        "typ": "quote",
        "listing_id": str(listing_id),
        "provider_id": str(somebody.id),
        "owner_id": str(owner),
        "pet_ids": pets,
        "pools": {"dog-M": 1, "cat-S": 1},
        "check_in": str(first),
        "check_out": str(first + timedelta(days=3)),
        "lines": lines,
        "total_cents": 57_000,
        "policy": "three_day",
        "instant_book": False,
        "time_zone": "Asia/Shanghai",
        "title": "阳光狗狗之家",
    }
    with pytest.raises(BadSignature):
        verifier.verify(QUOTE_KIND, "order", answer.body["quote"])


async def test_a_quote_is_refused_for_what_cannot_be_booked(system: System) -> None:
    """A kind of pet that is not taken, a stay against the rules, somebody else's pet, a listing that is not offered."""
    somebody, owner, first = provider(system), uuid4(), friday()
    listing_id = await somebody.offered(schedule={"min_nights": 2})
    dog, giant = await pet(system, owner), await pet(system, owner, weight_g=45_000)
    refused = await quoted(system, owner, listing_id, [dog, giant], first, 2)
    assert (refused.status, refused.body["code"]) == (422, "pet-not-accepted")
    assert "dog-XL" in refused.body["detail"]
    await somebody.do("put", listing_id, "blocked-dates", {"nights": [str(first + timedelta(days=3))]})
    outside = [(first, 1), (first, 4), (first, 0), (first, -1), (date(2020, 1, 1), 2), (date(9998, 1, 1), 2)]
    for start, nights in outside:
        refused = await quoted(system, owner, listing_id, [dog], start, nights)
        assert (refused.status, refused.body["code"]) == (422, "outside-booking-window"), (start, nights)
    assert (await quoted(system, owner, listing_id, [dog], first, 3)).status == 200
    theirs = await pet(system, uuid4())
    assert (await quoted(system, owner, listing_id, [dog, theirs], first, 2)).status == 404
    twice = await quoted(system, owner, listing_id, [dog, dog], first, 2)
    assert (twice.status, twice.body["errors"][0]["pointer"]) == (400, "/pet_ids")
    assert (await quoted(system, owner, listing_id, [], first, 2)).status == 400
    palace = await somebody.offered(price_cents=100_000_000)
    assert (await quoted(system, owner, palace, [dog], first, 10)).body["total_cents"] == TOTAL_MAX_CENTS
    refused = await quoted(system, owner, palace, [dog], first, 11)
    assert (refused.status, refused.body["code"]) == (422, "total-too-large")
    for hidden in (await somebody.pending(), uuid4()):
        assert (await quoted(system, owner, hidden, [dog], first, 2)).status == 404


async def suggested(system: System, listing_id: UUID, first: date, nights: int, **more: str) -> Answer:
    """Asks for suggestions for a medium dog."""
    wish = {"check_in": str(first), "nights": str(nights), "pool": "dog-M", **more}
    return await system.client("boarding").get(f"{PATH}/{listing_id}/suggestions", **wish)


async def test_suggestions_are_free_stays_near_the_wish(system: System) -> None:
    """Full and closed nights are left out; the nearest is first, and the cheapest is named with its price."""
    somebody, wish = provider(system), friday()
    listing_id = await priced(somebody)
    await take(system, listing_id, str(wish))
    await somebody.do("put", listing_id, "blocked-dates", {"nights": [str(wish - timedelta(days=2))]})
    answer = await suggested(system, listing_id, wish, 2, flexible_days="4")
    assert answer.status == 200, answer.body
    items = answer.body["items"]
    assert [(date.fromisoformat(item["check_in"]) - wish).days for item in items] == [1, 2, 3, 4, -4]
    assert [item["total_cents"] for item in items] == [25_000, 20_000, 20_000, 20_000, 20_000]
    assert answer.body["cheapest"] == items[1]
    assert all(item["days_away"] == abs((date.fromisoformat(item["check_in"]) - wish).days) for item in items)
    assert (await suggested(system, listing_id, wish, 2, flexible_days="0")).body == {"items": [], "cheapest": None}


async def test_suggestions_stay_inside_the_calendar_and_the_rules(system: System) -> None:
    """No stay in the past, none of a listing that is not offered, and no day that the calendar does not have."""
    somebody = provider(system)
    listing_id, today = await somebody.offered(), system_clock().date()
    answer = await suggested(system, listing_id, today + timedelta(days=2), 1, flexible_days="60")
    assert min(item["check_in"] for item in answer.body["items"]) >= str(today)
    assert len(answer.body["items"]) in (62, 63)
    for far in (date.max, date.min):
        assert (await suggested(system, listing_id, far, 90)).body["code"] == "outside-booking-window"
    assert (await suggested(system, await somebody.draft(), today, 1)).status == 404
    assert (await suggested(system, listing_id, today, 91)).status == 400
    assert (await suggested(system, listing_id, today, 1, pool="dog-XXL")).status == 400
