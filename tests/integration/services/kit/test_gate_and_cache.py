"""Redis in front of PostgreSQL: a gate for traffic and a cache, neither of which anything depends on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import pytest
import pytest_asyncio
from redis.asyncio import Redis
from redis.exceptions import RedisError

from services.kit.cache import JITTER, LOAD_MAX_S, MARK, MARK_TTL_S, MISSING_TTL_S, TTL_S, Cache, Passing
from services.kit.locks import LEASE_S, Gate, lock_master
from services.kit.problems import Problem
from tests.support.servers import free_port
from tests.support.services import eventually

MASTERS = 3
CONTENDERS = 50


@pytest_asyncio.fixture
async def masters(valkey: str) -> AsyncIterator[list[Redis]]:
    """Three lock masters that know nothing of each other."""
    base = valkey.rsplit("/", 1)[0]
    made = [lock_master(f"{base}/{number}") for number in range(MASTERS)]
    # The suite's machine is busy: a slow answer is not what these tests are about.
    for master in made:
        master.connection_pool.connection_kwargs.update(socket_timeout=5, socket_connect_timeout=5)
    yield made
    for master in made:
        await master.aclose()


@pytest.fixture
def name() -> str:
    """A lock of the test's own."""
    return f"booking_lock:{uuid4()}"


def away() -> Redis:
    return lock_master(f"redis://127.0.0.1:{free_port()}/0")


async def keys_of(masters: list[Redis], name: str) -> int:
    return sum([len(await master.keys(f"*{name}*")) for master in masters])


async def test_fifty_contenders_are_inside_one_at_a_time(masters: list[Redis], name: str) -> None:
    """All get in, never two together, and no key is left."""
    gate, inside, most, entered = Gate(masters), 0, 0, 0

    async def contend() -> None:
        nonlocal inside, most, entered
        async with gate.locked(name, wait_s=60) as held:
            assert held
            inside += 1
            entered += 1
            most = max(most, inside)
            await asyncio.sleep(0)
            inside -= 1

    await asyncio.gather(*(contend() for _ in range(CONTENDERS)))
    assert (most, entered) == (1, CONTENDERS)
    assert await keys_of(masters, name) == 0


async def test_whoever_stands_in_line_too_long_is_told_to_come_again(masters: list[Redis], name: str) -> None:
    """A 409 with Retry-After, while the holder goes on undisturbed."""
    gate = Gate(masters)
    async with gate.locked(name):
        with pytest.raises(Problem) as refused:
            async with gate.locked(name, wait_s=0.1):
                pytest.fail("two are inside")
        assert await keys_of(masters, name) == MASTERS
    assert (refused.value.status, refused.value.code) == (409, "lock-busy")
    assert "Retry-After" in refused.value.headers


async def test_with_one_master_away_the_gate_still_holds(masters: list[Redis], name: str) -> None:
    """Two of three are a majority."""
    gate = Gate([*masters[:2], away()])
    async with gate.locked(name) as held:
        assert held
        with pytest.raises(Problem):
            async with gate.locked(name, wait_s=0.1):
                pytest.fail("two are inside")


async def test_with_the_masters_away_the_gate_stands_open(masters: list[Redis], name: str) -> None:
    """The body runs, and is told that others may be inside."""
    for gate in (Gate([masters[0], away(), away()]), Gate([away()]), Gate([])):
        async with gate.locked(name) as held:
            assert not held
    assert await keys_of(masters, name) == 0


@pytest.mark.parametrize("turns", [1, 2, 3, 5, 8, 12, 20, 30])
async def test_a_cancelled_acquire_leaves_no_key(masters: list[Redis], name: str, turns: int) -> None:
    """Whenever the caller goes away, the lock is free for the next."""
    gate = Gate(masters)

    async def hold() -> None:
        async with gate.locked(name):
            await asyncio.sleep(60)

    task = asyncio.create_task(hold())
    for _ in range(turns):
        await asyncio.sleep(0)
    for _ in range(2):  # twice: the second interrupts the clean-up of the first
        task.cancel()
        await asyncio.sleep(0)
    await asyncio.gather(task, return_exceptions=True)

    async def free() -> bool:
        return await keys_of(masters, name) == 0

    await eventually(free, timeout_s=LEASE_S / 2)


class SlowMaster(Redis):
    """A lock master whose answer to a taken lock is long on its way."""

    taken: asyncio.Event

    async def set(self, *args: Any, **kwargs: Any) -> Any:
        """The key is there well before the caller hears of it."""
        result = await super().set(*args, **kwargs)
        self.taken.set()
        await asyncio.sleep(0.2)
        return result


