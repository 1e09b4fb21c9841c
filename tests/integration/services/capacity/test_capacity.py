"""Nights under bookings: the capacity service over HTTP, with a real coordinator and a real PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
import pytest_asyncio

from services.kit.problems import Problem
from tests.integration.services.capacity.callers import POLL_S, POLLS_MAX, Caller, Undone, apart, caller_of
from tests.support.servers import TestPostgres
from tests.support.system import Answer, System, running_system

pytestmark = pytest.mark.asyncio(loop_scope="module")

FRIDAY, SATURDAY, SUNDAY = "2027-01-01", "2027-01-02", "2027-01-03"
MONDAY = "2027-01-04"
RACERS = 50


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def system(
    postgres: TestPostgres, valkey: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[System]:
    """A coordinator and the capacity service."""
    folder = tmp_path_factory.mktemp("capacity")
    async with running_system(postgres, valkey, folder, services=["capacity"]) as system:
        yield system


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def order(system: System) -> AsyncIterator[Caller]:
    """Whoever books."""
    async with caller_of(system, "capacity") as caller:
        yield caller


async def listing(system: System, **totals: int) -> UUID:
    """A new listing with these totals; dog_M=3 means three of dog-M."""
    listing_id = uuid4()
    answer = await set_pools(system, listing_id, {name.replace("_", "-"): total for name, total in totals.items()})
    assert answer.status == 200, answer.body
    return listing_id


async def set_pools(system: System, listing_id: UUID, totals: Mapping[str, int]) -> Answer:
    """Sets a listing's totals, as the boarding service does."""
    return await system.as_service("capacity", "boarding").put(f"/internal/pools/{listing_id}", {"pools": dict(totals)})


def stay(listing_id: UUID, check_in: str = FRIDAY, check_out: str = SUNDAY, **other: Any) -> dict[str, Any]:
    """The body of a hold of one medium dog for two nights."""
    body = {"order_id": str(uuid4()), "listing_id": str(listing_id), "pools": {"dog-M": 1}, "fence": None}
    return {**body, "check_in": check_in, "check_out": check_out, **other}


async def nights(system: System, listing_id: UUID, pool: str = "dog-M") -> list[tuple[int, int, int]]:
    """(total, held, booked) of Friday to Sunday, as everybody may see it."""
    path = f"/api/capacity/services/{listing_id}/availability"
    answer = await system.client("capacity").get(path, **{"from": FRIDAY, "to": MONDAY, "pool": pool})
    assert answer.status == 200, answer.body
    assert all(n["left"] == n["total"] - n["held"] - n["booked"] for n in answer.body["nights"])
    return [(n["total"], n["held"], n["booked"]) for n in answer.body["nights"]]


async def consistency(system: System) -> dict[str, int]:
    """The service's own audit."""
    answer = await system.as_service("capacity", "admin").get("/internal/consistency")
    assert answer.status == 200, answer.body
    return dict(answer.body)


async def test_a_hold_takes_each_night_of_the_stay_and_not_the_day_of_leaving(system: System, order: Caller) -> None:
    """Two nights are held; the third, on which the guest has left, is free; nights nobody asked for are shown too."""
    listing_id = await listing(system, dog_M=3)
    assert await order.once("/internal/holds", stay(listing_id)) == {"nights": 2, "state": "held"}
    assert await nights(system, listing_id) == [(3, 1, 0), (3, 1, 0), (3, 0, 0)]


async def test_booking_moves_held_to_booked_and_release_gives_it_back(system: System, order: Caller) -> None:
    """What an order took it has once: held, then booked, then free again."""
    listing_id = await listing(system, dog_M=3, cat_S=2)
    body = stay(listing_id, pools={"dog-M": 2, "cat-S": 1})
    await order.once("/internal/holds", body)
    path = f"/internal/holds/{body['order_id']}"
    assert await order.once(f"{path}/book") == {"nights": 2, "state": "booked"}
    assert await nights(system, listing_id) == [(3, 0, 2), (3, 0, 2), (3, 0, 0)]
    assert await nights(system, listing_id, "cat-S") == [(2, 0, 1), (2, 0, 1), (2, 0, 0)]
    assert await order.once(f"{path}/release") == {"nights": 0, "state": "released"}
    assert await nights(system, listing_id) == [(3, 0, 0)] * 3


