"""An order from its booking to its end, over real services."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID, uuid4

import pytest

from services.kit.auth import Role
from tests.integration.services.order.market import NIGHT_CENTS, Market, at_once
from tests.support.system import eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_a_whole_stay_goes_from_booking_to_settlement(market: Market) -> None:
    """Owner and provider on different shards: nights, money, pets and both lists follow every step."""
    listing = await market.listing(3, shard="shard-1")
    owner, provider = await market.owner(cents=50_000, shard="shard-0"), listing.provider
    order_id = await market.booked(owner, listing)
    assert await market.nights(listing) == [(1, 0), (1, 0)]
    assert await market.claims(order_id) == 2

    paid = await market.done(owner, order_id, "pay")
    assert paid["message"] == "订单支付成功"
    assert await market.balance(owner) == 50_000 - 2 * NIGHT_CENTS
    assert await market.nights(listing) == [(0, 1), (0, 1)]
    await market.done(provider, order_id, "confirm")
    await market.done(provider, order_id, "check-in")
    for note in ("早餐吃完了", "散步三十分钟"):
        entry = await provider.api.post(
            f"/api/orders/{order_id}/care-logs", {"pet_id": owner.pets[0], "note": note, "mood": "开心"}
        )
        assert entry.status == 201, entry
    log = await owner.api.get(f"/api/orders/{order_id}/care-logs")
    assert [item["entry"]["note"] for item in log.body["items"]] == ["早餐吃完了", "散步三十分钟"]
    assert log.body["chain_intact"] is True
    await market.done(provider, order_id, "check-out")

    assert await market.status(order_id) == (3, 3)
    assert await market.balance(provider) == 2 * NIGHT_CENTS * 9 // 10
    await market.audit()
    view = (await owner.api.get(f"/api/orders/{order_id}")).body
    assert [item["event"] for item in view["transactions"]] == ["book", "pay", "confirm", "check-in", "check-out"]
    assert len({item["xid"] for item in view["transactions"]}) == 5
    assert view["pets"][0]["name"] == "旺财0"
    mine = (await owner.api.get("/api/orders")).body["items"]
    theirs = (await provider.api.get("/api/orders", **{"as": "provider"})).body["items"]
    assert [item["id"] for item in mine] == [item["id"] for item in theirs] == [order_id]
    assert mine[0]["status"] == theirs[0]["status"] == 3


async def test_a_booking_is_answered_with_what_the_seed_named_and_what_to_do_next(market: Market) -> None:
    """Message, order id, total, payment time and the global transaction that made it."""
    listing, owner = await market.listing(1), await market.owner()
    answer = await market.book(owner, listing)
    assert answer.status == 201
    assert answer.body["message"] == "订单创建成功"
    assert (answer.body["status"], answer.body["total_cents"]) == (0, 2 * NIGHT_CENTS)
    assert {"order_id", "pay_by", "xid"} <= set(answer.body)


async def test_an_instant_booking_needs_no_confirmation(market: Market) -> None:
    """Its payment confirms it."""
    listing, owner = await market.listing(1), await market.owner()
    order_id = await market.booked(owner, listing, instant_book=True)
    assert (await market.done(owner, order_id, "pay"))["status_name"] == "confirmed"
    await market.done(listing.provider, order_id, "check-in")


async def test_a_rejected_order_gives_everything_back(market: Market) -> None:
    """Money, nights and pets are as before the booking."""
    listing, owner = await market.listing(1), await market.owner(cents=30_000)
    order_id = await market.booked(owner, listing)
    await market.done(owner, order_id, "pay")
    await market.done(listing.provider, order_id, "reject", {"reason": "家里有事"})
    assert await market.status(order_id) == (7, 7)
    assert await market.balance(owner) == 30_000
    assert await market.nights(listing) == [(0, 0), (0, 0)]
    assert await market.claims(order_id) == 0
    await market.audit()
    assert (await market.book(owner, listing)).status == 201


async def test_cancelling_in_time_gives_everything_back(market: Market) -> None:
    """Before the policy's cut-off the owner gets all, and nights and pets are free for the next."""
    listing, owner = await market.listing(1), await market.owner(cents=30_000)
    order_id = await market.booked(owner, listing, begins_in_days=5)
    await market.done(owner, order_id, "pay")
    preview = (await owner.api.get(f"/api/orders/{order_id}/cancellation-preview")).body
    assert (preview["refund_cents"], preview["allowed"]) == (2 * NIGHT_CENTS, True)
    cancelled = await market.done(owner, order_id, "cancel")
    assert (cancelled["status_name"], cancelled["refund_cents"]) == ("refunded", 2 * NIGHT_CENTS)
    assert await market.balance(owner) == 30_000
    assert await market.nights(listing) == [(0, 0), (0, 0)]
    await market.audit()


