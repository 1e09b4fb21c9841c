"""A transaction that travels by HTTP: aiohttp on one side, Litestar on the other, nudges in between."""

# ruff: noqa: PT012 - what a block does when it is left by an error is what is tested here

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
import structlog
import uvicorn
from litestar import Litestar, Request, Response, get, post
from litestar.background_tasks import BackgroundTask

from coordinator.client import (
    CallFailed,
    CallNotSent,
    CallOutcomeUnknown,
    Coordinator,
    DeadlinePassed,
    NoGlobalTransaction,
    Resource,
    TransactionRolledBack,
    current,
)
from coordinator.client.contrib.http import TransactionalClient
from coordinator.client.contrib.litestar import NUDGE_PATH, TransactionMiddleware, nudge_route
from coordinator.protocol.ids import uuid7
from tests.integration.coordinator.client.proxies import Fate, http_proxy
from tests.integration.coordinator.client.world import Bank, TcProcess, add_east, add_west, open_bank, until
from tests.support.servers import TestPostgres, free_port


class QuietServer(uvicorn.Server):
    """A uvicorn that lives in the test's loop and leaves signals alone."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Captures none."""
        yield


@contextlib.asynccontextmanager
async def served(app: Any) -> AsyncIterator[str]:
    """Serves an ASGI application; yields its URL."""
    port = free_port()
    server = QuietServer(uvicorn.Config(app, host="127.0.0.1", port=port, log_config=None, timeout_graceful_shutdown=1))
    task = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
        await asyncio.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        await task


@dataclass
class Shop:
    """A service with its own database (west), called by the bank (east)."""

    bank: Bank
    url: str
    resource: Resource[Any]
    client: TransactionalClient
    http: aiohttp.ClientSession
    nudged: list[str] = field(default_factory=list)


def shop_app(coordinator: Coordinator, west: Resource[Any], nudged: list[str]) -> Litestar:
    """Routes that add to a balance and then end in every way there is."""

    @post("/add/{amount:int}")
    async def add(amount: int, ends: str = "well") -> Response[dict[str, Any]]:
        balance = await coordinator.run_branch(west, add_west(amount), result_type=int)
        if ends == "badly":
            raise RuntimeError("after the branch")
        if ends == "slowly":
            await asyncio.sleep(1.0)
        if ends == "doomed":
            async with coordinator.global_transaction("inner") as tx:
                tx.mark_rollback_only("no thanks")
        xid = structlog.contextvars.get_contextvars().get("xid")
        return Response({"balance": balance, "xid": xid}, status_code=201)

    async def late() -> None:
        try:
            await coordinator.run_branch(west, add_west(10))
        except NoGlobalTransaction as error:
            nudged.append(str(error))

    @post("/after/{running:int}")
    async def after(running: int) -> Response[None]:
        if not running:
            return Response(None, background=BackgroundTask(late))

        async def slowly(connection: Any) -> None:
            await asyncio.sleep(0.3)
            await add_west(10)(connection)

        tasks.append(asyncio.create_task(coordinator.run_branch(west, slowly)))
        await asyncio.sleep(0.1)
        return Response(None)

    tasks: list[asyncio.Task[Any]] = []

    @get("/whoami")
    async def whoami() -> dict[str, bool]:
        return {"inside": current() is not None}

    @post("/plain-refusal", status_code=409)
    async def refusal() -> dict[str, str]:
        return {"detail": "sold out"}

    async def count(request: Request[Any, Any, Any]) -> None:
        if request.url.path == NUDGE_PATH:
            nudged.append(request.url.path)

    return Litestar(
        [add, after, whoami, refusal, nudge_route(coordinator)],
        middleware=[TransactionMiddleware(coordinator)],
        before_request=count,
        openapi_config=None,
        logging_config=None,
    )


@pytest.fixture
async def shop(postgres: TestPostgres, tc: TcProcess) -> AsyncIterator[Shop]:
    """The bank calls the shop through a client that signs as the bank."""
    async with open_bank(postgres, tc) as bank, aiohttp.ClientSession() as http:
        nudged: list[str] = []
        inner: list[Any] = [_lifespan_only]

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await inner[0](scope, receive, send)

        async with served(app) as url:
            coordinator = Coordinator([tc.url], tc.tokens("shop"), tc.verifier("shop"), nudge_url=url + NUDGE_PATH)
            west = coordinator.resource(bank.west.name, bank.pool)
            async with coordinator:
                inner[0] = shop_app(coordinator, west, nudged)
                client = TransactionalClient(http, base_url=url, tokens=tc.tokens("bank"), audience="shop")
                yield Shop(bank, url, west, client, http, nudged)


async def _lifespan_only(scope: Any, receive: Any, send: Any) -> None:
    while scope["type"] == "lifespan":
        message = await receive()
        await send({"type": message["type"] + ".complete"})
        if message["type"] == "lifespan.shutdown":
            return


async def balances(shop: Shop) -> tuple[int, int]:
    return await shop.bank.balance(shop.bank.east_dsn), await shop.bank.balance(shop.bank.west_dsn)


