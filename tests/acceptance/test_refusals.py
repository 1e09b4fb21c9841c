"""What is refused says what is wrong and what to do, and changes nothing."""

from __future__ import annotations

import secrets
from datetime import timedelta
from typing import Any

import pytest

from deploy.demo.cast import Cast, tonight
from deploy.demo.world import Answer, Person, difference


def is_problem(answer: Answer, status: int, code: str) -> bool:
    """Whether an answer is this RFC 9457 problem, with its members."""
    body: dict[str, Any] = answer.body if isinstance(answer.body, dict) else {}
    members = {"type", "title", "status", "detail", "code"} <= set(body)
    kind = answer.headers.get("Content-Type", "").startswith("application/problem+json")
    return members and kind and (answer.status, body["status"], body["code"]) == (status, status, code)


async def booked(cast: Cast, places: int = 1) -> tuple[Person, str, str]:
    """An owner with a booking for tomorrow on a listing of `places`: the owner, the listing, the order."""
    owner = await cast.approved("owner")
    provider = await cast.approved_provider("provider")
    cast.people["owner"], cast.people["provider"] = owner, provider
    listing = await cast.listing(provider, f"小院 {secrets.token_hex(3)}", {"dog-M": places})
    quote = await cast.quote(owner, listing, [await cast.pet(owner, "豆豆")], tonight() + timedelta(days=1), 2)
    order = await cast.book(owner, quote["quote"])
    return owner, listing, order["order_id"]


async def test_a_bad_body_names_the_member_that_is_wrong(cast: Cast) -> None:
    """400 with a pointer for a wrong type, a missing member, an unknown one; nobody gives himself a role."""
    nobody = Person(cast.api, "nobody")
    for body, pointer in (
        ({"username": 7, "password": "long enough"}, "username"),
        ({"username": "somebody"}, "password"),
        ({"username": "somebody", "password": "long enough", "role": 2}, "role"),
    ):
        answer = await nobody.call("POST", "/api/users", body)
        assert is_problem(answer, 400, "invalid-request"), answer
        assert pointer in str(answer.body)


async def test_a_wrong_token_is_told_where_to_get_a_right_one(cast: Cast) -> None:
    """401 for none, noise, and a token whose claims were changed."""
    real = cast.admin.token
    head, claims, signature = real.split(".")
    for token in ("", "noise", f"{head}.{claims[:-4]}AAAA.{signature}"):
        answer = await Person(cast.api, "forger", token=token).call("GET", "/api/pets")
        assert is_problem(answer, 401, "unauthorized"), answer
        assert "/api/users/login" in answer.body["detail"]


async def test_somebody_elses_order_is_not_there(cast: Cast) -> None:
    """404, the same as for an order that does not exist, for reading and for every step."""
    _, _, order = await booked(cast)
    stranger = await cast.approved("stranger")
    for method, path in (("GET", ""), ("POST", "/pay"), ("POST", "/cancel"), ("GET", "/events")):
        answer = await stranger.call(
            method, f"/api/orders/{order}{path}", {} if method == "POST" else None, key="k" * 20
        )
        assert is_problem(answer, 404, "not-found"), (path, answer)


async def test_a_sold_out_night_is_named_and_nothing_changes(cast: Cast) -> None:
    """409 with the nights that are full; every table of every database is as before."""
    _, listing, _ = await booked(cast, places=1)
    second = await cast.approved("second")
    pet = await cast.pet(second, "旺财")
    quote = await cast.quote(second, listing, [pet], tonight() + timedelta(days=2), 2)
    before = await cast.databases.steady_fingerprint()
    answer = await second.call("POST", "/api/orders", {"quote": quote["quote"]}, key=secrets.token_hex(16))
    assert is_problem(answer, 409, "capacity-exhausted"), answer
    assert str(tonight() + timedelta(days=2)) in str(answer.body["nights"])
    assert difference(before, await cast.databases.steady_fingerprint()) == []


async def test_a_step_that_the_state_does_not_allow_says_what_it_does_allow(cast: Cast) -> None:
    """409 illegal-transition for a check-in before the payment: there is nothing that the provider can do yet."""
    _, _, order = await booked(cast)
    answer = await cast.provider.call("POST", f"/api/orders/{order}/check-in", {}, key="c" * 20)
    assert is_problem(answer, 409, "illegal-transition"), answer
    assert answer.body["allowed"] == [], answer.body