async def test_an_acquire_that_is_cancelled_before_it_hears_of_its_lock_gives_it_back(valkey: str, name: str) -> None:
    """The key is in Redis already, and is taken out again long before its lease ends."""
    master = SlowMaster.from_url(valkey)
    master.taken = asyncio.Event()
    task = asyncio.create_task(Gate([master]).locked(name).__aenter__())
    await master.taken.wait()
    assert await keys_of([master], name) == 1
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert await keys_of([master], name) == 0
    await master.aclose()


async def test_a_cancelled_one_in_line_does_not_take_the_lock_later(masters: list[Redis], name: str) -> None:
    """When the holder leaves, nobody stands in the way of the next."""
    gate = Gate(masters)
    async with gate.locked(name):
        waiting = asyncio.create_task(gate.locked(name, wait_s=60).__aenter__())
        await asyncio.sleep(0.1)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    assert await keys_of(masters, name) == 0
    async with gate.locked(name, wait_s=0) as held:
        assert held


async def test_what_fails_inside_frees_the_lock(masters: list[Redis], name: str) -> None:
    """The error comes through."""
    with pytest.raises(ZeroDivisionError):
        async with Gate(masters).locked(name):
            raise ZeroDivisionError
    assert await keys_of(masters, name) == 0


class Loader:
    """Counts how often it is asked."""

    def __init__(self, value: int | None = 7) -> None:
        self.value = value
        self.loads = 0
        self.asked = asyncio.Event()
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def __call__(self) -> int | None:
        self.loads += 1
        self.asked.set()
        await self.go_on.wait()
        if self.value == 0:
            raise ZeroDivisionError
        return self.value


@pytest_asyncio.fixture
async def redis(valkey: str) -> AsyncIterator[Redis]:
    """The cache's Redis."""
    client: Redis = Redis.from_url(valkey)
    yield client
    await client.aclose()


async def test_many_who_miss_at_once_make_one_load(redis: Redis, name: str) -> None:
    """One caller loads, the others wait for it; later ones find it in Redis."""
    cache, load = Cache(redis), Loader()
    assert await asyncio.gather(*(cache.get_or_load(name, int, load) for _ in range(20))) == [7] * 20
    assert await Cache(redis).get_or_load(name, int, load) == 7
    assert load.loads == 1


async def test_whoever_goes_away_does_not_take_the_load_from_the_others(redis: Redis, name: str) -> None:
    """The first caller is cancelled; the second still gets the value of the same load."""
    cache, load = Cache(redis), Loader()
    load.go_on.clear()
    first = asyncio.create_task(cache.get_or_load(name, int, load))
    await load.asked.wait()
    second = asyncio.create_task(cache.get_or_load(name, int, load))
    await asyncio.sleep(0.05)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    load.go_on.set()
    assert await second == 7
    assert load.loads == 1


async def test_a_load_that_fails_is_told_to_all_and_not_kept(redis: Redis, name: str) -> None:
    """The next caller tries again."""
    cache, load = Cache(redis), Loader(0)
    outcomes = await asyncio.gather(*(cache.get_or_load(name, int, load) for _ in range(3)), return_exceptions=True)
    assert all(isinstance(found, ZeroDivisionError) for found in outcomes)
    load.value = 8
    assert await cache.get_or_load(name, int, load) == 8


async def test_that_there_is_nothing_is_remembered_shortly(redis: Redis, name: str) -> None:
    """A missing row does not ask the database each time."""
    cache, load = Cache(redis), Loader(None)
    assert [await cache.get_or_load(name, int, load) for _ in range(3)] == [None] * 3
    assert load.loads == 1
    assert 0 < await redis.ttl(name) <= MISSING_TTL_S


@pytest.mark.parametrize("written", [b'"of another type"', b'{"half', b"\xff"])
async def test_what_another_version_wrote_is_loaded_anew(redis: Redis, name: str, written: bytes) -> None:
    """A value that cannot be read is no error of whoever asks: it is replaced by one that can."""
    await redis.set(name, written)
    cache, load = Cache(redis), Loader()
    assert [await cache.get_or_load(name, int, load) for _ in range(2)] == [7, 7]
    assert (load.loads, await redis.get(name)) == (1, b"7")


@pytest.mark.parametrize("dice", [0.0, 0.5, 1.0])
async def test_a_value_lives_for_thirty_minutes_less_some_jitter(redis: Redis, name: str, dice: float) -> None:
    """So keys that were made together do not end together."""
    await Cache(redis, lambda: dice).get_or_load(name, int, Loader())
    whole = TTL_S * (1 - JITTER * dice)
    assert whole - 5 <= await redis.ttl(name) <= whole


async def test_a_dropped_value_is_loaded_anew(redis: Redis, name: str) -> None:
    """Dropping one key leaves the others."""
    cache, load, other = Cache(redis), Loader(), Loader()
    await cache.get_or_load(name, int, load)
    await cache.get_or_load(f"{name}:other", int, other)
    await cache.drop(name)
    await cache.get_or_load(name, int, load)
    await cache.get_or_load(f"{name}:other", int, other)
    assert (load.loads, other.loads) == (2, 1)


