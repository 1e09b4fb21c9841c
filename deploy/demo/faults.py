"""The scenes in which something goes wrong on purpose."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import time
from collections import Counter
from datetime import date, timedelta
from typing import Any

from deploy.demo.cast import Cast, tonight
from deploy.demo.world import PATIENCE_S, RETRY_PAUSE_S, Answer, Failed, Person, difference, eventually

Figures = dict[str, Any]
RACERS = 50
PLACES = 3
BRANCH_TIMEOUT_S = 8.0


async def failing_booking(cast: Cast) -> tuple[Figures, str]:
    """The pet is elsewhere on one of the nights: nights and order were written, and are not there afterwards."""
    owner, pet = cast.owner, cast.things["pet"]
    first = tonight() + timedelta(days=60)
    other = await cast.listing(cast.provider, f"另一个家 {secrets.token_hex(3)}", {"dog-M": 5})
    kept = await cast.book(owner, (await cast.quote(owner, other, [pet], first, 1))["quote"])
    clash = await cast.quote(owner, cast.things["listing"], [pet], first - timedelta(days=1), 3)
    await cast.quiet()
    before = await cast.databases.steady_fingerprint()
    known = await _rolled_back_bookings(cast)
    answer = await _book_with_patience(owner, clash["quote"])
    if answer.status != 409 or answer.code != "pet-already-booked":
        raise Failed(f"the clash was answered {answer.status} {answer.body} instead of 409 pet-already-booked")
    waited_s = await cast.quiet()
    changed = difference(before, await cast.databases.steady_fingerprint())
    if changed:
        raise Failed(f"a failed booking changed {', '.join(changed)}")
    cast.say("The pet is promised elsewhere for one of the nights; the listing has room, so its nights are held first.")
    cast.say(f"Then the pet service refuses: {answer.body['detail']}")
    for xid in await _rolled_back_bookings(cast) - known:
        branches = {
            branch["resource"] for branch in (await cast.ask_coordinator(f"/v1/transactions/{xid}"))["branches"]
        }
        cast.say(f"The decision on xid {xid}: rolled back. It had branches in {', '.join(sorted(branches))}.")
    cast.say(
        f"Before and after: {len(before)} tables in {len(cast.databases.dsns)} databases, compared by a digest of all"
        " their rows; none differs."
    )
    await owner.must("POST", f"/api/orders/{kept['order_id']}/cancel", {"reason": "示例结束"}, keyed=True)
    figures = {"tables_compared": len(before), "tables_changed": 0, "code": "pet-already-booked", "settled_s": waited_s}
    return figures, "Every table is as it was before; nothing of the failed booking is left."


async def _rolled_back_bookings(cast: Cast) -> set[str]:
    """The newest ones: one whose coordinator died may be known to nobody, which is as good."""
    found = await cast.ask_coordinator("/v1/transactions?name=book&decision=rolled_back&limit=100")
    return {item["xid"] for item in found["items"]}


async def race_for_places(cast: Cast) -> tuple[Figures, str]:
    """Fifty people at once for three places, first with the gate, then with Redlock switched off."""
    listing = await cast.listing(cast.provider, f"抢手的家 {secrets.token_hex(3)}", {"dog-M": PLACES})
    started = time.monotonic()
    racers = await cast.many_approved("racer", RACERS)
    pets = await asyncio.gather(*(cast.pet(person, "小跑") for person in racers))
    cast.say(f"{RACERS} people with a dog each stand ready, all with a quote for the same nights of one listing.")
    first = tonight() + timedelta(days=10)
    figures: Figures = {"racers": RACERS, "places": PLACES, "accounts_s": round(time.monotonic() - started, 1)}
    figures["with_redlock"] = await _race(cast, listing, racers, pets, first)
    _say_race(cast, "With Redlock", figures["with_redlock"])
    cast.say("The services are started again with Redlock off: what guards the places now is the database alone.")
    await cast.system.restart_with({"PAWSTAY_REDLOCK": "off"})
    try:
        figures["without_redlock"] = await _race(cast, listing, racers, pets, first + timedelta(days=7))
        _say_race(cast, "Without", figures["without_redlock"])
    finally:
        await cast.system.restart_with({})
    return figures, f"{RACERS} at once for {PLACES} places: exactly {PLACES} booked, with Redlock and without."


async def _race(cast: Cast, listing: str, racers: list[Person], pets: list[str], first: date) -> Figures:
    quotes = await asyncio.gather(
        *(cast.quote(person, listing, [pet], first, 2) for person, pet in zip(racers, pets, strict=True))
    )
    started = time.monotonic()
    answers = await asyncio.gather(
        *(_book_with_patience(person, quote["quote"]) for person, quote in zip(racers, quotes, strict=True))
    )
    raced_s = time.monotonic() - started
    codes = Counter(str(a.status) if a.status == 201 else a.code for a in answers)
    await cast.quiet()
    rows = await cast.databases.rows(
        "capacity",
        "SELECT night, total, held, booked FROM nights WHERE listing_id = $1::uuid AND night >= $2 AND night < $3",
        listing,
        first,
        first + timedelta(days=2),
    )
    taken = {row["held"] + row["booked"] for row in rows}
    if codes["201"] != PLACES or taken != {PLACES} or len(rows) != 2:
        raise Failed(f"{codes['201']} bookings succeeded, nights have {sorted(taken)} taken; answers: {dict(codes)}")
    return {**codes, "race_s": round(raced_s, 1)}


def _say_race(cast: Cast, how: str, figures: Figures) -> None:
    refused = ", ".join(f"{n} got {code}" for code, n in figures.items() if code not in ("201", "race_s"))
    cast.say(
        f"{how}: {figures['201']} of {RACERS} booked, {refused}, in {figures['race_s']} s; the database has {PLACES} of"
        f" {PLACES} places taken in each night."
    )


async def _book_with_patience(person: Person, quote: str) -> Answer:
    """Repeats with the same key while the answer is to come back later, as a good client does."""
    key = secrets.token_hex(16)
    deadline = time.monotonic() + PATIENCE_S
    while True:
        answer = await person.call("POST", "/api/orders", {"quote": quote}, key=key)
        if not answer.is_for_later or time.monotonic() > deadline:
            return answer
        await asyncio.sleep(RETRY_PAUSE_S)


async def coordinator_killed(cast: Cast) -> tuple[Figures, str]:
    """The coordinator stops hearing, the branches are done, it dies; a new one decides what is left."""
    owner, pet = cast.owner, cast.things["pet"]
    first = tonight() + timedelta(days=90)
    quote = await cast.quote(owner, cast.things["listing"], [pet], first, 2)
    await cast.quiet()
    pid = await cast.pause_coordinator()
    booking = asyncio.ensure_future(_book_with_patience(owner, quote["quote"]))
    open_rows: dict[str, int] = {}

    async def branches_are_open() -> bool:
        nonlocal open_rows
        open_rows = await cast.databases.locks()
        return {"capacity", "pet"} <= set(open_rows)

    try:
        await eventually(branches_are_open, "branches are done and undecided", timeout_s=BRANCH_TIMEOUT_S)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    rows = sum(open_rows.values())
    cast.say(
        f"The coordinator (process {pid}) was killed when {rows} rows in {', '.join(sorted(open_rows))} were written"
        " and locked, and nothing was decided."
    )
    answer = await booking
    settled_s = await cast.quiet()
    orders = 0
    for name in cast.databases.dsns:
        if name.startswith("order@"):
            found = await cast.databases.rows(
                name, "SELECT 1 FROM orders WHERE owner_id = $1::uuid AND check_in = $2", owner.user_id, first
            )
            orders += len(found)
    held = await cast.databases.rows(
        "capacity",
        "SELECT held FROM nights WHERE listing_id = $1::uuid AND night >= $2 AND night < $3 AND held > 0",
        cast.things["listing"],
        first,
        first + timedelta(days=2),
    )
    if answer.status != 201 or orders != 1 or len(held) != 2:
        raise Failed(f"answer {answer.status} {answer.body}, {orders} orders, {len(held)} nights held")
    await owner.must("POST", f"/api/orders/{answer.body['order_id']}/cancel", {"reason": "示例结束"}, keyed=True)
    cast.say(
        f"It was started again and decided; the order {answer.body['order_id']} is there once, and {settled_s} s after"
        " the answer no row was locked."
    )
    figures = {"undecided_rows_at_kill": open_rows, "settled_s": settled_s, "orders": orders}
    return figures, "One booking, one order, its nights held once; nothing stuck."
