"""Limits, failing services, and what is tried again."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import aiohttp
import pytest

from gateway.routes import ROUTES, STANDARD, Limits, Route, RouteTable
from tests.support.servers import free_port


def _orders(**limits: Any) -> RouteTable:
    changed: Limits = replace(STANDARD, **limits)
    return RouteTable((Route("/api/orders", "order", changed),))


async def _problem(answer: aiohttp.ClientResponse, status: int, code: str) -> dict[str, Any]:
    assert answer.status == status
    assert answer.content_type == "application/problem+json"
    body: dict[str, Any] = await answer.json()
    assert body["type"] == f"urn:pawstay:problem:{code}"
    assert (body["status"], body["code"]) == (status, code)
    assert body["detail"] and body["title"]
    assert body["request_id"] == answer.headers["X-Request-Id"]
    return body


async def test_a_body_over_the_limit_is_refused_before_the_service_sees_it(gateway: Any, upstream: Any) -> None:
    """413 as a problem, declared or chunked; a body of exactly the limit passes."""
    one = await upstream()
    door = await gateway({"order": [one.address]}, _orders(body_max_bytes=1000))

    async def chunks() -> Any:
        for _ in range(3):
            yield b"x" * 500

    for body in (b"x" * 1001, chunks()):
        async with door.http.post(f"{door.url}/api/orders", data=body) as answer:
            await _problem(answer, 413, "body-too-large")
    assert one.seen == []
    async with door.http.post(f"{door.url}/api/orders", data=b"x" * 1000) as answer:
        assert answer.status == 200


async def test_too_many_requests_from_one_address_are_told_to_wait(gateway: Any, upstream: Any) -> None:
    """Beyond rate and burst: 429 as a problem with Retry-After, and the service is spared."""
    one = await upstream()
    door = await gateway({"order": [one.address]}, _orders(rate_per_s=1, burst=2))
    answers = [await door.http.get(f"{door.url}/api/orders") for _ in range(8)]
    assert [a.status for a in answers[:3]] == [200, 200, 200]
    refused = [a for a in answers if a.status != 200]
    assert refused
    for answer in refused:
        await _problem(answer, 429, "too-many-requests")
        assert int(answer.headers["Retry-After"]) >= 1
    assert len(one.seen) == len(answers) - len(refused)


async def test_too_many_requests_at_once_are_refused(gateway: Any, upstream: Any, until: Any) -> None:
    """A client that keeps `connections_max` requests open gets 429 for one more."""
    one = await upstream("silent")
    door = await gateway({"order": [one.address]}, _orders(connections_max=2))
    open_ones = [asyncio.create_task(door.http.get(f"{door.url}/api/orders")) for _ in range(2)]
    try:
        await until(lambda: len(one.seen) == 2)
        async with door.http.get(f"{door.url}/api/orders") as answer:
            await _problem(answer, 429, "too-many-requests")
    finally:
        for task in open_ones:
            task.cancel()
        await asyncio.gather(*open_ones, return_exceptions=True)


async def test_a_service_that_is_down_is_a_502_problem(gateway: Any) -> None:
    """Nobody listens: 502, with what to do about a booking whose end is unknown."""
    door = await gateway({"order": [f"127.0.0.1:{free_port()}"]})
    async with door.http.post(f"{door.url}/api/orders", data=b"{}") as answer:
        body = await _problem(answer, 502, "service-unreachable")
        assert "Idempotency-Key" in body["detail"]


async def test_a_silent_service_is_a_504_problem(gateway: Any, upstream: Any) -> None:
    """Silence beyond the class's limit: 504, and the POST was sent once."""
    one, other = await upstream("silent"), await upstream("silent")
    door = await gateway({"order": [one.address, other.address]}, _orders(read_timeout_s=1))
    async with door.http.post(f"{door.url}/api/orders", data=b"{}") as answer:
        await _problem(answer, 504, "service-timeout")
    assert len(one.seen) + len(other.seen) == 1


