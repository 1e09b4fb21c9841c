"""Pets and their claims: the pet service over HTTP, with a real coordinator and a real PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import pytest
import pytest_asyncio

from services.kit.auth import AccountStatus, Role
from services.kit.problems import Problem
from tests.integration.services.capacity.callers import Caller, apart, caller_of
from tests.support.servers import TestPostgres
from tests.support.system import System, running_system

pytestmark = pytest.mark.asyncio(loop_scope="module")

FRIDAY, SATURDAY, SUNDAY, MONDAY = "2027-01-01", "2027-01-02", "2027-01-03", "2027-01-04"
REX: dict[str, Any] = {"name": "旺财", "species": "dog", "weight_g": 12_000}
RACERS = 12


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def system(
    postgres: TestPostgres, valkey: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[System]:
    """A coordinator and the pet service."""
    folder = tmp_path_factory.mktemp("pet")
    async with running_system(postgres, valkey, folder, services=["pet"]) as system:
        yield system


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def order(system: System) -> AsyncIterator[Caller]:
    """Whoever books."""
    async with caller_of(system, "pet") as caller:
        yield caller


async def new_pet(system: System, owner: UUID, **other: Any) -> str:
    """The id of a new pet of `owner`."""
    answer = await system.as_person("pet", owner).post("/api/pets", {**REX, **other})
    assert answer.status == 201, answer.body
    return str(answer.body["id"])


def claim(owner: UUID, *pets: str, check_in: str = FRIDAY, check_out: str = SUNDAY) -> dict[str, Any]:
    """The body of a claim of a new order."""
    body = {"order_id": str(uuid4()), "owner_id": str(owner), "pet_ids": list(pets)}
    return {**body, "check_in": check_in, "check_out": check_out}


async def nights(system: System, pet_id: str) -> list[tuple[str, str]]:
    """(night, order) of a pet, from the table itself."""
    rows = await system.fetch(
        "pet", "SELECT night, order_id FROM claimed_nights WHERE pet_id = $1 ORDER BY night", UUID(pet_id)
    )
    return [(str(row["night"]), str(row["order_id"])) for row in rows]


async def test_a_pet_is_recorded_read_changed_and_removed(system: System) -> None:
    """What was sent comes back, with size and age worked out; a change leaves the rest alone; a removed pet is gone."""
    owner = uuid4()
    api = system.as_person("pet", owner)
    sent = {**REX, "breed": "柴犬", "gender": 1, "birth_date": "2020-05-01", "description": "怕打雷"}
    pet = (await api.post("/api/pets", sent)).body
    assert {name: pet[name] for name in sent} == sent
    assert (pet["owner_id"], pet["size"], pet["birth_is_estimate"]) == (str(owner), "M", False)
    path = f"/api/pets/{pet['id']}"
    assert (await api.get(path)).body == pet
    changed = (await api.patch(path, {"weight_g": 26_000, "breed": None})).body
    assert (changed["weight_g"], changed["size"], changed["breed"], changed["name"]) == (26_000, "L", None, "旺财")
    assert (await api.delete(path)).status == 204
    assert [(await call).status for call in (api.get(path), api.patch(path, {}), api.delete(path))] == [404] * 3
    assert (await api.get("/api/pets")).body == {"items": [], "next_cursor": None}


async def test_an_age_is_enough_where_the_birth_is_not_known(system: System) -> None:
    """The age is told back, marked as an estimate; both at once, or a birth in the future, are refused."""
    api = system.as_person("pet", uuid4())
    pet = (await api.post("/api/pets", {**REX, "age_months": 30})).body
    assert (pet["age_months"], pet["birth_is_estimate"]) == (30, True)
    path = f"/api/pets/{pet['id']}"
    exact = (await api.patch(path, {"birth_date": "2022-02-02"})).body
    assert (exact["birth_date"], exact["birth_is_estimate"]) == ("2022-02-02", False)
    both = await api.post("/api/pets", {**REX, "age_months": 30, "birth_date": "2022-02-02"})
    assert (both.status, both.body["code"]) == (422, "birth-or-age")
    assert (await api.patch(path, {"birth_date": "2999-01-01"})).body["code"] == "birth-in-future"


async def test_somebody_elses_pet_is_not_found(system: System) -> None:
    """On every route, whether it exists or not: 404, and nothing leaks or changes."""
    pet = await new_pet(system, uuid4())
    stranger = system.as_person("pet", uuid4())
    path = f"/api/pets/{pet}"
    shot = {"vaccine": "rabies", "given_on": FRIDAY, "expires_on": SUNDAY}
    answers = [
        await stranger.get(path),
        await stranger.patch(path, {"name": "mine"}),
        await stranger.delete(path),
        await stranger.get(f"{path}/stays"),
        await stranger.get(f"{path}/care-plan"),
        await stranger.put(f"{path}/care-plan", {}),
        await stranger.get(f"{path}/vaccinations"),
        await stranger.post(f"{path}/vaccinations", shot),
        await stranger.delete(f"{path}/vaccinations/{uuid4()}"),
    ]
    assert {(answer.status, answer.body["code"]) for answer in answers} == {(404, "not-found")}
    assert (await stranger.get("/api/pets")).body["items"] == []


async def test_pets_come_in_pages_newest_first(system: System) -> None:
    """Every pet comes exactly once over all pages."""
    owner = uuid4()
    for name in ("a", "b", "c"):
        await new_pet(system, owner, name=name)
    api = system.as_person("pet", owner)
    first = (await api.get("/api/pets", limit="2")).body
    second = (await api.get("/api/pets", limit="2", cursor=first["next_cursor"])).body
    assert [[pet["name"] for pet in page["items"]] for page in (first, second)] == [["c", "b"], ["a"]]
    assert second["next_cursor"] is None


async def test_a_care_plan_is_kept_whole(system: System) -> None:
    """What was written last is read, and a pet without one has an empty plan."""
    owner = uuid4()
    api, path = system.as_person("pet", owner), f"/api/pets/{await new_pet(system, owner)}/care-plan"
    empty: dict[str, Any] = {"feeding": None, "medicines": [], "vet": None, "contact": None}
    assert (await api.get(path)).body == empty
    plan = {
        "feeding": "每天两次,每次 150 克",
        "medicines": [{"name": "驱虫药", "dose": "半片", "when": "早上"}],
        "vet": {"name": "王医生", "phone": "021-555", "address": None},
        "contact": {"name": "李雷", "phone": "13800000000", "address": "上海"},
    }
    assert (await api.put(path, plan)).body == plan
    assert (await api.get(path)).body == plan
    await api.put(path, {"feeding": "once"})
    assert (await api.get(path)).body == {**empty, "feeding": "once"}
    assert (await api.put(path, {"medicines": [{"name": "x"}]})).body["code"] == "invalid-request"
    unstorable = await api.put(path, {"vet": {"name": "a\x00b", "phone": "021-555"}})
    assert (unstorable.status, unstorable.body["code"]) == (400, "bad-text")


async def test_vaccinations_are_recorded_listed_and_removed(system: System) -> None:
    """The one that holds longest comes first; one that has ended says so; dates that contradict are refused."""
    owner = uuid4()
    api, path = system.as_person("pet", owner), f"/api/pets/{await new_pet(system, owner)}/vaccinations"
    for vaccine, expires_on in (("rabies", "2021-01-01"), ("parvo", "2099-01-01")):
        shot = {"vaccine": vaccine, "given_on": "2020-01-01", "expires_on": expires_on}
        assert (await api.post(path, shot)).status == 201
    items = (await api.get(path)).body["items"]
    assert [(item["vaccine"], item["expired"]) for item in items] == [("parvo", False), ("rabies", True)]
    assert (await api.delete(f"{path}/{items[0]['id']}")).status == 204
    assert (await api.delete(f"{path}/{items[0]['id']}")).status == 404
    assert [item["vaccine"] for item in (await api.get(path)).body["items"]] == ["rabies"]
    bad = {"vaccine": "rabies", "given_on": SUNDAY, "expires_on": FRIDAY}
    assert (await api.post(path, bad)).body["code"] == "bad-dates"


async def test_other_services_get_the_facts_of_named_pets_in_their_order(system: System) -> None:
    """A pet of somebody else, a removed or an unknown one is a 404 for the whole question."""
    owner = uuid4()
    cat = await new_pet(system, owner, species="cat", weight_g=4_000, name="咪咪")
    dog = await new_pet(system, owner)
    api = system.as_service("pet", "boarding")
    answer = await api.get("/internal/pets", owner_id=str(owner), ids=f"{dog},{cat}")
    assert answer.body == [
        {"id": dog, "owner_id": str(owner), "name": "旺财", "species": "dog", "size": "M", "weight_g": 12_000},
        {"id": cat, "owner_id": str(owner), "name": "咪咪", "species": "cat", "size": "S", "weight_g": 4_000},
    ]
    assert (await api.get("/internal/pets", owner_id=str(uuid4()), ids=cat)).status == 404
    assert (await api.get("/internal/pets", owner_id=str(owner), ids=f"{cat},{uuid4()}")).status == 404
    assert (await api.get("/internal/pets", owner_id=str(owner), ids="cat")).body["code"] == "bad-request"


async def test_a_claim_takes_every_pet_on_every_night_once(system: System, order: Caller) -> None:
    """Two pets on two nights are four claims; the same claim again changes nothing; the owner sees the stay."""
    owner = uuid4()
    pets = [await new_pet(system, owner), await new_pet(system, owner)]
    body = claim(owner, *pets)
    for _ in range(2):
        assert await order.once("/internal/claims", body) == {"claims": 4}
    for pet in pets:
        assert await nights(system, pet) == [(FRIDAY, body["order_id"]), (SATURDAY, body["order_id"])]
    stays = (await system.as_person("pet", owner).get(f"/api/pets/{pets[0]}/stays")).body["items"]
    assert stays == [{"order_id": body["order_id"], "check_in": FRIDAY, "check_out": SUNDAY}]


async def test_a_pet_cannot_be_in_two_places(system: System, order: Caller) -> None:
    """The second order hears which pet is taken on which nights, and gets none of the others; the next day is free."""
    owner = uuid4()
    rex, mia = await new_pet(system, owner), await new_pet(system, owner)
    first = claim(owner, rex)
    await order.once("/internal/claims", first)
    with pytest.raises(Problem) as refused:
        await order.once("/internal/claims", claim(owner, mia, rex, check_in=SATURDAY, check_out=MONDAY))
    assert (refused.value.status, refused.value.code) == (409, "pet-already-booked")
    assert refused.value.extra["pets"] == [{"pet_id": rex, "nights": [SATURDAY]}]
    assert await nights(system, mia) == []
    await order.once("/internal/claims", claim(owner, rex, check_in=SUNDAY, check_out=MONDAY))


async def test_release_frees_the_pet_once(system: System, order: Caller) -> None:
    """The nights are given back, a second release gives back nothing, and others may claim them."""
    owner = uuid4()
    rex = await new_pet(system, owner)
    body = claim(owner, rex)
    await order.once("/internal/claims", body)
    path = f"/internal/claims/{body['order_id']}/release"
    assert await order.once(path) == {"released": 2}
    other = claim(owner, rex)
    await order.once("/internal/claims", other)
    assert await order.once(path) == {"released": 0}
    assert [order_id for _, order_id in await nights(system, rex)] == [other["order_id"]] * 2
    assert await order.once(f"/internal/claims/{uuid4()}/release") == {"released": 0}


@pytest.mark.parametrize(("since", "left"), [(FRIDAY, []), (SATURDAY, [FRIDAY]), (SUNDAY, [FRIDAY, SATURDAY])])
async def test_a_release_from_a_day_on_keeps_the_nights_before_it(
    system: System, order: Caller, since: str, left: list[str]
) -> None:
    """Who goes home early was there until then; what is given back is free, and given back once."""
    owner = uuid4()
    rex = await new_pet(system, owner)
    body = claim(owner, rex, check_out=SUNDAY)
    await order.once("/internal/claims", body)
    path = f"/internal/claims/{body['order_id']}/release"
    assert await order.once(path, {"since": since}) == {"released": 2 - len(left)}
    assert await order.once(path, {"since": since}) == {"released": 0}
    assert [night for night, _ in await nights(system, rex)] == left
    stays = (await system.as_person("pet", owner).get(f"/api/pets/{rex}/stays")).body["items"]
    assert [(stay["check_in"], stay["check_out"]) for stay in stays] == ([(FRIDAY, since)] if left else [])


async def test_dates_are_changed_by_release_and_claim_in_one_transaction(system: System, order: Caller) -> None:
    """The order has its new nights and not its old ones; without the release other nights are refused."""
    owner = uuid4()
    rex = await new_pet(system, owner)
    body = claim(owner, rex)
    later = {**body, "check_in": SATURDAY, "check_out": MONDAY}
    await order.once("/internal/claims", body)
    with pytest.raises(Problem) as refused:
        await order.once("/internal/claims", later)
    assert refused.value.code == "claim-exists"
    async with order.coordinator.global_transaction("change", timeout_s=30.0):
        await order.call(f"/internal/claims/{body['order_id']}/release")
        await order.call("/internal/claims", later)
    assert [night for night, _ in await nights(system, rex)] == [SATURDAY, SUNDAY]


async def test_a_claim_that_is_rolled_back_leaves_no_trace(system: System, order: Caller) -> None:
    """Claims and releases vanish with their transaction."""
    owner = uuid4()
    rex = await new_pet(system, owner)
    body = claim(owner, rex)
    async with order.undone():
        await order.call("/internal/claims", body)
        assert len(await nights(system, rex)) == 2
    assert await nights(system, rex) == []
    await order.once("/internal/claims", body)
    async with order.undone():
        await order.call(f"/internal/claims/{body['order_id']}/release")
        assert await nights(system, rex) == []
    assert len(await nights(system, rex)) == 2


async def test_who_meets_an_undecided_claim_waits_for_its_end(system: System, order: Caller) -> None:
    """A pet is only said to be booked once that is decided."""
    owner = uuid4()
    rex = await new_pet(system, owner)
    second = claim(owner, rex, check_in=SATURDAY, check_out=MONDAY)
    async with order.undone():
        await order.call("/internal/claims", claim(owner, rex))
        waiting = apart(order.once("/internal/claims", second))
        await order.somebody_waits()
    assert await waiting == {"claims": 2}
    assert [order_id for _, order_id in await nights(system, rex)] == [second["order_id"]] * 2


async def test_an_undecided_release_is_waited_for(system: System, order: Caller) -> None:
    """Nights that an undecided cancellation freed are not free yet, nor released twice."""
    owner = uuid4()
    rex = await new_pet(system, owner)
    body = claim(owner, rex)
    await order.once("/internal/claims", body)
    path = f"/internal/claims/{body['order_id']}/release"
    async with order.undone():
        assert await order.call(path) == {"released": 2}
        other, again = apart(order.once("/internal/claims", claim(owner, rex))), apart(order.once(path))
        await order.somebody_waits()
        await asyncio.sleep(0.1)
        assert not other.done()
        assert not again.done()
    assert await again == {"released": 2}
    outcome = (await asyncio.gather(other, return_exceptions=True))[0]
    assert outcome == {"claims": 2} or (isinstance(outcome, Problem) and outcome.code == "pet-already-booked")


async def test_of_many_claims_at_once_exactly_one_gets_the_pet(system: System, order: Caller) -> None:
    """Overlapping nights in every direction: one order has the pet on the shared night, nobody is left half claimed."""
    owner = uuid4()
    rex, mia = await new_pet(system, owner), await new_pet(system, owner)
    ranges = [(FRIDAY, SUNDAY), (SATURDAY, MONDAY), (FRIDAY, MONDAY)]

    async def race(number: int) -> str:
        check_in, check_out = ranges[number % len(ranges)]
        pets = (rex, mia) if number % 2 else (mia, rex)
        await order.once("/internal/claims", claim(owner, *pets, check_in=check_in, check_out=check_out))
        return "claimed"

    results = await asyncio.gather(*(order.until_answered(partial(race, number)) for number in range(RACERS)))
    assert results.count("claimed") == 1, results
    assert results.count("pet-already-booked") == RACERS - 1, results
    assert await nights(system, rex) == await nights(system, mia)


async def test_a_vaccination_that_ends_before_check_out_stops_the_claim(system: System, order: Caller) -> None:
    """The problem names the vaccine; its renewal lets the pet be booked; a pet without records is not stopped."""
    owner = uuid4()
    rex = await new_pet(system, owner)
    path = f"/api/pets/{rex}/vaccinations"
    api = system.as_person("pet", owner)
    await api.post(path, {"vaccine": "狂犬", "given_on": "2026-01-01", "expires_on": SATURDAY})
    with pytest.raises(Problem) as refused:
        await order.once("/internal/claims", claim(owner, rex))
    assert (refused.value.status, refused.value.code) == (422, "vaccine-expired")
    assert "狂犬" in refused.value.detail
    await order.once("/internal/claims", claim(owner, rex, check_out=SATURDAY))
    await api.post(path, {"vaccine": "狂犬", "given_on": "2026-12-01", "expires_on": "2027-12-01"})
    await order.once("/internal/claims", claim(owner, rex, check_in=SATURDAY))


async def test_only_ones_own_pets_are_claimed(system: System, order: Caller) -> None:
    """Somebody else's pet, a removed or an unknown one is a 404, and the others are not claimed."""
    owner = uuid4()
    mine, foreign, gone = await new_pet(system, owner), await new_pet(system, uuid4()), await new_pet(system, owner)
    await system.as_person("pet", owner).delete(f"/api/pets/{gone}")
    for pet in (foreign, gone, str(uuid4())):
        with pytest.raises(Problem) as refused:
            await order.once("/internal/claims", claim(owner, mine, pet))
        assert refused.value.status == 404
    assert await nights(system, mine) == []