async def test_money_and_bookings_need_an_idempotency_key(cast: Cast) -> None:
    """400 without one, the stored answer for a repeated one, 422 for one that came with another request."""
    owner = await cast.approved("owner")
    path, body = "/api/payments/wallet/top-ups", {"amount_cents": 5000}
    assert is_problem(await owner.call("POST", path, body), 400, "idempotency-key-missing")
    first = await owner.call("POST", path, body, key="same-key-0001")
    again = await owner.call("POST", path, body, key="same-key-0001")
    assert (first.status, again.status) == (201, 201)
    assert again.headers.get("Idempotency-Replayed") == "true"
    assert again.body == first.body
    other = await owner.call("POST", path, {"amount_cents": 9000}, key="same-key-0001")
    assert is_problem(other, 422, "idempotency-conflict"), other
    assert await cast.balance(owner) == 5000


async def test_who_is_not_approved_may_not_book_or_publish(cast: Cast) -> None:
    """403 not-approved until an administrator has said yes; an owner is no provider and no administrator."""
    fresh, password = await cast.register("fresh")
    fresh = await cast.log_in(fresh.name, password)
    answer = await fresh.call("POST", "/api/boarding/services", {})
    assert answer.status == 403, answer
    owner = await cast.approved("owner")
    assert is_problem(await owner.call("GET", "/api/admin/audit-log"), 403, "forbidden")


@pytest.mark.parametrize(
    "path", ["/internal/users", "/v1/transactions", "/api/orders/..%2f..%2finternal%2fconsistency"]
)
async def test_what_is_internal_cannot_be_reached_from_outside(cast: Cast, path: str) -> None:
    """The gateway knows no way to internal addresses, however they are written."""
    answer = await cast.admin.call("GET", path)
    assert answer.status == 404, answer


async def test_a_transaction_from_outside_is_not_joined(cast: Cast) -> None:
    """Transaction headers of a client are dropped at the gateway: the request is an ordinary one."""
    owner = await cast.approved("owner")
    headers = {"Authorization": f"Bearer {owner.token}", "X-Tx-Xid": "01890000-0000-7000-8000-000000000000"}
    answer = await cast.api.call("GET", "/api/pets", None, headers)
    assert answer.status == 200, answer
    assert "X-Tx-Branches" not in answer.headers


async def test_both_forms_of_a_path_answer_without_a_redirect(cast: Cast) -> None:
    """With and without the slash at the end: the same answer, never 301."""
    owner = await cast.approved("owner")
    for path in ("/api/pets", "/api/pets/", "/api/orders", "/api/orders/", "/api/notifications/"):
        assert (await owner.call("GET", path)).status == 200, path


async def test_the_documentation_page_needs_nothing_from_outside(cast: Cast) -> None:
    """/docs and the merged OpenAPI are served by the gateway and name no other host's scripts or styles."""
    page = await cast.api.call("GET", "/docs/", None, {})
    assert page.status == 200
    assert "https://" not in str(page.body).replace("https://spdx.org", "")
    merged = await cast.api.call("GET", "/docs/openapi.json", None, {})
    assert merged.body["openapi"].startswith("3.1")
    tags = {tag for item in merged.body["paths"].values() for op in item.values() for tag in op.get("tags", [])}
    assert len(tags) >= 9, tags


async def test_an_administrator_sees_the_whole_system(cast: Cast) -> None:
    """Health of every part, the consistency report, the transactions and the audit chain in one place."""
    health = await cast.admin.must("GET", "/api/admin/system/health")
    assert health["status"] == "ok", health
    assert len(health["parts"]) == 10, health
    report = await cast.admin.must("GET", "/api/admin/consistency-report")
    assert report["holds"] is True, report
    assert (await cast.admin.must("GET", "/api/admin/transactions?limit=5"))["items"]
    assert (await cast.admin.must("GET", "/api/admin/audit-log/check"))["holds"] is True
    assert await cast.admin.must("GET", "/api/admin/stats")