async def test_cancelling_late_divides_the_money_as_the_preview_said(market: Market) -> None:
    """After the cut-off the provider keeps half; not a cent is lost."""
    listing, owner = await market.listing(1), await market.owner(cents=30_000)
    order_id = await market.booked(owner, listing, begins_in_days=1, policy="seven_day")
    await market.done(owner, order_id, "pay")
    preview = (await owner.api.get(f"/api/orders/{order_id}/cancellation-preview")).body
    assert (preview["refund_cents"], preview["provider_cents"]) == (NIGHT_CENTS, NIGHT_CENTS)
    await market.done(owner, order_id, "cancel")
    assert await market.balance(owner) == 30_000 - NIGHT_CENTS
    await market.audit()


async def test_a_provider_who_cancels_gives_everything_back(market: Market) -> None:
    """The policy holds against the owner only."""
    listing, owner = await market.listing(1), await market.owner(cents=30_000)
    order_id = await market.booked(owner, listing, begins_in_days=1, policy="seven_day")
    await market.done(owner, order_id, "pay")
    await market.done(listing.provider, order_id, "cancel", {"reason": "生病了"})
    assert await market.balance(owner) == 30_000
    await market.audit()


async def test_an_unpaid_order_is_cancelled_without_money(market: Market) -> None:
    """Held nights and pets are free again; there is nothing to refund."""
    listing, owner = await market.listing(1), await market.owner()
    order_id = await market.booked(owner, listing)
    assert (await market.done(owner, order_id, "cancel"))["status_name"] == "cancelled"
    assert await market.nights(listing) == [(0, 0), (0, 0)]
    assert await market.claims(order_id) == 0


async def test_pets_that_go_home_early_may_sleep_elsewhere(market: Market) -> None:
    """An early check-out keeps the price and the nights, frees the pets from tonight on, and forgets none before."""
    listing, other, owner = await market.listing(1), await market.listing(1), await market.owner()
    order_id = await market.booked(owner, listing, instant_book=True, begins_in_days=-1, nights=3)
    await market.done(owner, order_id, "pay")
    await market.done(listing.provider, order_id, "check-in")
    assert (await market.book(owner, other)).body["code"] == "pet-already-booked"
    await market.done(listing.provider, order_id, "check-out")
    assert await market.nights(listing) == [(0, 1)] * 3
    assert (await market.book(owner, other)).status == 201
    stays = await market.system.as_person("pet", owner.id).get(f"/api/pets/{owner.pets[0]}/stays")
    today = market.today()
    [past] = [stay for stay in stays.body["items"] if stay["order_id"] == order_id]
    assert (past["check_in"], past["check_out"]) == (str(today - timedelta(days=1)), str(today))


async def test_an_order_is_nobody_elses(market: Market) -> None:
    """A stranger gets 404 for every way to an order, and changes nothing."""
    listing, owner = await market.listing(1), await market.owner()
    order_id = await market.booked(owner, listing)
    stranger, rival = await market.owner(), market.person(Role.PROVIDER)
    reads = ["", "/events", "/care-logs", "/cancellation-preview"]
    answers = [await stranger.api.get(f"/api/orders/{order_id}{path}") for path in reads]
    answers += [await market.step(stranger, order_id, step) for step in ("pay", "cancel")]
    answers += [await market.step(rival, order_id, step) for step in ("confirm", "reject", "check-in", "check-out")]
    answers.append(await rival.api.post(f"/api/orders/{order_id}/care-logs", {"pet_id": owner.pets[0]}))
    answers.append(await stranger.api.get(f"/api/orders/user/{owner.id}"))
    answers.append(await stranger.api.get(f"/api/orders/{uuid4()}"))
    assert {answer.status for answer in answers} == {404}
    assert await market.status(order_id) == (0, 0)


async def test_a_booking_that_is_undone_between_two_looks_is_not_there(market: Market) -> None:
    """Whoever looks at an undecided booking may find the order and not what was agreed any more: 404, no fault."""
    listing, owner = await market.listing(1), await market.owner()
    order_id = await market.booked(owner, listing)
    await market.system.quiet()
    agreed = "WITH gone AS (DELETE FROM order_details WHERE order_id = $1 RETURNING *) SELECT * FROM gone"
    [details] = await market.system.fetch_all("order", agreed, UUID(order_id))
    for path in ("", "/cancellation-preview"):
        answer = await owner.api.get(f"/api/orders/{order_id}{path}")
        assert (answer.status, answer.body["code"]) == (404, "not-found"), path
    back = "INSERT INTO order_details VALUES ($1, $2, $3, $4, $5)"
    await market.system.fetch(f"order@{market.system.shard_of(UUID(order_id))}", back, *details.values())
    assert (await owner.api.get(f"/api/orders/{order_id}")).status == 200