async def test_a_pet_with_a_stay_ahead_cannot_be_removed(system: System, order: Caller) -> None:
    """The owner hears of the booking and may remove the pet once that is released."""
    owner = uuid4()
    rex = await new_pet(system, owner)
    body = claim(owner, rex, check_in="2090-01-01", check_out="2090-01-03")
    await order.once("/internal/claims", body)
    api = system.as_person("pet", owner)
    answer = await api.delete(f"/api/pets/{rex}")
    assert (answer.status, answer.body["code"]) == (409, "pet-has-stays")
    assert (await api.get(f"/api/pets/{rex}")).status == 200
    await order.once(f"/internal/claims/{body['order_id']}/release")
    assert (await api.delete(f"/api/pets/{rex}")).status == 204


async def test_guards(system: System) -> None:
    """People see pets, services see facts and claims, nobody else anything; also who waits for approval has pets."""
    pending = system.client("pet", system.access_token(uuid4(), Role.OWNER, AccountStatus.PENDING))
    assert (await pending.post("/api/pets", REX)).status == 201
    assert (await system.client("pet").get("/api/pets")).status == 401
    assert (await system.as_service("pet", "order").get("/api/pets")).status == 401
    body = claim(uuid4(), str(uuid4()))
    assert (await system.as_person("pet", uuid4()).post("/internal/claims", body)).status == 401
    assert (await system.as_service("pet", "boarding").post("/internal/claims", body)).status == 403
    assert (await system.as_service("pet", "order").post("/internal/claims", body)).body[
        "code"
    ] == "transaction-missing"


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"species": "dragon"}, "species"),
        ({"weight_g": 0}, "weight_g"),
        ({"name": ""}, "name"),
        ({"gender": 7}, "gender"),
        ({"birth_date": "spring"}, "birth_date"),
        ({"owner_id": str(uuid4())}, "owner_id"),
    ],
)
async def test_a_bad_pet_is_told_what_is_wrong(system: System, change: dict[str, Any], pointer: str) -> None:
    """400 with a pointer to the member; nobody gives a pet to somebody else."""
    answer = await system.as_person("pet", uuid4()).post("/api/pets", {**REX, **change})
    assert (answer.status, answer.body["code"]) == (400, "invalid-request")
    assert pointer in str(answer.body)


@pytest.mark.parametrize(("check_in", "check_out"), [(SUNDAY, FRIDAY), (FRIDAY, FRIDAY), (FRIDAY, "2030-01-01")])
async def test_a_stay_without_nights_is_refused(order: Caller, check_in: str, check_out: str) -> None:
    """Backwards, empty or endless stays are a 422."""
    with pytest.raises(Problem) as refused:
        await order.once("/internal/claims", claim(uuid4(), str(uuid4()), check_in=check_in, check_out=check_out))
    assert (refused.value.status, refused.value.code) == (422, "bad-dates")
