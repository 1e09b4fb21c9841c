"""Orders that nobody pays."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest

from services.kit.clock import Clock
from services.kit.problems import Problem
from services.kit.runtime import Runtime
from services.order.config import EXPIRE_ACTOR, SPEC
from services.order.use_cases import Actor, Booking, Desk, Expiry
from tests.integration.services.order.market import Market, at_once, running_market
from tests.support.servers import TestPostgres
from tests.support.system import eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")


def later(minutes: int) -> Clock:
    """A clock that is `minutes` ahead."""
    return lambda: datetime.now(UTC) + timedelta(minutes=minutes)


@asynccontextmanager
async def desk_at(market: Market, clock: Clock) -> AsyncIterator[Desk]:
    """The order service's inside, at another time."""
    runtime = Runtime(SPEC, market.system.settings["order"], clock=clock, processing=True)
    await runtime.start()
    try:
        yield Desk(runtime)
    finally:
        await runtime.stop()


async def test_an_unpaid_order_is_ended_by_its_message(
    postgres: TestPostgres, valkey: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The message comes when the window is over, and gives back nights and pets; the inbox shows that it was it."""
    async with running_market(postgres, valkey, tmp_path_factory.mktemp("order"), pay_window_s=1) as market:
        listing, owner = await market.listing(1), await market.owner()
        async with market.system.worker("order"):
            order_id = await market.booked(owner, listing)

            async def expired() -> bool:
                return await market.status(order_id) == (6, 6)

            await eventually(expired)
        await market.audit()
        assert await market.nights(listing) == [(0, 0), (0, 0)]
        assert await market.claims(order_id) == 0
        taken = await market.system.fetch_all("order", "SELECT consumer FROM inbox")
        assert [row["consumer"] for row in taken] == [EXPIRE_ACTOR]


async def test_the_sweeper_ends_what_its_message_forgot(market: Market) -> None:
    """Only orders past their window; a second sweep finds nothing."""
    listing, owner = await market.listing(2), await market.owner()
    overdue = await market.booked(owner, listing)
    async with desk_at(market, later(1)) as desk:
        assert await Expiry(desk).sweep() == 0
    assert await market.status(overdue) == (0, 0)
    async with desk_at(market, later(16)) as desk:
        assert await Expiry(desk).sweep() >= 1  # other tests may have left unpaid orders too
        assert await Expiry(desk).sweep() == 0
    assert await market.status(overdue) == (6, 6)
    await market.audit()
    assert await market.nights(listing) == [(0, 0), (0, 0)]
    events = (await owner.api.get(f"/api/orders/{overdue}/events")).body["items"]
    assert [event["actor_role"] for event in events] == ["owner", "system"]


async def test_a_payment_after_expiry_is_refused_and_revives_nothing(market: Market) -> None:
    """409, no money moved, and the place is somebody else's."""
    listing, owner, next_owner = await market.listing(1), await market.owner(cents=50_000), await market.owner()
    order_id = await market.booked(owner, listing)
    async with desk_at(market, later(16)) as desk:
        assert await Expiry(desk).expire(UUID(order_id))
    refused = await market.step(owner, order_id, "pay")
    assert (refused.status, refused.body["code"]) == (409, "illegal-transition")
    assert await market.balance(owner) == 50_000
    assert (await market.book(next_owner, listing)).status == 201
    await market.audit()


async def test_a_payment_past_the_window_is_refused_before_anybody_has_expired_the_order(market: Market) -> None:
    """The clock decides, not the sweeper."""
    listing, owner = await market.listing(1), await market.owner(cents=50_000)
    order_id = await market.booked(owner, listing)
    async with desk_at(market, later(16)) as desk:
        with pytest.raises(Problem) as refused:
            await Booking(desk).pay(Actor(owner.id), UUID(order_id), str(uuid4()))
    assert refused.value.code == "pay-window-over"
    assert await market.balance(owner) == 50_000
    assert await market.status(order_id) == (0, 0)


async def test_a_message_that_comes_twice_or_too_early_does_nothing(market: Market) -> None:
    """Early: the order still waits for its payment. Twice: the second finds it ended. Paid: it stays paid."""
    listing, owner = await market.listing(2), await market.owner(pets=1)
    order_id, message = UUID(await market.booked(owner, listing)), uuid4()
    async with desk_at(market, later(0)) as desk:
        assert not await Expiry(desk).expire(order_id, message)
    async with desk_at(market, later(16)) as desk:
        assert await Expiry(desk).expire(order_id, message)
        assert not await Expiry(desk).expire(order_id, message)
        assert not await Expiry(desk).expire(order_id)
        assert not await Expiry(desk).expire(market.system.new_id())
    paid = await market.booked(owner, listing)
    await market.done(owner, paid, "pay")
    async with desk_at(market, later(16)) as desk:
        assert not await Expiry(desk).expire(UUID(paid))
    assert await market.status(paid) == (1, 1)
    await market.audit()


async def test_payment_and_expiry_at_the_same_moment_have_one_winner(market: Market) -> None:
    """Either it is paid and the nights are booked, or it has expired and no money moved: never both, never neither."""
    for _ in range(3):
        listing, owner = await market.listing(1), await market.owner(cents=50_000)
        order_id = await market.booked(owner, listing)
        async with desk_at(market, later(16)) as desk:
            answer, expired = await at_once(market.step(owner, order_id, "pay"), Expiry(desk).expire(UUID(order_id)))
        await market.audit()
        if expired:
            assert answer.status == 409
            assert (await market.status(order_id), await market.balance(owner)) == ((6, 6), 50_000)
            assert await market.nights(listing) == [(0, 0), (0, 0)]
        else:
            assert answer.status == 200
            assert (await market.status(order_id), await market.balance(owner)) == ((1, 1), 30_000)
            assert await market.nights(listing) == [(0, 1), (0, 1)]
