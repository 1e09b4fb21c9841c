"""Monthly partitions in a real database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest
from sqlalchemy.ext.asyncio import create_async_engine

from sharding import Partition, PartitionsRefused, ensure_months, partitions_of

NOW = datetime(2026, 11, 23, 14, tzinfo=UTC)
TABLE = """
CREATE TABLE orders (bucket smallint, id uuid, created_at timestamptz, PRIMARY KEY (bucket, id, created_at))
PARTITION BY RANGE (created_at);
CREATE INDEX ON orders (created_at);
"""


@pytest.fixture
async def connection(database: str) -> AsyncIterator[Any]:
    """A connection to a database with a partitioned table, in a session whose zone is far from UTC."""
    made = await asyncpg.connect(database, server_settings={"timezone": "Asia/Shanghai", "datestyle": "German"})
    await made.execute(TABLE)
    yield made
    await made.close()


async def test_the_coming_months_are_made_once_and_named_by_month(connection: Any) -> None:
    """This month and three ahead over the turn of the year; again: nothing."""
    names = ["orders_2026_11", "orders_2026_12", "orders_2027_01", "orders_2027_02"]
    assert await ensure_months(connection, "orders", now=NOW) == names
    assert await ensure_months(connection, "public.orders", now=NOW) == []
    assert await ensure_months(connection, "orders", ahead=0, behind=1, now=NOW) == ["orders_2026_10"]
    found = await partitions_of(connection, "orders")
    assert [partition.name for partition in found] == ["orders_2026_10", *names]
    assert found[1] == Partition("orders_2026_11", datetime(2026, 11, 1, tzinfo=UTC), datetime(2026, 12, 1, tzinfo=UTC))


async def test_a_row_falls_into_its_month_of_utc(connection: Any) -> None:
    """Whatever the session's time zone."""
    await ensure_months(connection, "orders", now=NOW)
    await connection.execute("INSERT INTO orders VALUES (1, gen_random_uuid(), '2026-11-30 23:59:59.999999+00')")
    await connection.execute("INSERT INTO orders VALUES (1, gen_random_uuid(), '2026-12-01 00:00:00+00')")
    rows = await connection.fetch("SELECT tableoid::regclass::text AS name FROM orders ORDER BY created_at")
    assert [row["name"] for row in rows] == ["orders_2026_11", "orders_2026_12"]


async def test_callers_at_once_make_each_month_once(connection: Any, database: str) -> None:
    """Replicas that start together wait for one another and share the work."""
    others = [await asyncpg.connect(database) for _ in range(4)]
    made = await asyncio.gather(*(ensure_months(other, "orders", now=NOW) for other in others))
    assert sorted(len(names) for names in made) == [0, 0, 0, 4]
    for other in others:
        await other.close()


async def test_a_month_that_somebody_covered_is_left_alone(connection: Any) -> None:
    """By any name, in any width; a default partition covers nothing."""
    await connection.execute(
        "CREATE TABLE winter PARTITION OF orders FOR VALUES FROM ('2026-12-01+00') TO ('2027-02-01+00');"
        "CREATE TABLE rest PARTITION OF orders DEFAULT"
    )
    assert await ensure_months(connection, "orders", now=NOW) == ["orders_2026_11", "orders_2027_02"]
    assert (await partitions_of(connection, "orders"))[-1] == Partition("rest", None, None, is_default=True)


async def test_partitions_belong_to_the_owner_of_the_table_and_the_hook_runs_with_them(connection: Any) -> None:
    """An administrator's run leaves nothing that the service cannot use; a hook that fails leaves no partition."""
    role = await connection.fetchval("SELECT 'owner_' || substr(md5(current_database()), 1, 12)")
    await connection.execute(f"CREATE ROLE {role}; ALTER TABLE orders OWNER TO {role}")
    try:
        seen = []

        async def after_create(raw: Any, name: str) -> None:
            seen.append(
                await raw.fetchval("SELECT relowner::regrole::text FROM pg_class WHERE oid = $1::regclass", name)
            )

        await ensure_months(connection, "orders", ahead=0, now=NOW, after_create=after_create)
        assert seen == [role]

        async def fails(raw: Any, name: str) -> None:
            raise KeyError(name)

        with pytest.raises(KeyError, match="orders_2026_12"):
            await ensure_months(connection, "orders", ahead=1, now=NOW, after_create=fails)
        assert len(await partitions_of(connection, "orders")) == 1
    finally:
        await connection.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