async def test_an_illegal_step_says_what_is_possible_instead(market: Market) -> None:
    """409 with the steps that are open to the one who asked."""
    listing, owner = await market.listing(1), await market.owner()
    order_id = await market.booked(owner, listing)
    refused = await market.step(listing.provider, order_id, "confirm")
    assert (refused.status, refused.body["code"]) == (409, "illegal-transition")
    again = await market.step(listing.provider, order_id, "cancel")
    assert again.body["allowed"] == []
    await market.done(owner, order_id, "pay")
    twice = await market.step(owner, order_id, "pay")
    assert (twice.status, twice.body["allowed"]) == (409, ["cancel"])
    assert await market.balance(owner) == 1_000_000 - 2 * NIGHT_CENTS


async def test_a_stay_cannot_begin_before_its_first_day(market: Market) -> None:
    """Checking in early is refused with the day on which it is possible."""
    listing, owner = await market.listing(1), await market.owner()
    order_id = await market.booked(owner, listing, begins_in_days=2, instant_book=True)
    await market.done(owner, order_id, "pay")
    refused = await market.step(listing.provider, order_id, "check-in")
    assert (refused.status, refused.body["code"]) == (409, "too-early")


async def test_a_payment_without_money_changes_nothing(market: Market) -> None:
    """409 with what is missing; the order still waits, and can be paid after a top-up."""
    listing, owner = await market.listing(1), await market.owner(cents=100)
    order_id = await market.booked(owner, listing)
    refused = await market.step(owner, order_id, "pay")
    assert (refused.status, refused.body["code"]) == (409, "insufficient-funds")
    await market.audit()
    assert await market.status(order_id) == (0, 0)
    assert await market.nights(listing) == [(1, 0), (1, 0)]
    await owner.wallet.post("/api/payments/wallet/top-ups", {"amount_cents": 50_000}, key=str(uuid4()))
    await market.done(owner, order_id, "pay")


async def test_paying_twice_at_once_takes_the_money_once(market: Market) -> None:
    """Two keys, one order: one payment stands, the other is refused."""
    listing, owner = await market.listing(1), await market.owner(cents=50_000)
    order_id = await market.booked(owner, listing)
    answers = await at_once(*(market.step(owner, order_id, "pay") for _ in range(4)))
    assert sorted(answer.status for answer in answers) == [200, 409, 409, 409]
    assert await market.balance(owner) == 50_000 - 2 * NIGHT_CENTS
    await market.audit()


async def test_a_care_entry_names_a_pet_of_the_stay_and_a_day_that_has_come(market: Market) -> None:
    """Other pets and coming days are refused with 422; before check-in there is no log at all."""
    listing, owner = await market.listing(1), await market.owner()
    order_id = await market.booked(owner, listing, instant_book=True)
    await market.done(owner, order_id, "pay")
    path, api = f"/api/orders/{order_id}/care-logs", listing.provider.api
    assert (await api.post(path, {"pet_id": owner.pets[0]})).body["code"] == "illegal-transition"
    await market.done(listing.provider, order_id, "check-in")
    assert (await api.post(path, {"pet_id": str(uuid4())})).body["code"] == "pet-not-staying"
    assert (await api.post(path, {"pet_id": owner.pets[0], "day": "2999-01-01"})).body["code"] == "day-in-future"
    assert (await api.post(path, {"pet_id": owner.pets[0], "note": "a\x00b"})).body["code"] == "bad-text"


async def test_a_reason_that_cannot_be_stored_is_the_callers_to_change_and_changes_nothing(market: Market) -> None:
    """A NUL has no place in a document of PostgreSQL: 400, the order as it was, and the same key may try again."""
    listing, owner = await market.listing(1), await market.owner()
    order_id, key = await market.booked(owner, listing), str(uuid4())
    path = f"/api/orders/{order_id}/cancel"
    refused = await owner.api.post(path, {"reason": "a\x00b"}, key=key)
    assert (refused.status, refused.body["code"]) == (400, "bad-text")
    assert await market.status(order_id) == (0, 0)
    assert (await owner.api.post(path, {"reason": "ab"}, key=key)).status == 200