@pytest.mark.parametrize("method", ["POST", "PATCH"])
async def test_a_write_that_may_have_arrived_is_never_sent_twice(gateway: Any, upstream: Any, method: str) -> None:
    """Both servers read the request and break off: exactly one of them saw it, on a fresh and on a kept connection."""
    one, other = await upstream(), await upstream()
    door = await gateway({"order": [one.address, other.address]})
    for _ in range(4):  # leaves a kept connection to each
        async with door.http.get(f"{door.url}/api/orders") as answer:
            assert answer.status == 200
    for count in (1, 2):
        one.behaviour = other.behaviour = "die"
        async with door.http.request(method, f"{door.url}/api/orders", data=b"{}") as answer:
            await _problem(answer, 502, "service-unreachable")
        assert len([s for s in one.seen + other.seen if s.method == method]) == count


async def test_a_read_goes_to_the_other_server_when_one_breaks_off(gateway: Any, upstream: Any) -> None:
    """GET through a dying server succeeds at the other one, unnoticed by the client."""
    dying, healthy = await upstream("die"), await upstream()
    door = await gateway({"order": [dying.address, healthy.address]})
    for _ in range(4):
        async with door.http.get(f"{door.url}/api/orders/1") as answer:
            assert answer.status == 200
    assert len(dying.seen) >= 1
    assert len(healthy.seen) == 4


async def test_a_write_goes_to_the_other_server_when_one_is_not_there(gateway: Any, upstream: Any) -> None:
    """A POST whose connection was refused was surely not sent: it goes to the other server, unnoticed."""
    healthy = await upstream()
    door = await gateway({"order": [f"127.0.0.1:{free_port()}", healthy.address]})
    for _ in range(4):
        async with door.http.post(f"{door.url}/api/orders", data=b"{}") as answer:
            assert answer.status == 200
    assert len(healthy.seen) == 4


async def test_connections_to_a_service_are_kept(gateway: Any, upstream: Any) -> None:
    """Twenty requests one after the other need one connection to the service."""
    one = await upstream()
    door = await gateway({"order": [one.address]})
    for _ in range(20):
        async with door.http.get(f"{door.url}/api/orders") as answer:
            assert answer.status == 200
    assert one.connections == 1


async def test_several_servers_share_the_work(gateway: Any, upstream: Any) -> None:
    """All servers of a service are in use, none waits as a spare."""
    servers = [await upstream() for _ in range(3)]
    door = await gateway({"order": [one.address for one in servers]})
    for _ in range(12):
        async with door.http.get(f"{door.url}/api/orders") as answer:
            assert answer.status == 200
    assert all(one.seen for one in servers)


async def test_a_stream_arrives_piece_by_piece(gateway: Any, stack: Any) -> None:
    """On a streamed route the first event arrives while the service still holds the answer open."""
    release = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\ndata: 1\n\n")
        await writer.drain()
        await release.wait()
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    stack.callback(server.close)
    stack.callback(release.set)
    door = await gateway({"notification": [f"127.0.0.1:{server.sockets[0].getsockname()[1]}"]})
    headers = {"Accept-Encoding": "gzip"}
    for path in ("/api/notifications/stream", "/api/notifications/stream/"):
        async with asyncio.timeout(10), door.http.get(door.url + path, headers=headers) as answer:
            assert await answer.content.readany() == b"data: 1\n\n"


async def test_every_class_of_the_real_table_lets_a_crowd_of_fifty_through(gateway: Any, upstream: Any) -> None:
    """Fifty people behind one address who book, or log in, at the same moment are not mistaken for an attack."""
    one = await upstream()
    door = await gateway({service: [one.address] for service in ROUTES.services})
    for path in ("/api/orders", "/api/users", "/api/users/login"):
        answers = await asyncio.gather(*(door.http.post(door.url + path, data=b"{}") for _ in range(50)))
        assert {answer.status for answer in answers} == {200}, path
