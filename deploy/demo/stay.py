"""The scenes in which everything goes well: accounts, search, a whole stay, a cancelled one."""

from __future__ import annotations

import json
from collections import Counter
from datetime import timedelta
from typing import Any

from deploy.demo.cast import PRICE_CENTS, REGISTER_TRIES_MAX, Cast, tonight
from deploy.demo.world import Failed, eventually

Figures = dict[str, Any]
WALLET_CENTS = 200_000
NIGHTS = 3
STATUS_WORDS = {4: "cancelled (4)", 8: "refunding (8)", 9: "refunded (9)"}


async def accounts_and_listing(cast: Cast) -> tuple[Figures, str]:
    """Accounts, approval, listing."""
    cast.people["admin"] = await cast.log_in("admin", cast.system.admin_password)
    pending, _ = await cast.register("visitor")
    refused = await pending.call("POST", "/api/pets", {"name": "x", "species": "dog", "weight_g": 1})
    if refused.status != 401:
        raise Failed(f"somebody who is not logged in got {refused.status} instead of 401")
    cast.people["owner"] = owner = await cast.approved("owner")
    owner_shard = await cast.shard_of(owner.user_id)
    # Which shard an account comes to is chance; the story needs the provider on the other one.
    for _ in range(REGISTER_TRIES_MAX):
        provider = await cast.approved_provider("provider")
        if await cast.shard_of(provider.user_id) != owner_shard:
            break
    else:
        raise Failed(f"{REGISTER_TRIES_MAX} providers in turn came to {owner_shard}")
    cast.people["provider"] = provider
    provider_shard = await cast.shard_of(provider.user_id)
    title = f"阳光小院 {provider.name[-6:]}"
    cast.things["title"] = title
    cast.things["listing"] = await cast.listing(provider, title, {"dog-M": 3})
    cast.things["pet"] = await cast.pet(owner, "豆豆")
    audit = await cast.admin.must("GET", "/api/admin/audit-log?limit=5")
    cast.say("A visitor who is not logged in was refused (401).")
    cast.say(f"{owner.name}, who has a dog, and {provider.name}, who boards dogs, registered and were approved.")
    cast.say(
        f"Their rows lie on two PostgreSQL servers: the owner's on {owner_shard}, the provider's on {provider_shard}."
    )
    cast.say(f"The listing 「{title}」, with 3 places for middle-sized dogs, passed moderation.")
    figures = {"owner_shard": owner_shard, "provider_shard": provider_shard, "audit_entries_seen": len(audit["items"])}
    return figures, "An owner and a provider were approved, a listing passed moderation, the audit log has it."


async def search_and_quote(cast: Cast) -> tuple[Figures, str]:
    """Search by text, dates, pet and price; a quote with its lines."""
    first = tonight()
    query = (
        f"/api/boarding/search?q={cast.things['title']}&check_in={first}&check_out={first + timedelta(days=NIGHTS)}"
        f"&pool=dog-M&price_max={PRICE_CENTS}"
    )
    found = await cast.owner.must("GET", query)
    ids = [item["service_id"] for item in found["items"]]
    if ids != [cast.things["listing"]]:
        raise Failed(f"the search found {ids} instead of [{cast.things['listing']}]")
    dearer = await cast.owner.must("GET", query.replace(f"price_max={PRICE_CENTS}", f"price_max={PRICE_CENTS - 1}"))
    if dearer["items"]:
        raise Failed("a listing above the price limit was found")
    quote = await cast.quote(cast.owner, cast.things["listing"], [cast.things["pet"]], first, NIGHTS)
    lines = sum(line["amount_cents"] for line in quote["lines"])
    if lines != quote["total_cents"] or quote["total_cents"] < PRICE_CENTS * NIGHTS:
        raise Failed(f"the lines sum to {lines}, the total says {quote['total_cents']}")
    cast.things["quote"] = quote
    price = _money(PRICE_CENTS)
    cast.say(f"Asked for its title, {NIGHTS} nights, a middle-sized dog and {price} a night, the search found just it;")
    cast.say("asked for a cent less, it found nothing.")
    cast.say(
        f"The signed quote: {NIGHTS} nights, {_money(quote['total_cents'])} {quote['currency']} in"
        f" {len(quote['lines'])} line(s), good until {quote['expires_at'][11:16]} UTC."
    )
    return {"found": 1, "total_cents": quote["total_cents"], "lines": len(quote["lines"])}, "Found, and quoted."


