"""The way to the coordinator: what travels together, what does not wait for what, and what is tried again.

The coordinator here is a script on a real socket: the real one answers too fast to see what queues behind what.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from random import Random
from typing import Any
from uuid import UUID

import pytest
from aiohttp import web

from coordinator.client.transport import HINT_AGE_S, HINT_LINGER_S, HINTS_MAX, Transport
from coordinator.protocol.errors import CallerRefused, CoordinatorError, CoordinatorUnavailable, OutcomeUnknown
from coordinator.protocol.messages import Ask, Begin, BranchRef, Decide, Register, Wait
from coordinator.protocol.statuses import Decision
from tests.support.servers import free_port


class Scripted:
    """A coordinator that answers every list with commits, or as its script says."""

    def __init__(self) -> None:
        self.url = ""
        self.lists: list[list[Any]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.script: Callable[[str, Any], web.Response | None] = lambda path, body: None

    async def handle(self, request: web.Request) -> web.Response:
        """Answers one request."""
        body = json.loads(await request.read())
        if request.path == "/v1/wait":
            await asyncio.sleep(body["wait_ms"] / 1000)
            return web.json_response({"holder": 1, "waiter": 0})
        self.lists.append(body)
        scripted = self.script(request.path, body)
        if scripted is not None:
            return scripted
        await self.gate.wait()
        return web.json_response([self._answer(message) for message in body])

    async def has(self, count: int) -> None:
        """Returns when `count` lists have come."""
        while len(self.lists) < count:  # noqa: ASYNC110 - a poll is as simple as it can be
            await asyncio.sleep(0.005)

    @staticmethod
    def _answer(message: Any) -> Any:
        if message["type"] in ("begin", "register", "confirm"):
            return {"type": "noted"}
        commit = message.get("commit", True)
        return {"type": "outcome", "xid": message["xid"], "decision": 1 if commit else 2}


@asynccontextmanager
async def scripted() -> AsyncIterator[Scripted]:
    """A scripted coordinator on a free port."""
    coordinator = Scripted()
    application = web.Application()
    application.router.add_post("/{path:.*}", coordinator.handle)
    runner = web.AppRunner(application)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port, shutdown_timeout=0.1).start()
    coordinator.url = f"http://127.0.0.1:{port}"
    try:
        yield coordinator
    finally:
        coordinator.gate.set()
        await runner.cleanup()


def transport(*urls: str) -> Transport:
    return Transport(urls, None, dice=Random(7))


def decide(number: int, commit: bool = True) -> Decide:
    return Decide(UUID(int=number), "test", 2_000_000_000_000, commit, [BranchRef("east", UUID(int=number))])


def soon() -> float:
    return time.time() + 5


async def test_what_is_said_while_a_batch_is_in_flight_travels_in_the_next() -> None:
    """Forty decisions at once need two lists."""
    async with scripted() as coordinator, transport(coordinator.url) as way:
        coordinator.gate.clear()
        first = asyncio.create_task(way.commit(decide(1), soon()))
        await coordinator.has(1)
        others = [asyncio.create_task(way.commit(decide(number), soon())) for number in range(2, 41)]
        await asyncio.sleep(0.02)
        coordinator.gate.set()
        outcomes = await asyncio.gather(first, *others)
        assert [outcome.xid.int for outcome in outcomes] == list(range(1, 41))
        assert [len(said) for said in coordinator.lists] == [1, 39]


async def test_a_commit_does_not_queue_behind_rollbacks_waits_and_questions() -> None:
    """Those have calls of their own."""
    async with scripted() as coordinator, transport(coordinator.url) as way:
        coordinator.gate.clear()
        slow = [
            asyncio.create_task(way.rollback(decide(1, commit=False), soon())),
            asyncio.create_task(way.converse([Ask(UUID(int=2), 0, "east")])),
        ]
        await coordinator.has(2)
        waiting = asyncio.create_task(way.wait(Wait(UUID(int=3), None, None, None, "east", 300)))
        commit = asyncio.create_task(way.commit(decide(4), soon()))
        await coordinator.has(3)
        assert not any(task.done() for task in (*slow, waiting))
        coordinator.gate.set()
        assert (await commit).decision == Decision.COMMITTED
        assert (await asyncio.gather(*slow))[0].decision == Decision.ROLLED_BACK
        assert (await waiting).holder == Decision.COMMITTED


async def test_hints_go_together_after_a_moment_and_not_at_all_once_decided() -> None:
    """A decision takes the hints of its own transaction with it; those of others go out."""
    async with scripted() as coordinator, transport(coordinator.url) as way:
        for number in (1, 2):
            way.hint(Begin(UUID(int=number), "test", 0))
            way.hint(Register(UUID(int=number), 0, BranchRef("east", UUID(int=9))))
        await way.commit(decide(1), soon())
        await coordinator.has(2)
        assert [message["type"] for message in coordinator.lists[0]] == ["decide"]
        assert [(message["type"], message["xid"]) for message in coordinator.lists[1]] == [
            ("begin", str(UUID(int=2))),
            ("register", str(UUID(int=2))),
        ]


async def test_hints_are_dropped_rather_than_queued_without_end() -> None:
    """With no coordinator there they never wait, never fail, and stay within their limit."""
    async with transport(f"http://127.0.0.1:{free_port()}") as way:
        for number in range(HINTS_MAX * 2):
            way.hint(Begin(UUID(int=number), "test", 0))
        assert way._hint_count == HINTS_MAX


async def test_a_replica_that_fails_is_left_for_one_that_answers() -> None:
    """Connection refused and 503 both lead to the next URL, which is then asked first."""
    async with scripted() as broken, scripted() as healthy:
        broken.script = lambda path, body: web.Response(status=503)
        async with transport(f"http://127.0.0.1:{free_port()}", broken.url, healthy.url) as way:
            for number in range(1, 4):
                assert (await way.commit(decide(number), soon())).decision == Decision.COMMITTED
        assert len(healthy.lists) == 3
        assert len(broken.lists) == 1


async def test_a_decision_is_repeated_until_it_is_answered_or_the_time_is_up() -> None:
    """Each repeat is the same message; in the end the outcome is unknown."""
    async with scripted() as coordinator, transport(coordinator.url) as way:
        coordinator.script = lambda path, body: web.Response(status=503) if len(coordinator.lists) < 4 else None
        assert (await way.commit(decide(1), soon())).decision == Decision.COMMITTED
        assert len(coordinator.lists) == 4
        assert all(said == coordinator.lists[0] for said in coordinator.lists)
        coordinator.script = lambda path, body: web.Response(status=503)
        with pytest.raises(OutcomeUnknown):
            await way.commit(decide(2), time.time() + 0.3)
        with pytest.raises(CoordinatorUnavailable):
            await way.rollback(decide(3, commit=False), time.time() + 0.3)


async def test_a_caller_that_is_not_let_in_is_told_at_once() -> None:
    """401 is not repeated: no other replica would think otherwise."""
    async with scripted() as coordinator, transport(coordinator.url) as way:
        coordinator.script = lambda path, body: web.Response(status=401, text="who are you")
        with pytest.raises(CallerRefused, match="who are you"):
            await way.commit(decide(1), soon())
        assert len(coordinator.lists) == 1


async def test_a_refusal_after_a_lost_answer_is_an_unknown_outcome() -> None:
    """A replica that did not answer may have decided; that another does not let us in says nothing of it."""
    async with scripted() as silent, scripted() as strict:
        silent.script = lambda path, body: web.Response(status=502)
        strict.script = lambda path, body: web.Response(status=401)
        async with transport(silent.url, strict.url) as way:
            with pytest.raises(OutcomeUnknown):
                await way.commit(decide(1), soon())
            with pytest.raises(CallerRefused):
                await way.commit(decide(2), soon())


@pytest.mark.parametrize("answer", ["[]", "{}", "no json", '[{"type":"noted"},{"type":"noted"}]'])
async def test_an_answer_that_is_not_one_counts_as_none(answer: str) -> None:
    """It is asked again, and never taken for a decision."""
    async with scripted() as coordinator, transport(coordinator.url) as way:
        coordinator.script = lambda path, body: web.Response(text=answer) if len(coordinator.lists) == 1 else None
        assert (await way.commit(decide(1), soon())).decision == Decision.COMMITTED
        assert len(coordinator.lists) == 2


async def test_a_refused_decision_is_an_error_with_the_coordinators_words() -> None:
    """Refused and Noted are no outcomes."""
    async with scripted() as coordinator, transport(coordinator.url) as way:
        refused = [{"type": "refused", "message": "too many branches"}]
        coordinator.script = lambda path, body: web.json_response(refused)
        with pytest.raises(CoordinatorError, match="too many branches"):
            await way.commit(decide(1), soon())
        coordinator.script = lambda path, body: web.json_response([{"type": "noted"}])
        with pytest.raises(CoordinatorError, match="Noted"):
            await way.commit(decide(1), soon())


async def test_what_cannot_be_written_does_not_end_the_way_of_others() -> None:
    """A text that is no UTF-8 is an error to who says it; decisions and hints go on."""
    broken = "\udcff"
    async with scripted() as coordinator, transport(coordinator.url) as way:
        with pytest.raises(CoordinatorError, match="cannot be said"):
            await way.commit(Decide(UUID(int=1), broken, 2_000_000_000_000, True, []), soon())
        assert (await way.commit(decide(2), soon())).decision == Decision.COMMITTED
        way.hint(Begin(UUID(int=3), broken, 0))
        await asyncio.sleep(HINT_AGE_S + HINT_LINGER_S + 0.1)
        way.hint(Begin(UUID(int=4), "test", 0))
        async with asyncio.timeout(5):
            await coordinator.has(2)


async def test_closing_ends_what_still_waits() -> None:
    """Nobody hangs on a transport that is closed."""
    async with scripted() as coordinator:
        async with transport(coordinator.url) as way:
            coordinator.gate.clear()
            waiting = [asyncio.create_task(way.commit(decide(number), soon())) for number in (1, 2)]
            await asyncio.sleep(0.05)
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(result, OutcomeUnknown) for result in results)
        with pytest.raises(CoordinatorUnavailable):
            await way.commit(decide(3), soon())