async def book(shop: Shop, query: str = "", **how: Any) -> Any:
    """The bank takes 10 in the east and calls the shop, which adds 10 in the west, as one transaction."""
    async with shop.bank.coordinator.global_transaction("book") as tx:
        await shop.bank.coordinator.run_branch(shop.bank.east, add_east(-10))
        response = await shop.client.request("POST", f"/add/10{query}", **how)
        assert len(tx.branches) == 2
        return response.json()


async def test_a_called_service_takes_part_and_the_commit_covers_it(shop: Shop) -> None:
    """The answer names its branch, the caller's decision names it too, and logs there carry the xid."""
    answer = await book(shop)
    assert answer["balance"] == 110
    assert answer["xid"]
    assert await balances(shop) == (90, 110)
    await shop.bank.quiet()


async def test_a_failure_after_the_call_undoes_the_service_before_the_caller_hears(shop: Shop) -> None:
    """The rollback nudges the service; it is done when the exception leaves the block."""
    await book(shop)  # the resource is announced by now
    with pytest.raises(ZeroDivisionError):
        async with shop.bank.coordinator.global_transaction("book"):
            await shop.client.request("POST", "/add/10")
            raise ZeroDivisionError
    assert await balances(shop) == (90, 110)
    assert shop.nudged
    await shop.bank.quiet()


async def test_an_error_after_the_work_dooms_the_transaction_even_if_it_is_caught(shop: Shop) -> None:
    """An error answer that names branches has half done something."""
    with pytest.raises(TransactionRolledBack, match="some of its work"):
        async with shop.bank.coordinator.global_transaction("book") as tx:
            with pytest.raises(CallFailed) as caught:
                await shop.client.request("POST", "/add/10?ends=badly")
            assert caught.value.status == 500
            assert len(tx.branches) == 1
    await shop.bank.quiet()
    assert await balances(shop) == (100, 100)


async def test_a_refusal_without_work_may_be_caught(shop: Shop) -> None:
    """409 with nothing done leaves the transaction free to go on."""
    async with shop.bank.coordinator.global_transaction("book"):
        await shop.bank.coordinator.run_branch(shop.bank.east, add_east(-10))
        with pytest.raises(CallFailed, match="sold out"):
            await shop.client.request("POST", "/plain-refusal")
    assert await balances(shop) == (90, 100)


async def test_a_service_can_ask_for_the_rollback_in_an_answer_that_is_no_error(shop: Shop) -> None:
    """Its rollback-only mark travels back."""
    with pytest.raises(TransactionRolledBack, match="no thanks"):
        await book(shop, "?ends=doomed")
    await shop.bank.quiet()
    assert await balances(shop) == (100, 100)


@pytest.mark.parametrize("fate", [Fate.LOSE_ANSWER, Fate.LOSE_REQUEST])
async def test_a_call_that_is_cut_can_only_end_in_a_rollback(shop: Shop, fate: Fate) -> None:
    """CallOutcomeUnknown; whether the service did its work or not, nothing is left of it."""
    async with http_proxy(shop.url) as proxy:
        proxy.fate = lambda path, body: fate
        client = TransactionalClient(shop.http, base_url=proxy.url, tokens=shop.bank.tc.tokens(), audience="shop")
        with pytest.raises(TransactionRolledBack, match="without an answer"):
            async with shop.bank.coordinator.global_transaction("book", timeout_s=2):
                await shop.bank.coordinator.run_branch(shop.bank.east, add_east(-10))
                with pytest.raises(CallOutcomeUnknown):
                    await client.request("POST", "/add/10")
    await shop.bank.quiet()
    assert await balances(shop) == (100, 100)


async def test_a_call_repeated_after_a_lost_answer_takes_effect_once(shop: Shop) -> None:
    """The same call id meets its own branch, and the kept answer comes back."""
    lost: list[str] = []

    def lose_the_first(path: str, body: bytes) -> Fate:
        lost.append(path)
        return Fate.LOSE_ANSWER if len(lost) == 1 else Fate.PASS

    async with forwarding_proxy(shop, lose_the_first) as client:
        shop.client = client
        answer = await book(shop, repeats=1)
    assert answer["balance"] == 110
    assert len(lost) == 2
    assert await balances(shop) == (90, 110)
    await shop.bank.quiet()


async def test_a_call_delivered_twice_takes_effect_once(shop: Shop) -> None:
    """A network that doubles requests does no harm."""
    async with forwarding_proxy(shop, lambda path, body: Fate.TWICE) as client:
        shop.client = client
        await book(shop)
    assert await balances(shop) == (90, 110)
    await shop.bank.quiet()


async def test_a_call_takes_no_longer_than_it_was_given(shop: Shop) -> None:
    """A slow service is an unknown outcome, and the rollback finds its branch."""
    with pytest.raises(CallOutcomeUnknown):
        await book(shop, "?ends=slowly", timeout_s=0.3)
    await shop.bank.quiet()
    assert await balances(shop) == (100, 100)