async def whole_stay(cast: Cast) -> tuple[Figures, str]:
    """Book, pay, confirm, check in, care, check out, settle, review; and what people were told."""
    owner, provider = cast.owner, cast.provider
    quote = cast.things.get("quote")
    if quote is None:  # the scene is told without the search before it
        quote = await cast.quote(owner, cast.things["listing"], [cast.things["pet"]], tonight(), NIGHTS)
    total = quote["total_cents"]
    await cast.top_up(owner, WALLET_CENTS)
    booked, locks = await cast.book_watched(owner, quote["quote"])
    order_id, xid = booked["order_id"], booked["xid"]
    held = [lock for lock in locks if lock.xid == xid]
    cast.things["order"] = order_id
    seen = await cast.ask_coordinator(f"/v1/transactions/{xid}")
    branches = sorted({branch["resource"] for branch in seen["branches"]})
    if seen["decision"] not in (1, "COMMITTED") or not {"capacity", "pet"} <= set(branches) or len(branches) < 4:
        raise Failed(f"transaction {xid} is {seen['decision']} with branches {branches}")
    cast.say(f"The booking is the global transaction with xid {xid}.")
    cast.say("The coordinator was held still before its decision. Written and locked by then, branch by branch:")
    for branch in branches:
        tables = Counter(lock.table.removeprefix("public.") for lock in held if lock.database == branch)
        cast.say(f"  {branch}: {', '.join(f'{count} in {table}' for table, count in sorted(tables.items()))}")
    cast.say(f"The decision, one write for all {len(branches)} branches: committed.")
    await owner.must("POST", f"/api/orders/{order_id}/pay", {}, keyed=True)
    if await cast.balance(owner) != WALLET_CENTS - total:
        raise Failed("the wallet does not show the payment")
    await provider.must("POST", f"/api/orders/{order_id}/confirm", {})
    await provider.must("POST", f"/api/orders/{order_id}/check-in", {})
    log = {"pet_id": cast.things["pet"], "meals": "早晚各一次", "walk": "三次", "note": "吃得好，睡得香。"}
    await provider.must("POST", f"/api/orders/{order_id}/care-logs", log)
    await provider.must("POST", f"/api/orders/{order_id}/check-out", {}, keyed=True)
    earned = await cast.balance(provider)
    if earned != total - total // 10:
        raise Failed(f"the provider has {earned} cents instead of {total - total // 10}")
    review = {"order_id": order_id, "rating": 5, "text": "豆豆很开心！"}
    await owner.must("POST", "/api/reviews", review)
    await provider.must("POST", "/api/reviews", {**review, "text": "很乖的狗狗。"})
    shown = await owner.must("GET", f"/api/reviews?service_id={cast.things['listing']}")
    if len(shown["items"]) != 1:
        raise Failed(f"{len(shown['items'])} reviews are shown instead of 1")
    cast.say(f"{_money(total)} was paid, the stay confirmed, checked in, given a care log, checked out;")
    cast.say(f"{_money(earned)} came to the provider, the rest is commission; both wrote a review, which is shown.")
    kinds = await _notifications(cast)
    cast.say(f"{owner.name} was told: {', '.join(kinds)}")
    await cast.quiet()
    figures = {
        "xid": xid,
        "branches": branches,
        "locks": len(held),
        "total_cents": total,
        "provider_cents": earned,
        "told": kinds,
    }
    return figures, f"Booked over {len(branches)} databases in one transaction, stayed, settled, reviewed."


def _money(cents: int) -> str:
    return f"{cents / 100:.2f}"


async def _notifications(cast: Cast) -> list[str]:
    kinds: list[str] = []

    async def told() -> bool:
        nonlocal kinds
        inbox = await cast.owner.must("GET", "/api/notifications?limit=100")
        kinds = sorted({item["kind"] for item in inbox["items"]})
        return {"order_created", "payment_completed", "order_completed", "review_published"} <= set(kinds)

    await eventually(told, "the owner is told of booking, payment, completion and review")
    return kinds


async def cancelled_stay(cast: Cast) -> tuple[Figures, str]:
    """A paid stay is cancelled early: money back, nights and pet free."""
    owner, listing, pet = cast.owner, cast.things["listing"], cast.things["pet"]
    first = tonight() + timedelta(days=30)
    if await cast.balance(owner) == 0:  # the scene is told without the stay before it
        await cast.top_up(owner, WALLET_CENTS)
    before = await cast.balance(owner)
    nights_before = await _nights(cast)
    quote = await cast.quote(owner, listing, [pet], first, 2)
    order = await cast.book(owner, quote["quote"])
    await owner.must("POST", f"/api/orders/{order['order_id']}/pay", {}, keyed=True)
    during = await cast.balance(owner)
    if during != before - quote["total_cents"]:
        raise Failed("the payment did not leave the wallet")
    cancelled = await owner.must("POST", f"/api/orders/{order['order_id']}/cancel", {"reason": "计划有变"}, keyed=True)
    await cast.quiet()
    after = await cast.balance(owner)
    if after != before:
        raise Failed(f"the wallet has {after} cents instead of {before}")
    nights_after = await _nights(cast)
    if nights_after != nights_before:
        raise Failed(f"nights are {nights_after} instead of {nights_before}")
    claims = await cast.databases.rows(
        "pet", "SELECT 1 FROM claimed_nights WHERE order_id = $1::uuid", order["order_id"]
    )
    if claims:
        raise Failed(f"the pet is still claimed for {len(claims)} nights")
    cast.say(
        f"{_money(quote['total_cents'])} was paid for 2 nights and came back with the cancellation; the order is now"
        f" {STATUS_WORDS.get(cancelled['status'], cancelled['status'])}."
    )
    cast.say("The listing's nights are counted as before, and no row claims the pet.")
    again = await cast.book(owner, (await cast.quote(owner, listing, [pet], first, 2))["quote"])
    await owner.must("POST", f"/api/orders/{again['order_id']}/cancel", {"reason": "只是试试"}, keyed=True)
    figures = {"refunded_cents": quote["total_cents"], "balance_before": before, "balance_after": after}
    return figures, "The money is back, the nights are free, and the same pet could book them again."


async def _nights(cast: Cast) -> str:
    rows = await cast.databases.rows(
        "capacity",
        "SELECT coalesce(sum(held), 0)::int AS held, coalesce(sum(booked), 0)::int AS booked "
        "FROM nights WHERE listing_id = $1::uuid",
        cast.things["listing"],
    )
    return json.dumps(dict(rows[0]))