async def test_each_step_done_twice_changes_nothing_the_second_time(system: System, order: Caller) -> None:
    """Repeated in a transaction of its own, a hold, a booking and a release leave the nights as they are."""
    listing_id = await listing(system, dog_M=3)
    body = stay(listing_id)
    path = f"/internal/holds/{body['order_id']}"
    for step, counts in (
        ("/internal/holds", (3, 1, 0)),
        (f"{path}/book", (3, 0, 1)),
        (f"{path}/release", (3, 0, 0)),
    ):
        for _ in range(2):
            await order.once(step, body if step == "/internal/holds" else None)
            assert (await nights(system, listing_id))[0] == counts


async def test_nights_that_were_given_back_cannot_be_booked(system: System, order: Caller) -> None:
    """A payment that comes after the release is refused: somebody else may have the place."""
    body = stay(await listing(system, dog_M=1))
    await order.once("/internal/holds", body)
    await order.once(f"/internal/holds/{body['order_id']}/release")
    with pytest.raises(Problem) as refused:
        await order.once(f"/internal/holds/{body['order_id']}/book")
    assert (refused.value.status, refused.value.code) == (409, "hold-released")


async def test_an_order_may_take_other_nights_after_it_gave_back_the_first(system: System, order: Caller) -> None:
    """Dates are changed by release and hold in one transaction; other nights without a release are refused."""
    listing_id = await listing(system, dog_M=1)
    body = stay(listing_id, FRIDAY, SATURDAY)
    later = {**body, "check_in": SATURDAY, "check_out": SUNDAY}
    await order.once("/internal/holds", body)
    with pytest.raises(Problem) as refused:
        await order.once("/internal/holds", later)
    assert refused.value.code == "hold-exists"
    async with order.coordinator.global_transaction("change", timeout_s=30.0):
        await order.call(f"/internal/holds/{body['order_id']}/release")
        await order.call("/internal/holds", later)
    assert await nights(system, listing_id) == [(1, 0, 0), (1, 1, 0), (1, 0, 0)]


async def test_releasing_what_was_never_held_is_done_already(order: Caller) -> None:
    """There is nothing to give back; booking it, on the other hand, is a 404."""
    assert await order.once(f"/internal/holds/{uuid4()}/release") == {"nights": 0, "state": "released"}
    with pytest.raises(Problem) as refused:
        await order.once(f"/internal/holds/{uuid4()}/book")
    assert refused.value.status == 404


async def test_a_booking_that_is_rolled_back_leaves_no_trace(system: System, order: Caller) -> None:
    """Hold and booking vanish with their transaction: the nights, and the order's own row."""
    listing_id = await listing(system, dog_M=1)
    body = stay(listing_id)
    async with order.undone():
        await order.call("/internal/holds", body)
        await order.call(f"/internal/holds/{body['order_id']}/book")
        assert (await nights(system, listing_id))[0] == (1, 0, 1)
    assert await nights(system, listing_id) == [(1, 0, 0)] * 3
    for table in ("holds", "nights"):
        assert not await system.fetch("capacity", f"SELECT FROM {table} WHERE listing_id = $1", listing_id)


async def test_a_stay_with_one_night_sold_out_takes_no_night_and_names_that_one(system: System, order: Caller) -> None:
    """All or nothing: the free night of the stay stays free, and the answer says which is full."""
    listing_id = await listing(system, dog_M=1)
    await order.once("/internal/holds", stay(listing_id, SATURDAY, SUNDAY))
    with pytest.raises(Problem) as refused:
        await order.once("/internal/holds", stay(listing_id, FRIDAY, SUNDAY))
    assert (refused.value.status, refused.value.code) == (409, "capacity-exhausted")
    assert refused.value.extra["nights"] == [SATURDAY]
    assert await nights(system, listing_id) == [(1, 0, 0), (1, 1, 0), (1, 0, 0)]


