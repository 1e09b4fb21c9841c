"""The stories: what a person does, again with the same Idempotency-Key until there is an answer that counts."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

import aiohttp

from deploy.demo.world import LATER_CODES, LATER_STATUSES
from tests.faults.crash.cell import Cell
from tests.integration.services.order.market import NIGHT_CENTS, Listing, Person
from tests.support.system import Answer

ANSWER_WITHIN_S = 45.0
RETRY_PAUSE_S = 0.1
RETRY_PAUSE_MAX_S = 0.5
CALL_TIMEOUT_S = 8.0
PLACES = 1
NIGHTS = 2
WALLET_CENTS = 100_000
TOTAL_CENTS = NIGHTS * NIGHT_CENTS

OWNERS_SHARD = "order@shard-0"

PENDING, PAID, EXPIRED, REFUNDED = 0, 1, 6, 9


@dataclass
class Scene:
    """The people of one story, and what has been acknowledged to them: orders by id, each with its last status."""

    cell: Cell
    owner: Person
    listing: Listing
    acknowledged: dict[UUID, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    shall_be: dict[str, int] = field(default_factory=dict)

    async def insist(self, path: str, body: Any, *, key: str | None = None) -> Answer | None:
        """Asks with one key until there is an answer that counts; None, and a problem, when none comes in time."""
        key = key or str(uuid4())
        loop = asyncio.get_running_loop()
        until = loop.time() + ANSWER_WITHIN_S
        last, pause_s = "nothing", RETRY_PAUSE_S
        while loop.time() < until:
            try:
                async with asyncio.timeout(CALL_TIMEOUT_S):
                    answer = await self.owner.api.post(path, body, key=key)
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                last = f"{type(error).__name__}: {error}"
            else:
                code = answer.body.get("code") if isinstance(answer.body, dict) else None
                if answer.status not in LATER_STATUSES and answer.status != 500 and code not in LATER_CODES:
                    return answer
                last = str(answer.body)
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 1.5, RETRY_PAUSE_MAX_S)
        self.problems.append(f"{path} had no answer for {ANSWER_WITHIN_S:g} s, the last was {last}")
        return None

    async def done(self, path: str, body: Any, status: int) -> None:
        """A step that must succeed, and whose answer is the same when it is asked for once more."""
        key = str(uuid4())
        answer = await self.insist(path, body, key=key)
        if answer is None:
            return
        if answer.status not in (200, 201):
            self.problems.append(f"{path} was refused: {answer.body}")
            return
        self.acknowledged[UUID(answer.body["order_id"])] = status
        again = await self.insist(path, body, key=key)
        if again is not None and (again.status, again.body) != (answer.status, answer.body):
            self.problems.append(f"{path} was answered {answer.body}, and with the same key {again.body}")

    @property
    def order_id(self) -> UUID:
        """The order of a story that has one."""
        return next(iter(self.acknowledged))


@dataclass(frozen=True)
class Story:
    """`prepare` is done in peace; then the fault is armed, and `tell` must come to its end all the same.

    `ends` has how many orders there are then in which status, and `held`: the worker takes no message until `tell`
    begins, and in `swept` until it is over.
    """

    prepare: Callable[[Scene], Awaitable[None]]
    tell: Callable[[Scene], Awaitable[None]]
    ends: dict[int, int]
    held: bool = False
    swept: bool = False


async def _nothing(scene: Scene) -> None:
    pass


async def _book(scene: Scene) -> None:
    await scene.done("/api/orders", scene.cell.market.quote(scene.owner, scene.listing, begins_in_days=9), PENDING)


async def _pay(scene: Scene) -> None:
    await scene.done(f"/api/orders/{scene.order_id}/pay", {}, PAID)


async def _cancel(scene: Scene) -> None:
    await scene.done(f"/api/orders/{scene.order_id}/cancel", {"reason": "计划有变"}, REFUNDED)


async def _book_and_pay(scene: Scene) -> None:
    await _book(scene)
    await _pay(scene)


async def _be_refused(scene: Scene) -> None:
    """The pet sleeps elsewhere on these nights: the booking has taken nights and written an order before it fails."""
    market = scene.cell.market
    other = await market.listing(PLACES, shard="shard-1")
    scene.shall_be["other listing"] = 0
    answer = await scene.insist("/api/orders", market.quote(scene.owner, other, begins_in_days=9))
    if answer is not None and (answer.status, answer.body.get("code")) != (409, "pet-already-booked"):
        scene.problems.append(f"a pet that sleeps elsewhere was answered {answer.status}: {answer.body}")


async def _see_it_expire(scene: Scene) -> None:
    loop = asyncio.get_running_loop()
    until = loop.time() + ANSWER_WITHIN_S
    while loop.time() < until:
        # Everybody sees what is not decided yet: it counts when nothing is locked and it is still so.
        if await _status(scene) == EXPIRED and not await _is_locked(scene) and await _status(scene) == EXPIRED:
            scene.acknowledged[scene.order_id] = EXPIRED
            return
        await asyncio.sleep(RETRY_PAUSE_S)
    scene.problems.append(
        f"the order did not expire within {ANSWER_WITHIN_S:g} s: its status is {await _status(scene)}"
    )


async def _status(scene: Scene) -> int | None:
    query = "SELECT status FROM orders WHERE id = $1"
    rows = await scene.cell.eyes.rows(OWNERS_SHARD, query, scene.order_id)
    return rows[0]["status"] if rows else None


async def _is_locked(scene: Scene) -> bool:
    return bool((await scene.cell.eyes.rows(OWNERS_SHARD, "SELECT count(*) AS n FROM at.locks(NULL)"))[0]["n"])


STORIES = {
    "book": Story(_nothing, _book, {PENDING: 1}),
    "pay": Story(_book, _pay, {PAID: 1}),
    "cancel": Story(_book_and_pay, _cancel, {REFUNDED: 1}),
    "refused": Story(_book, _be_refused, {PENDING: 1}),
    "expire": Story(_book, _see_it_expire, {EXPIRED: 1}, held=True),
    "sweep": Story(_book, _see_it_expire, {EXPIRED: 1}, held=True, swept=True),
}
"""`refused` is a booking that fails in its last branch; `sweep` an expiry whose message does not come."""

EXPIRING = frozenset({"expire", "sweep"})


async def scene_of(cell: Cell) -> Scene:
    """New people: the owner's rows lie on one shard, the provider's on the other."""
    listing = await cell.market.listing(PLACES, shard="shard-1")
    owner = await cell.market.owner(cents=WALLET_CENTS, shard="shard-0")
    return Scene(cell, owner, listing)