async def test_a_call_to_nobody_was_not_sent_and_leaves_the_transaction_alone(shop: Shop) -> None:
    """No connection, no work: the transaction may still commit."""
    client = TransactionalClient(shop.http, base_url=f"http://127.0.0.1:{free_port()}")
    async with shop.bank.coordinator.global_transaction("book"):
        await shop.bank.coordinator.run_branch(shop.bank.east, add_east(-10))
        with pytest.raises(CallNotSent):
            await client.request("POST", "/add/10", timeout_s=0.3)
    assert await balances(shop) == (90, 100)


async def test_no_call_is_sent_after_the_deadline(shop: Shop) -> None:
    """DeadlinePassed comes from the client itself."""
    with pytest.raises(DeadlinePassed):
        async with shop.bank.coordinator.global_transaction("book", timeout_s=0.1):
            await asyncio.sleep(0.2)
            await shop.client.request("POST", "/add/10")


async def test_outside_a_transaction_it_is_a_plain_client(shop: Shop) -> None:
    """No headers, no context on the other side."""
    response = await shop.client.request("GET", "/whoami")
    assert response.json(dict[str, bool]) == {"inside": False}
    async with shop.bank.coordinator.global_transaction("ask"):
        response = await shop.client.request("GET", "/whoami")
    assert response.json() == {"inside": True}


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"Authorization": "Bearer nonsense"}, 401),
        ({"Authorization": ""}, 401),
        ({"X-Tx-Branch": "seven"}, 400),
        ({"X-Tx-Deadline": "tomorrow"}, 400),
        ({"X-Tx-Deadline": "9" * 18}, 400),
        ({"X-Tx-Deadline": "1000"}, 409),
    ],
)
async def test_transaction_headers_are_taken_only_whole_in_time_and_from_known_callers(
    shop: Shop, change: dict[str, str], status: int
) -> None:
    """Everything else is a problem that says what is wrong, and runs no handler."""
    now_ms = int(time.time() * 1000)
    headers = {
        "Authorization": f"Bearer {shop.bank.tc.tokens('bank').token_for('shop')}",
        "X-Tx-Xid": str(uuid7(now_ms)),
        "X-Tx-Branch": str(uuid7(now_ms)),
        "X-Tx-Deadline": str(now_ms + 5000),
        **change,
    }
    async with shop.http.post(f"{shop.url}/add/10", headers=headers) as response:
        assert response.status == status
        assert response.content_type == "application/problem+json"
        assert (await response.json(content_type=None))["status"] == status
    assert await balances(shop) == (100, 100)


@pytest.mark.parametrize(
    ("owner", "body", "status"),
    [
        ("coordinator", b'{"resource":"mars","settle":[]}', 404),
        ("coordinator", b"{}", 400),
        ("bank", b'{"resource":"mars","settle":[]}', 403),
        ("stranger", b'{"resource":"mars","settle":[]}', 401),
    ],
)
async def test_only_the_coordinator_may_nudge(shop: Shop, owner: str, body: bytes, status: int) -> None:
    """Other services, strangers and malformed nudges are turned away."""
    headers = {"Authorization": f"Bearer {shop.bank.tc.tokens(owner).token_for('shop')}"}
    async with shop.http.post(shop.url + NUDGE_PATH, data=body, headers=headers) as response:
        assert response.status == status


@contextlib.asynccontextmanager
async def forwarding_proxy(shop: Shop, fate: Callable[[str, bytes], Fate]) -> AsyncIterator[TransactionalClient]:
    """A client whose way to the shop is the proxy's to spoil."""
    async with http_proxy(shop.url) as proxy:
        proxy.fate = fate
        yield TransactionalClient(shop.http, base_url=proxy.url, tokens=shop.bank.tc.tokens(), audience="shop")


async def test_no_branch_is_made_after_the_answer_that_names_them(shop: Shop) -> None:
    """What runs after the answer is refused a branch: it would be undone as one that nobody named."""
    async with shop.bank.coordinator.global_transaction("book") as tx:
        await shop.client.request("POST", "/after/0")
        while not shop.nudged:  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.01)
        assert tx.branches == ()
    assert "are named already" in shop.nudged[0]
    await shop.bank.quiet()
    assert await balances(shop) == (100, 100)


async def test_a_branch_that_still_runs_at_the_answer_dooms_the_transaction(shop: Shop) -> None:
    """The caller cannot name it, so it must not commit."""
    with pytest.raises(TransactionRolledBack, match="still running"):
        async with shop.bank.coordinator.global_transaction("book"):
            await shop.bank.coordinator.run_branch(shop.bank.east, add_east(-10))
            await shop.client.request("POST", "/after/1")

    async def undone() -> bool:
        return bool(await shop.bank._read(shop.bank.west_dsn, "SELECT FROM at.branch WHERE state = 2"))

    await until(undone, "the late branch was not undone")
    await shop.bank.quiet()
    assert await balances(shop) == (100, 100)