async def test_a_pool_that_the_listing_does_not_have_is_sold_out(system: System, order: Caller) -> None:
    """A listing that takes medium dogs takes no giant ones, nor two where it has room for one."""
    listing_id = await listing(system, dog_M=1)
    for pools in ({"dog-XL": 1}, {"dog-M": 2}):
        with pytest.raises(Problem) as refused:
            await order.once("/internal/holds", stay(listing_id, pools=pools))
        assert refused.value.extra["nights"] == [FRIDAY, SATURDAY]


async def test_who_meets_an_undecided_last_place_waits_and_gets_it_after_the_rollback(
    system: System, order: Caller
) -> None:
    """Sold out is only said once it is decided: the place of a booking that fails goes to the next in line."""
    listing_id = await listing(system, dog_M=1)
    async with order.undone():
        await order.call("/internal/holds", stay(listing_id))
        second = apart(order.once("/internal/holds", stay(listing_id)))
        await order.somebody_waits()
        assert not second.done()
    assert (await second)["state"] == "held"
    assert await nights(system, listing_id) == [(1, 1, 0), (1, 1, 0), (1, 0, 0)]


async def test_fifty_at_once_for_three_places_are_exactly_three_and_never_more(system: System, order: Caller) -> None:
    """While half of the winners roll back and others follow, no committed read ever sees a night above its total."""
    listing_id = await listing(system, dog_M=3)
    seen: list[int] = []
    ended = asyncio.Event()

    async def watch() -> None:
        while not ended.is_set():
            seen.append((await consistency(system))["nights_over_total"])
            counts = await nights(system, listing_id)
            assert all(held + booked <= total == 3 for total, held, booked in counts)

    async def race(number: int) -> str:
        async with order.coordinator.global_transaction("book", timeout_s=30.0):
            await order.call("/internal/holds", stay(listing_id))
            if number % 5 == 0:
                raise Undone
        return "held"

    watching = asyncio.create_task(watch())
    results = await asyncio.gather(*(order.until_answered(partial(race, number)) for number in range(RACERS)))
    ended.set()
    await watching
    assert results.count("held") == 3, results
    assert set(results) <= {"held", "undone", "capacity-exhausted"}
    assert await nights(system, listing_id) == [(3, 3, 0), (3, 3, 0), (3, 0, 0)]
    assert set(seen) == {0}
    assert (await consistency(system))["drift"] == 0


async def test_overlapping_stays_in_every_direction_never_deadlock(system: System, order: Caller) -> None:
    """Bookings that want the same nights from different ends all come to an answer, and the sums are right."""
    listing_id = await listing(system, dog_M=2, cat_S=2)
    ranges = [(FRIDAY, SUNDAY), (SATURDAY, MONDAY), (FRIDAY, MONDAY), (SATURDAY, SUNDAY)]
    bodies = [
        stay(listing_id, check_in, check_out, pools=pools)
        for check_in, check_out in ranges
        for pools in ({"dog-M": 1}, {"cat-S": 1, "dog-M": 1}, {"cat-S": 1})
    ]

    async def race(body: dict[str, Any]) -> str:
        return str((await order.once("/internal/holds", body))["state"])

    results = await asyncio.gather(*(order.until_answered(partial(race, body)) for body in bodies))
    assert set(results) == {"held", "capacity-exhausted"}
    audit = await consistency(system)
    assert (audit["nights_over_total"], audit["drift"]) == (0, 0)


