"""What reaches a service, and what never does."""

from __future__ import annotations

import re
from typing import Any

import pytest
from yarl import URL

from gateway.routes import ROUTES

PATHS = sorted({route.path for route in ROUTES.routes})


def _concrete(path: str) -> str:
    return path.replace("{}", "a1")


@pytest.mark.parametrize("slash", ["", "/"])
async def test_every_prefix_reaches_its_service_as_sent_with_and_without_a_slash(
    gateway: Any, upstream: Any, slash: str
) -> None:
    """POST on every path of the table arrives at the table's service: same path, same body, no redirect."""
    servers = {service: await upstream() for service in ROUTES.services}
    door = await gateway({service: [one.address] for service, one in servers.items()})
    for route in ROUTES.routes:
        target = f"{_concrete(route.path)}{slash}?x=1%202"
        url = URL(door.url + target, encoded=True)
        async with door.http.post(url, data=b"body", allow_redirects=False) as answer:
            assert answer.status == 200, target
            assert (await answer.json())["target"] == target
        assert servers[route.service].seen[-1].body == b"body"


@pytest.mark.parametrize(
    "target",
    [
        "/internal/coordinator/nudge",
        "/v1/messages",
        "/health",
        "/schema/openapi.json",
        "/api",
        "/api/",
        "/api/userss",
        "/api/orders/../../internal/holds",
        "/api/orders/..%2f..%2finternal/holds",
        "/internal/holds/..%2f..%2fapi%2forders",
        "/internal/../api/orders",
        "/internal/%2e%2e/api/orders/1",
        "//internal/..//api/orders",
    ],
)
async def test_what_is_not_routed_is_a_problem_and_reaches_nobody(gateway: Any, upstream: Any, target: str) -> None:
    """Internal paths stay inside, however they are spelled: 404 as a problem, and no service hears of it."""
    one = await upstream()
    door = await gateway({service: [one.address] for service in ROUTES.services})
    async with door.http.get(URL(door.url + target, encoded=True), allow_redirects=False) as answer:
        assert answer.status == 404
        assert answer.content_type == "application/problem+json"
        assert (await answer.json())["code"] == "not-found"
    assert one.seen == []


async def test_transaction_headers_from_outside_are_removed_in_any_spelling(gateway: Any, upstream: Any) -> None:
    """No X-Tx-* header of a client reaches a service, and none of a service reaches a client."""
    one = await upstream(X_Tx_Branches="secret", Server="inside/1")
    door = await gateway({"order": [one.address]})
    sent = {"X-Tx-Xid": "1", "x-tx-branch": "2", "X-TX-DEADLINE": "3", "X-Tx-Branches": "4", "X_Tx_Xid": "5"}
    async with door.http.post(f"{door.url}/api/orders", headers=sent) as answer:
        assert not [name for name in answer.headers if name.lower().startswith("x-tx-")]
        assert answer.headers["Server"] == "nginx"
    assert not [name for name in one.seen[0].headers if re.match(r"x.tx.", name)]


async def test_who_is_calling_is_said_by_the_gateway_alone(gateway: Any, upstream: Any) -> None:
    """Authorization and Idempotency-Key pass; addresses that the client claims for itself do not."""
    one = await upstream()
    door = await gateway({"order": [one.address]})
    claimed = {"X-Forwarded-For": "10.0.0.1", "X-Real-IP": "10.0.0.1", "Forwarded": "for=10.0.0.1"}
    wanted = {"Authorization": "Bearer token", "Idempotency-Key": "k1", "If-Match": '"3"'}
    async with door.http.post(f"{door.url}/api/orders", headers=claimed | wanted) as answer:
        assert answer.status == 200
    headers = one.seen[0].headers
    assert {name: headers[name.lower()] for name in wanted} == wanted
    assert headers["x-real-ip"] == headers["x-forwarded-for"] == "127.0.0.1"
    assert headers["x-forwarded-proto"] == "http"
    assert headers["host"] == door.url.removeprefix("http://")
    assert "forwarded" not in headers


async def test_a_request_id_is_kept_when_well_formed_and_made_otherwise(gateway: Any, upstream: Any) -> None:
    """Service, answer and access log carry the same request id; one with odd characters or length is replaced."""
    one = await upstream(X_Request_Id="the service's own")
    door = await gateway({"pet": [one.address]})
    kept = "client-id_0.1"
    for count, sent in enumerate((kept, "short", "with space in it", "x" * 65, 'quote"inside', None), 1):
        headers = {"X-Request-Id": sent} if sent else {}
        async with door.http.get(f"{door.url}/api/pets", headers=headers) as answer:
            (given,) = answer.headers.getall("X-Request-Id")
        assert one.seen[-1].headers["x-request-id"] == given
        assert given == kept if sent == kept else re.fullmatch("[0-9a-f]{32}", given)
        assert (await door.logged(count))[-1]["request_id"] == given


async def test_a_trace_is_carried_on_or_started(gateway: Any, upstream: Any) -> None:
    """A well-formed traceparent passes unchanged; without one, or with a broken one, a new trace starts here."""
    one = await upstream()
    door = await gateway({"pet": [one.address]})
    good = f"00-{'a' * 32}-{'b' * 16}-01"
    for count, sent in enumerate((good, "nonsense", None), 1):
        async with door.http.get(f"{door.url}/api/pets", headers={"traceparent": sent} if sent else {}) as answer:
            assert answer.status == 200
        carried = one.seen[-1].headers["traceparent"]
        assert re.fullmatch("00-[0-9a-f]{32}-[0-9a-f]{16}-01", carried)
        assert (carried == good) is (sent == good)
        assert (await door.logged(count))[-1]["trace_id"] == carried.split("-")[1]


async def test_the_access_log_has_no_query_and_no_feed_secret(gateway: Any, upstream: Any) -> None:
    """One JSON object a request: service, status and times; what may be secret in an address is not in it."""
    one = await upstream()
    door = await gateway({"order": [one.address]})
    async with door.http.get(f"{door.url}/api/orders/calendars/hidden.ics?token=hidden") as answer:
        assert answer.status == 200
    (line,) = await door.logged(1)
    text = (door.folder / "log" / "access.log").read_text(encoding="utf-8")
    assert "hidden" not in text
    assert line["service"] == "order"
    assert line["status"] == 200
    assert line["upstream"] == one.address
    assert line["path"] == "/api/orders/calendars/..."


async def test_health_and_an_answer_of_a_service_pass_as_they_are(gateway: Any, upstream: Any) -> None:
    """/healthz answers without any service; a service's own 404 or 503 keeps its body and type."""
    one = await upstream(status=503)
    door = await gateway({"review": [one.address]})
    async with door.http.get(f"{door.url}/healthz") as answer:
        assert (answer.status, await answer.json()) == (200, {"status": "ok"})
    async with door.http.get(f"{door.url}/api/reviews") as answer:
        assert (answer.status, answer.content_type) == (503, "application/json")
    assert len(one.seen) == 1


async def test_large_answers_are_compressed_for_those_who_can(gateway: Any, upstream: Any) -> None:
    """A large JSON answer travels gzipped; a small one does not."""
    large, small = await upstream(), await upstream()
    door = await gateway({"pet": [large.address], "order": [small.address]})
    filler = {f"X-Filler-{n}": "a" * 500 for n in range(4)}
    async with door.http.get(f"{door.url}/api/pets", headers=filler) as answer:
        assert answer.headers["Content-Encoding"] == "gzip"
    async with door.http.get(f"{door.url}/api/orders") as answer:
        assert "Content-Encoding" not in answer.headers