async def test_care_entries_written_at_once_form_one_chain(market: Market) -> None:
    """Ten writers at the same moment: ten entries, numbered without gaps, each hashed over the one before."""
    listing, owner = await market.listing(1), await market.owner()
    order_id = await market.booked(owner, listing, instant_book=True)
    await market.done(owner, order_id, "pay")
    await market.done(listing.provider, order_id, "check-in")
    path = f"/api/orders/{order_id}/care-logs"
    entries = [{"pet_id": owner.pets[0], "note": f"第{n}条"} for n in range(10)]
    answers = await at_once(*(listing.provider.api.post(path, entry) for entry in entries))
    assert {answer.status for answer in answers} == {201}
    first = (await owner.api.get(path, limit="6")).body
    second = (await owner.api.get(path, limit="6", cursor=first["next_cursor"])).body
    assert [item["seq"] for item in first["items"] + second["items"]] == list(range(1, 11))
    assert first["chain_intact"] and second["chain_intact"]
    assert second["next_cursor"] is None
    assert second["items"][0]["previous_hash"] == first["items"][-1]["hash"]


async def test_a_rewritten_care_entry_is_refused_and_a_forged_one_is_seen(market: Market) -> None:
    """The table refuses rewriting; whoever gets round that breaks the chain for everybody to see."""
    listing, owner = await market.listing(1), await market.owner(shard="shard-0")
    order_id = await market.booked(owner, listing, instant_book=True)
    await market.done(owner, order_id, "pay")
    await market.done(listing.provider, order_id, "check-in")
    path = f"/api/orders/{order_id}/care-logs"
    await listing.provider.api.post(path, {"pet_id": owner.pets[0], "note": "没有吃药"})
    await market.system.quiet()
    forge = "UPDATE care_logs SET entry = jsonb_set(entry, '{note}', '\"吃药了\"')"
    with pytest.raises(Exception, match="only ever appended"):
        await market.system.fetch("order@shard-0", forge)
    await market.system.fetch("order@shard-0", "ALTER TABLE care_logs DISABLE TRIGGER append_only")
    await market.system.fetch("order@shard-0", forge)
    await market.system.fetch("order@shard-0", "ALTER TABLE care_logs ENABLE TRIGGER append_only")
    assert (await owner.api.get(path)).body["chain_intact"] is False


async def test_lists_are_paged_and_filtered(market: Market) -> None:
    """Newest first, with a cursor that loses and repeats nothing, for both sides."""
    listing, owner = await market.listing(9, shard="shard-1"), await market.owner(shard="shard-0")
    made = [await market.booked(owner, listing, begins_in_days=10 * n) for n in range(5)]
    await market.done(owner, made[2], "cancel")
    for api, side in ((owner.api, "owner"), (listing.provider.api, "provider")):
        seen: list[str] = []
        cursor: dict[str, str] = {}
        while True:
            page = (await api.get("/api/orders", limit="2", **{"as": side}, **cursor)).body
            seen += [item["id"] for item in page["items"]]
            if page["next_cursor"] is None:
                break
            cursor = {"cursor": page["next_cursor"]}
        assert seen == made[::-1]
        cancelled = (await api.get("/api/orders", status="4", **{"as": side})).body["items"]
        assert [item["id"] for item in cancelled] == [made[2]]
    everything = await owner.api.get(f"/api/orders/user/{owner.id}")
    assert len(everything.body) == 5


async def test_every_change_is_told_to_both_and_nothing_of_a_refused_booking(market: Market) -> None:
    """Messages leave after their transaction is final; one that was rolled back sends none."""
    listing, other, owner = await market.listing(1), await market.listing(1), await market.owner()
    order_id = await market.booked(owner, listing)
    await market.done(owner, order_id, "pay")
    assert (await market.book(owner, other)).body["code"] == "pet-already-booked"
    expected = sorted(
        (kind, str(person.id))
        for kind in ("order_created", "payment_completed")
        for person in (owner, listing.provider)
    )

    async def told() -> bool:
        return len(await market.messages(owner, listing.provider, other.provider)) >= len(expected)

    await eventually(told)
    await market.audit()
    assert not await market.system.fetch_all("order", "SELECT id FROM outbox")
    sent = await market.messages(owner, listing.provider, other.provider)
    assert sorted((message["kind"], message["recipient"]) for message in sent) == expected
    assert {message["order_id"] for message in sent} == {order_id}


async def test_an_order_is_found_by_the_services_that_may_ask(market: Market) -> None:
    """Review, notification and admin read an order; others, and people, do not."""
    listing, owner = await market.listing(1), await market.owner()
    order_id = await market.booked(owner, listing)
    path = f"/internal/orders/{order_id}"
    found = await market.system.as_service("order", "review").get(path)
    assert (found.status, found.body["owner_id"]) == (200, str(owner.id))
    assert (await market.system.as_service("order", "pet").get(path)).status == 403
    assert (await owner.api.get(path)).status == 401
    statistics = await market.system.as_service("order", "admin").get("/internal/statistics")
    assert statistics.body["orders"] >= 1