async def test_a_number_that_is_not_later_than_the_nights_is_stale(system: System, order: Caller) -> None:
    """A holder of the lock that slept through its lease is refused where a later one has written; without a lock
    nothing is compared, and other nights are not concerned."""
    listing_id = await listing(system, dog_M=9)
    await order.once("/internal/holds", stay(listing_id, FRIDAY, SATURDAY, fence=7))
    for fence in (7, 3):
        with pytest.raises(Problem) as refused:
            await order.once("/internal/holds", stay(listing_id, FRIDAY, SUNDAY, fence=fence))
        assert (refused.value.status, refused.value.code) == (409, "stale-fence")
    await order.once("/internal/holds", stay(listing_id, SATURDAY, SUNDAY, fence=3))
    await order.once("/internal/holds", stay(listing_id, FRIDAY, SATURDAY))
    await order.once("/internal/holds", stay(listing_id, FRIDAY, SUNDAY, fence=8))
    assert await nights(system, listing_id) == [(9, 3, 0), (9, 2, 0), (9, 0, 0)]


async def test_fencing_numbers_only_rise(system: System) -> None:
    """Handed out at once, no two are equal; whoever asks later gets a higher one."""
    api, path = system.as_service("capacity", "order"), f"/internal/fences/{uuid4()}"

    async def number() -> int:
        return int((await api.post(path, {})).body["fence"])

    first = await asyncio.gather(*(number() for _ in range(10)))
    assert len(set(first)) == 10
    assert await number() > max(first)


async def test_a_total_never_shrinks_below_what_is_taken(system: System, order: Caller) -> None:
    """The provider hears which nights are in use, and nothing is changed; above that the total may go up and down."""
    listing_id = await listing(system, dog_M=3)
    await order.once("/internal/holds", stay(listing_id, pools={"dog-M": 2}))
    for totals in ({"dog-M": 1}, {"cat-S": 1}, {}):
        answer = await set_pools(system, listing_id, totals)
        assert (answer.status, answer.body["code"]) == (409, "capacity-in-use")
        assert answer.body["nights"] == [FRIDAY, SATURDAY]
        assert await nights(system, listing_id) == [(3, 2, 0), (3, 2, 0), (3, 0, 0)]
    assert (await set_pools(system, listing_id, {"dog-M": 2})).status == 200
    assert await nights(system, listing_id) == [(2, 2, 0), (2, 2, 0), (2, 0, 0)]
    assert (await set_pools(system, listing_id, {"dog-M": 4})).body == {"pools": {"dog-M": 4}}
    await order.once("/internal/holds", stay(listing_id, FRIDAY, MONDAY, pools={"dog-M": 2}))
    assert await nights(system, listing_id) == [(4, 4, 0), (4, 4, 0), (4, 2, 0)]


async def test_a_total_waits_for_whoever_is_undecided(system: System, order: Caller) -> None:
    """A booking that rolls back does not keep the provider from closing the listing."""
    listing_id = await listing(system, dog_M=1)
    async with order.undone():
        await order.call("/internal/holds", stay(listing_id))
        closing = apart(set_pools(system, listing_id, {"dog-M": 0}))
        await order.somebody_waits()
    assert (await closing).status == 200
    assert await nights(system, listing_id) == [(0, 0, 0)] * 3


async def test_a_night_that_is_made_while_the_total_changes_has_the_new_total(system: System, order: Caller) -> None:
    """A hold waits for a provider who is just changing the total, and makes its nights with what comes out."""
    listing_id = await listing(system, dog_M=1)
    provider: Any = await asyncpg.connect(system.dsns["capacity"])
    blocked = "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    try:
        async with provider.transaction():
            await provider.execute("UPDATE pools SET total = 4 WHERE listing_id = $1", listing_id)
            hold = asyncio.create_task(order.once("/internal/holds", stay(listing_id)))
            for _ in range(POLLS_MAX):
                if hold.done() or await system.fetch("capacity", blocked):
                    break
                await asyncio.sleep(POLL_S)
        await hold
    finally:
        await provider.close()
    assert await nights(system, listing_id) == [(4, 1, 0), (4, 1, 0), (4, 0, 0)]