@pytest.mark.parametrize("dropped_before", [False, True])
async def test_a_value_that_was_loaded_before_a_drop_gives_way(redis: Redis, name: str, dropped_before: bool) -> None:
    """The row changed while somebody had read the old one: they may answer it, and nobody finds it afterwards.

    Each drop leaves a mark of its own: a load between two drops does not take the second's for the first's.
    """
    reader, writer, load = Cache(redis), Cache(redis), Loader(7)
    if dropped_before:
        await writer.drop(name)
    load.go_on.clear()
    late = asyncio.create_task(reader.get_or_load(name, int, load))
    await load.asked.wait()
    await writer.drop(name)
    load.go_on.set()
    assert await late == 7
    fresh = Loader(8)
    assert [await cache.get_or_load(name, int, fresh) for cache in (reader, writer)] == [8, 8]
    assert fresh.loads == 1


async def test_a_value_gives_way_to_a_newer_one_too(redis: Redis, name: str) -> None:
    """The new value is there already when the old one comes back."""
    slow, quick, load = Cache(redis), Cache(redis), Loader(7)
    load.go_on.clear()
    late = asyncio.create_task(slow.get_or_load(name, int, load))
    await load.asked.wait()
    await quick.drop(name)
    assert await quick.get_or_load(name, int, Loader(8)) == 8
    load.go_on.set()
    assert await late == 7
    assert await slow.get_or_load(name, int, Loader(9)) == 8


async def test_whoever_asks_after_a_drop_does_not_join_a_load_from_before_it(redis: Redis, name: str) -> None:
    """Who has heard that a change is done never sees the time before it, whichever process dropped the key."""
    cache, load = Cache(redis), Loader(7)
    load.go_on.clear()
    before = asyncio.create_task(cache.get_or_load(name, int, load))
    await load.asked.wait()
    await Cache(redis).drop(name)
    assert await asyncio.wait_for(cache.get_or_load(name, int, Loader(8)), timeout=10) == 8
    load.go_on.set()
    assert await before == 7


async def test_a_load_that_outlives_the_mark_of_a_drop_is_not_kept(redis: Redis, name: str) -> None:
    """When marks have ended unseen, only the length of the load tells that it may be old."""
    seconds = [0.0]
    cache, load = Cache(redis, clock=lambda: seconds[0]), Loader(7)
    load.go_on.clear()
    late = asyncio.create_task(cache.get_or_load(name, int, load))
    await load.asked.wait()
    seconds[0] = LOAD_MAX_S + 0.1
    load.go_on.set()
    assert await late == 7
    assert await cache.get_or_load(name, int, Loader(8)) == 8
    assert min(MARK_TTL_S, MISSING_TTL_S, int(TTL_S * (1 - JITTER))) > LOAD_MAX_S


async def test_a_mark_stands_as_long_as_a_load_may_take(redis: Redis, name: str) -> None:
    """And is never taken for a value."""
    cache = Cache(redis)
    await cache.drop(name)
    raw = await redis.get(name)
    assert bytes(raw).startswith(MARK)
    assert LOAD_MAX_S < await redis.ttl(name) <= MARK_TTL_S
    assert await cache.get_or_load(name, int, Loader(None)) is None


async def test_a_value_that_may_be_undone_is_answered_and_not_kept(redis: Redis, name: str) -> None:
    """To all who wait for it; the next one asks again, and keeps what stands."""
    cache, loads = Cache(redis), 0

    async def passing() -> Passing[int]:
        nonlocal loads
        loads += 1
        await asyncio.sleep(0.02)
        return Passing(7)

    assert await asyncio.gather(*(cache.get_or_load(name, int, passing) for _ in range(5))) == [7] * 5
    assert loads == 1
    assert await redis.get(name) is None
    assert await cache.get_or_load(name, int, Loader(8)) == 8
    assert await cache.get_or_load(name, int, passing) == 8


async def test_whoever_must_be_sure_of_a_drop_hears_that_redis_is_away(redis: Redis, name: str) -> None:
    """The outbox tries again; a request that was answered from the database goes on."""
    with pytest.raises(RedisError):
        await Cache(away()).drop_surely(name)
    await Cache(away()).drop(name)
    await Cache(redis).drop_surely()


async def test_with_redis_away_the_database_answers(name: str) -> None:
    """Nothing fails, nothing is remembered."""
    cache, load = Cache(away()), Loader()
    assert [await cache.get_or_load(name, int, load) for _ in range(2)] == [7, 7]
    await cache.drop(name)
    assert load.loads == 2