async def test_a_table_locked_by_others_is_given_up_after_some_attempts(
    connection: Any, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Readers behind the wait are held up for a lock time-out at most; nothing is left half made."""
    monkeypatch.setattr("sharding.partitions.LOCK_TIMEOUT_MS", 20)
    monkeypatch.setattr("sharding.partitions.LOCK_PAUSE_S", 0.01)
    holder = await asyncpg.connect(database)
    async with holder.transaction():
        await holder.execute("SELECT count(*) FROM orders")
        with pytest.raises(PartitionsRefused, match="locked by others in 5 attempts"):
            await ensure_months(connection, "orders", now=NOW)
    await holder.close()
    assert len(await ensure_months(connection, "orders", now=NOW)) == 4


async def test_what_cannot_have_months_is_refused(connection: Any) -> None:
    """Plain tables, unknown tables, other keys, names that PostgreSQL would cut, times without a zone."""
    long = "o" * 60
    await connection.execute(
        "CREATE TABLE plain (at timestamptz); CREATE TABLE listed (at timestamptz) PARTITION BY LIST (at);"
        "CREATE TABLE dated (at date) PARTITION BY RANGE (at);"
        f"CREATE TABLE {long} (at timestamptz) PARTITION BY RANGE (at)"
    )
    for table in ("plain", "listed", "dated", "absent", long):
        with pytest.raises(PartitionsRefused):
            await ensure_months(connection, table, now=NOW)
    with pytest.raises(PartitionsRefused, match="zone"):
        await ensure_months(connection, "orders", now=NOW.replace(tzinfo=None))
    with pytest.raises(PartitionsRefused, match="0 to 120"):
        await ensure_months(connection, "orders", ahead=121, now=NOW)


async def test_a_month_that_cannot_be_made_is_refused_with_what_is_in_its_way(connection: Any) -> None:
    """Rows in the default partition, a table of the same name, a partition over half of the month."""
    await connection.execute(
        "CREATE TABLE rest PARTITION OF orders DEFAULT;"
        "INSERT INTO orders VALUES (1, gen_random_uuid(), '2026-12-05+00')"
    )
    with pytest.raises(PartitionsRefused, match=r"orders_2026_12.*default partition holds rows"):
        await ensure_months(connection, "orders", now=NOW)
    await connection.execute("DROP TABLE rest; CREATE TABLE orders_2026_12 ()")
    with pytest.raises(PartitionsRefused, match=r"orders_2026_12.*already exists"):
        await ensure_months(connection, "orders", now=NOW)
    await connection.execute(
        "DROP TABLE orders_2026_12;"
        "CREATE TABLE half PARTITION OF orders FOR VALUES FROM ('2026-12-10+00') TO ('2026-12-20+00')"
    )
    with pytest.raises(PartitionsRefused, match=r"orders_2026_12.*would overlap"):
        await ensure_months(connection, "orders", now=NOW)
    assert [p.name for p in await partitions_of(connection, "orders")] == ["half"]


async def test_a_partition_without_a_bound_is_read_in_both_of_its_forms(connection: Any) -> None:
    """-infinity is a bound to PostgreSQL, and none to us."""
    await connection.execute(
        "CREATE TABLE old PARTITION OF orders FOR VALUES FROM ('-infinity') TO ('2026-12-01+00');"
        "CREATE TABLE late PARTITION OF orders FOR VALUES FROM ('2027-02-01+00') TO ('infinity')"
    )
    assert await ensure_months(connection, "orders", now=NOW) == ["orders_2026_12", "orders_2027_01"]
    found = await partitions_of(connection, "orders")
    assert (found[0].name, found[0].starts, found[-1].name, found[-1].ends) == ("old", None, "late", None)


async def test_the_transaction_of_the_caller_keeps_its_settings(connection: Any) -> None:
    """Whoever makes months in a transaction of their own goes on with the time-outs they had."""
    names = ("lock_timeout", "datestyle")
    async with connection.transaction():
        before = [await connection.fetchval("SELECT current_setting($1)", name) for name in names]
        await ensure_months(connection, "orders", now=NOW)
        assert [await connection.fetchval("SELECT current_setting($1)", name) for name in names] == before


async def test_a_sqlalchemy_connection_serves_as_well(connection: Any, database: str) -> None:
    """What it makes is part of its transaction: gone with a rollback, there with a commit."""
    engine = create_async_engine(database.replace("postgresql://", "postgresql+asyncpg://"))
    async with engine.connect() as other:
        assert len(await ensure_months(other, "orders", ahead=0, now=NOW)) == 1
        await other.rollback()
    assert await partitions_of(connection, "orders") == []
    async with engine.begin() as other:
        await ensure_months(other, "orders", ahead=0, now=NOW)
    assert len(await partitions_of(connection, "orders")) == 1
    await engine.dispose()