async def test_free_listings_are_those_with_room_on_every_night(system: System, order: Caller) -> None:
    """One full night, a missing pool or an unknown listing is not free; the order of the question is kept."""
    full, free, other = [await listing(system, dog_M=1), await listing(system, dog_M=2), await listing(system, cat_S=1)]
    for listing_id in (full, free):
        await order.once("/internal/holds", stay(listing_id, SATURDAY, SUNDAY))
    api = system.as_service("capacity", "boarding")
    asked = [str(uuid4()), str(free), str(full), str(other)]

    async def answer(check_in: str, check_out: str) -> Any:
        body = {"listing_ids": asked, "pools": {"dog-M": 1}, "check_in": check_in, "check_out": check_out}
        return (await api.post("/internal/availability", body)).body

    assert await answer(FRIDAY, SUNDAY) == {"free": [str(free)]}
    assert await answer(FRIDAY, SATURDAY) == {"free": [str(free), str(full)]}


async def test_the_audit_finds_a_planted_fault(system: System, order: Caller) -> None:
    """A night that is changed behind the service's back is drift until it is put right."""
    listing_id = await listing(system, dog_M=3)
    await order.once("/internal/holds", stay(listing_id, FRIDAY, SATURDAY))
    change = "UPDATE nights SET held = held + $1 WHERE listing_id = $2"
    await order.plain(change, 1, listing_id)
    assert (await consistency(system))["drift"] == 1
    await order.plain(change, -1, listing_id)
    assert (await consistency(system))["drift"] == 0


async def test_the_database_itself_refuses_to_oversell(system: System, order: Caller) -> None:
    """Whatever the code does, the CHECK stands."""
    listing_id = await listing(system, dog_M=1)
    await order.once("/internal/holds", stay(listing_id, FRIDAY, SATURDAY))
    with pytest.raises(asyncpg.CheckViolationError, match="nights_never_oversold"):
        await order.plain("UPDATE nights SET booked = $1 WHERE listing_id = $2", 1, listing_id)


async def test_a_hold_outside_of_a_global_transaction_is_refused(system: System) -> None:
    """Nights are only taken by something that can be undone."""
    body = stay(await listing(system, dog_M=1))
    answer = await system.as_service("capacity", "order").post("/internal/holds", body)
    assert (answer.status, answer.body["code"]) == (400, "transaction-missing")
    assert await nights(system, UUID(body["listing_id"])) == [(1, 0, 0)] * 3


async def test_only_the_named_services_are_let_in(system: System) -> None:
    """No token is 401, another service 403, a person 401: each says so as a problem."""
    path, body = f"/internal/pools/{uuid4()}", {"pools": {"dog-M": 1}}
    for token, status in (
        (None, 401),
        ("forged", 401),
        (system.service_token("order", "capacity"), 403),
        (system.access_token(uuid4()), 401),
    ):
        answer = await system.client("capacity", token).put(path, body)
        assert (answer.status, answer.headers["content-type"]) == (status, "application/problem+json")


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"pools": {"dragon-M": 1}}, "pools"),
        ({"pools": {"dog-M": 0}}, "pools"),
        ({"pools": {}}, "pools"),
        ({"check_in": "soon"}, "check_in"),
        ({"fence": 0}, "fence"),
        ({"surprise": 1}, "surprise"),
    ],
)
async def test_a_bad_body_is_told_what_is_wrong(system: System, change: dict[str, Any], pointer: str) -> None:
    """400 with a pointer to the member, and nothing is done."""
    body = {**stay(uuid4()), **change}
    answer = await system.as_service("capacity", "order").post("/internal/holds", body)
    assert (answer.status, answer.body["code"]) == (400, "invalid-request")
    assert pointer in str(answer.body["errors"] or answer.body["detail"])


@pytest.mark.parametrize(("first", "end"), [(SUNDAY, FRIDAY), (FRIDAY, FRIDAY), (FRIDAY, "2030-01-01")])
async def test_dates_that_make_no_stay_are_refused(system: System, first: str, end: str) -> None:
    """Backwards, empty or endless ranges are a 422 that says what would do."""
    path = f"/api/capacity/services/{uuid4()}/availability"
    answer = await system.client("capacity").get(path, **{"from": first, "to": end})
    assert (answer.status, answer.body["code"]) == (422, "bad-dates")
