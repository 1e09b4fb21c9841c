"""Two coordinator processes on one store, one paused (SIGSTOP) or killed (SIGKILL) at any moment."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from uuid import UUID

import aiohttp

from coordinator.protocol.messages import Ask, Outcome
from coordinator.protocol.statuses import Decision
from tests.integration.coordinator.tc.harness import (
    Caller,
    branch_of,
    commit,
    coordinator_process,
    eventually,
    new_xid,
    now_ms,
    rollback,
)
from tests.support.servers import free_port

CALL_S = 1.0
"""How long a caller waits for one replica before it asks the other."""

Replica = tuple[Caller, asyncio.subprocess.Process]


@asynccontextmanager
async def two_processes(database: str) -> AsyncIterator[tuple[Replica, Replica]]:
    """Two replicas as processes of their own, with a caller for each; a paused one is let go on before it is ended."""
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(aiohttp.ClientSession())
        ports = [free_port(), free_port()]
        one, two = [await stack.enter_async_context(coordinator_process(database, port)) for port in ports]
        callers = [Caller(f"http://127.0.0.1:{port}", http) for port in ports]
        try:
            yield (callers[0], one), (callers[1], two)
        finally:
            for process in (one, two):
                if process.returncode is None:
                    process.send_signal(signal.SIGCONT)


async def decision_of(caller: Caller, xid: UUID) -> Decision:
    """What a replica answers to a question that decides nothing."""
    (answer,) = await caller.say(Ask(xid, now_ms(30), "capacity"))
    assert isinstance(answer, Outcome)
    return Decision(answer.decision)


async def test_a_late_answer_of_a_paused_replica_is_the_decision_that_was_made_meanwhile(database: str) -> None:
    """A commit that a paused replica takes up after another one decided otherwise is answered with that.

    So is one that it had read before the pause: the store rules, whoever asks it and whenever.
    """
    async with two_processes(database) as ((paused, process), (other, _)):
        xids = [new_xid() for _ in range(20)]
        calls = []
        for place, xid in enumerate(xids):
            calls.append(asyncio.create_task(paused.decide(commit(xid, branch_of("capacity")))))
            if place == len(xids) // 2:
                await asyncio.sleep(
                    0.01
                )  # some are on their way when it stops, the others arrive while it stands still
                process.send_signal(signal.SIGSTOP)
        meanwhile = {xid: (await other.decide(rollback(xid)))[0] for xid in xids}
        assert meanwhile[xids[-1]] is Decision.ROLLED_BACK
        assert not all(call.done() for call in calls)
        process.send_signal(signal.SIGCONT)
        late = {xid: (await call)[0] for xid, call in zip(xids, calls, strict=True)}
        assert late == meanwhile
        assert {xid: await decision_of(paused, xid) for xid in xids} == meanwhile


async def test_replicas_paused_and_killed_in_turn_answer_the_same(database: str) -> None:
    """Under load one is paused, the other killed, the paused one goes on alone: no answer was ever taken back."""
    heard: dict[UUID, set[Decision]] = {}
    stop = asyncio.Event()

    async def ask(caller: Caller, xid: UUID, commits: bool) -> None:
        wish = commit(xid, branch_of("capacity")) if commits else rollback(xid)
        try:
            found, _ = await asyncio.wait_for(caller.decide(wish), CALL_S)
        except (aiohttp.ClientError, OSError, TimeoutError, AssertionError):
            return  # paused, killed, or its store is busy: the other one is asked
        heard.setdefault(xid, set()).add(found)

    async def client(callers: list[Caller]) -> None:
        while not stop.is_set():
            xid = new_xid()
            # The two are asked for opposites at once: whoever answers, and whenever, says the same.
            await asyncio.gather(*(ask(caller, xid, bool(number)) for number, caller in enumerate(callers)))

    async with two_processes(database) as ((first, one), (second, two)):
        clients = [asyncio.create_task(client([first, second])) for _ in range(4)]

        async def more(than: int) -> None:
            await eventually(lambda: len(heard) > than)

        await more(50)
        for _ in range(3):
            one.send_signal(signal.SIGSTOP)
            await more(len(heard) + 4)
            one.send_signal(signal.SIGCONT)
            await more(len(heard) + 20)
        one.send_signal(signal.SIGSTOP)
        await more(len(heard) + 4)
        two.kill()
        await two.wait()
        one.send_signal(signal.SIGCONT)
        await more(len(heard) + 20)
        stop.set()
        await asyncio.gather(*clients)
        split = {xid: found for xid, found in heard.items() if len(found) > 1}
        assert split == {}
        final = {xid: await decision_of(first, xid) for xid in heard}
    assert final == {xid: found.pop() for xid, found in heard.items()}
