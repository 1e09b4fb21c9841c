"""Who is let in, and what those hear who made a mistake."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import replace

import aiohttp
import jwt

from coordinator.protocol.messages import MESSAGES_MAX
from coordinator.protocol.tokens import SigningKey, TokenMaker
from tests.integration.coordinator.tc.harness import KEYS, QUICK, Caller, new_xid, running, settings_for

PATHS = [
    ("POST", "/v1/messages"),
    ("POST", "/v1/wait"),
    ("POST", "/v1/resources"),
    ("GET", "/v1/transactions"),
    ("GET", "/v1/transactions/0"),
    ("GET", "/v1/statistics"),
]


def _expired() -> str:
    claims = {"iss": "order", "aud": "coordinator", "exp": int(time.time()) - 1, "typ": "service"}
    return jwt.encode(claims, KEYS["order"].key, algorithm="EdDSA", headers={"kid": "order"})


def _borrowed() -> str:
    claims = {"iss": "order", "aud": "coordinator", "exp": int(time.time()) + 60, "typ": "service"}
    return jwt.encode(claims, KEYS["capacity"].key, algorithm="EdDSA", headers={"kid": "capacity"})


def _without_end() -> str:
    claims = {"iss": "order", "aud": "coordinator", "exp": ["never"], "typ": "service"}
    return jwt.encode(claims, KEYS["order"].key, algorithm="EdDSA", headers={"kid": "order"})


BAD = {
    "none": None,
    "no scheme": TokenMaker("order", KEYS["order"]).token_for("coordinator"),
    "garbage": "Bearer not.a.token",
    "expired": "Bearer " + _expired(),
    "with an end that is none": "Bearer " + _without_end(),
    "in another's name": "Bearer " + _borrowed(),
    "for another reader": "Bearer " + TokenMaker("order", KEYS["order"]).token_for("capacity"),
    "of an unknown key": "Bearer " + TokenMaker("order", SigningKey.generate("order")).token_for("coordinator"),
    "of a stranger": "Bearer " + TokenMaker("stranger", SigningKey.generate("stranger")).token_for("coordinator"),
}


async def test_a_wrong_token_opens_no_door(tc: Caller) -> None:
    """Every path but the probes answers 401 as a problem to every token that does not hold, and reads nothing."""
    async with aiohttp.ClientSession() as http:
        for method, path in PATHS:
            for kind, token in BAD.items():
                headers = {"Authorization": token} if token else {}
                async with http.request(method, tc.url + path, headers=headers, data=b"[]") as response:
                    assert response.status == 401, (kind, path)
                    assert response.headers["Content-Type"] == "application/problem+json"
                    assert response.headers["WWW-Authenticate"] == "Bearer"
                    problem = await response.json(content_type=None)
                    assert {"type", "title", "status", "detail"} <= set(problem)


async def test_only_listed_callers_are_let_in_where_there_is_a_list(database: str) -> None:
    """A known key is not enough when the callers are named."""
    async with running(settings_for(database, callers=frozenset({"order"}))) as tc:
        assert (await tc.get("/v1/statistics"))[0] == 200
        status, problem = await tc.named("capacity").get("/v1/statistics")
        assert status == 401
        assert "capacity is not among" in problem["detail"]


async def test_the_probes_need_no_token(tc: Caller) -> None:
    """Whoever watches the process can ask whether it lives and is ready."""
    async with aiohttp.ClientSession() as http:
        for path, status in (("/health", "live"), ("/ready", "ready")):
            async with http.get(tc.url + path) as response:
                assert response.status == 200
                assert await response.json() == {"status": status}


DEEP = b"[" * 100_000
ENDLESS_WAIT = (
    b'{"holder":"01a21243-c25a-7c0c-bc3f-33dc6cd4eb76","holder_deadline_ms":null,"waiter":null,'
    b'"waiter_deadline_ms":null,"resource":"a","wait_ms":1%s}' % (b"0" * 400)
)
UNREADABLE = [
    ("/v1/messages", b"{}", "array"),
    ("/v1/messages", b"[{", "truncated"),
    ("/v1/messages", b'[{"type":"shout"}]', "shout"),
    ("/v1/messages", b'[{"type":"begin","xid":"7"}]', "UUID"),
    ("/v1/wait", b"[]", "object"),
    ("/v1/resources", b'{"resource": 7}', "str"),
    ("/v1/messages", b'[{"type":"begin","more":' + DEEP, "recursion"),
    ("/v1/wait", b'{"more":' + DEEP, "recursion"),
    ("/v1/resources", b'{"more":' + DEEP, "recursion"),
    ("/v1/wait", ENDLESS_WAIT, "wait_ms"),
]


async def test_a_body_that_cannot_be_read_is_a_problem_that_says_where(tc: Caller) -> None:
    """A bad body is answered 400 with what is wrong in it."""
    for path, body, says in UNREADABLE:
        async with tc.http.post(tc.url + path, data=body, headers=tc.headers) as response:
            assert response.status == 400
            assert says in (await response.json(content_type=None))["detail"]


async def test_too_many_messages_are_refused_with_the_limit(tc: Caller) -> None:
    """The answer names the number that is taken."""
    one = b'{"type":"begin","xid":"%s","name":"b","deadline_ms":1}' % str(new_xid()).encode()
    body = b"[" + b",".join([one] * (MESSAGES_MAX + 1)) + b"]"
    async with tc.http.post(f"{tc.url}/v1/messages", data=body, headers=tc.headers) as response:
        assert response.status == 413
        assert str(MESSAGES_MAX) in (await response.json(content_type=None))["detail"]


async def test_a_body_without_end_is_refused_at_the_limit(database: str) -> None:
    """What is longer than the limit is a 413 problem, with and without a length said before."""
    limits = replace(QUICK, body_bytes_max=1000)

    async def drip() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b" " * 100

    async with running(settings_for(database, limits)) as tc:
        for body in (b" " * 2000, drip()):
            async with tc.http.post(f"{tc.url}/v1/messages", data=body, headers=tc.headers) as response:
                assert response.status == 413
                assert "1000 bytes" in (await response.json(content_type=None))["detail"]


async def test_messages_are_posted_and_nothing_else(tc: Caller) -> None:
    """Another method is a 405 problem that names the one to use."""
    async with tc.http.get(f"{tc.url}/v1/messages", headers=tc.headers) as response:
        assert (response.status, response.headers["Allow"]) == (405, "POST")
        assert (await response.json(content_type=None))["code"] == "method-not-allowed"


BAD_FILTERS = [
    ({"limit": "0"}, "send 1 to 200"),
    ({"limit": "201"}, "send 1 to 200"),
    ({"decision": "maybe"}, "UNDECIDED, COMMITTED, ROLLED_BACK"),
    ({"decision": "9" * 5000}, "UNDECIDED, COMMITTED, ROLLED_BACK"),
    ({"settlement": "9"}, "OPEN, SETTLING, SETTLED, QUARANTINED"),
    ({"cursor": "x"}, "no UUID"),
    ({"name": "a\x00"}, "unprintable"),
]


async def test_a_bad_filter_is_answered_with_the_good_ones(tc: Caller) -> None:
    """400 names the value and what can be sent."""
    for query, says in BAD_FILTERS:
        status, problem = await tc.get("/v1/transactions", **query)
        assert status == 400
        assert says in problem["detail"]


async def test_what_is_not_there_is_a_problem_too(tc: Caller) -> None:
    """404 says why it may be so."""
    assert (await tc.get(f"/v1/transactions/{new_xid()}"))[0] == 404
    assert (await tc.get("/v1/transactions/nonsense"))[0] == 400
    assert (await tc.get("/v1/nowhere"))[1]["status"] == 404
