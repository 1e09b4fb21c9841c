"""A fan-out over real shards against the same statement on one unsharded table."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import (
    REAL,
    Date,
    DateTime,
    Float,
    Integer,
    LargeBinary,
    Numeric,
    bindparam,
    case,
    cast,
    collate,
    delete,
    distinct,
    exists,
    func,
    insert,
    literal_column,
    select,
    text,
    type_coerce,
    union_all,
)
from sqlalchemy.dialects.postgresql import CITEXT, distinct_on
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from sharding import (
    Bucket,
    BucketState,
    CannotMerge,
    CannotPlace,
    Cursors,
    IdMaker,
    Position,
    ShardUnavailable,
    TooManyRows,
    bucket_of_id,
    fan_out,
    page,
    set_bucket_states,
)
from tests.support.fleet import SHARD_0, SHARD_1, Fleet, invoices, lines, metadata

ROUNDS = int(os.environ.get("FAN_OUT_ROUNDS", "4"))
STATEMENTS_PER_ROUND = 60
START = datetime(2026, 11, 1, tzinfo=UTC)
i = invoices.c
NEW = IdMaker()


@pytest.fixture
async def whole(database: str) -> AsyncIterator[AsyncEngine]:
    """One database with the same tables, unsharded."""
    engine = create_async_engine(database.replace("postgresql://", "postgresql+asyncpg://"))
    async with engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
    yield engine
    await engine.dispose()


ORDERED: list[Any] = [
    *(i.created_at, i.amount, i.pieces, i.weight, i.ratio, i.note, collate(i.title, "C"), i.customer_id),
    *(
        cast(i.created_at, Date),
        cast(i.created_at, DateTime),
        i.pieces > 1,
        func.abs(i.pieces, type_=Integer),
        -i.weight,
    ),
    *(
        i.pieces / 2,
        i.amount * 2,
        i.pieces % 3,
        func.lower(i.note, type_=i.note.type),
        func.coalesce(i.note, "m"),
        i.note + "x",
    ),
    *(case((i.pieces > 0, i.note), else_=None), cast(i.note, LargeBinary), cast(i.ratio, REAL)),
]
"""What rows are put in order by."""


def random_row(dice: random.Random) -> dict[str, Any]:
    """A row with many ties, NULLs and special values."""
    customer = NEW()
    texts = [None, "", "a", "B", "ä", "\U0001f43e", "\uffff", "ab"]
    return {
        "bucket": bucket_of_id(customer),
        "id": NEW(bucket_of_id(customer)),
        "customer_id": customer,
        "created_at": START + timedelta(hours=dice.randrange(5), microseconds=dice.randrange(3)),
        "amount": dice.choice(
            [
                *(None, Decimal("NaN"), Decimal("Infinity"), Decimal("-Infinity"), Decimal(0)),
                *(Decimal(dice.randrange(-(10**12), 10**12)).scaleb(-dice.randrange(8)) for _ in range(5)),
            ]
        ),
        "pieces": dice.choice([None, *range(-3, 4), 2**30 - 1]),
        "weight": dice.choice([None, dice.randrange(-(2**63), 2**63)]),
        "ratio": dice.choice([None, float("nan"), float("inf"), float("-inf"), 0.0, dice.randrange(-8, 8) / 4]),
        "note": dice.choice(texts),
        "title": dice.choice(texts),
    }


def random_order(dice: random.Random) -> list[Any]:
    """One to three order keys; the id makes the order total."""
    keys = []
    for column in dice.sample(ORDERED, 2):
        key = column.desc() if dice.random() < 0.5 else column.asc()
        keys.append(dice.choice([key, key.nulls_first(), key.nulls_last()]))
    return [*keys[: dice.choice([0, 1, 1, 2, 2])], i.id.desc() if dice.random() < 0.5 else i.id]


def random_select(dice: random.Random, rows: list[dict[str, Any]]) -> Any:
    """A select or aggregate with random criteria."""
    narrow = [[i.pieces > 0], [i.note.is_(None)], [i.bucket < 700], [i.id.in_([r["id"] for r in rows[:9]])]]
    criteria = dice.choice([[], [], [], *narrow, [i.pieces == 99]])
    if dice.random() < 0.25:
        column = dice.choice([i.amount, i.pieces, i.weight, i.bucket, i.pieces - 3, i.amount - i.pieces, i.pieces / 2])
        other = dice.choice([i.created_at, i.amount, i.pieces, i.ratio, i.note, cast(i.created_at, Date), i.pieces + 1])
        return select(
            func.count(),
            func.count(other).label("known"),
            func.sum(column),
            func.avg(column).label("mean"),
            func.sum(column).filter(i.pieces > 0),
            func.min(other),
            func.max(other),
        ).where(*criteria)
    statement = select(i.id, i.amount, i.note, (i.pieces * 2).label("twice")).where(*criteria)
    statement = statement.order_by(*random_order(dice))
    if dice.random() < 0.6:
        statement = statement.limit(dice.choice([0, 1, 10, 40, 90, 1000]))
    return statement.offset(dice.choice([0, 1, 7, 60])) if dice.random() < 0.3 else statement


def shown(rows: Any) -> list[str]:
    """Rows in a form in which NaN equals NaN and 1.0 differs from 1.00."""
    return [repr(tuple(row)) for row in rows]


@pytest.mark.parametrize("seed", range(ROUNDS))
async def test_a_fan_out_answers_as_one_unsharded_table_would(fleet: Fleet, whole: AsyncEngine, seed: int) -> None:
    """Random rows, orders, limits and aggregates: row for row and digit for digit."""
    dice = random.Random(seed)
    rows = [random_row(dice) for _ in range((120, 30, 1, 0)[seed % 4])]
    if rows:
        await fleet.router.execute(insert(invoices), rows, each_alone=True)
    async with whole.begin() as connection:
        if rows:
            await connection.execute(insert(invoices), rows)
        for _ in range(STATEMENTS_PER_ROUND):
            statement = random_select(dice, rows)
            expected = await connection.execute(statement)
            keys = tuple(expected.keys())
            answer = await fan_out(fleet.shards, fleet.tables, statement)
            assert shown(answer.rows) == shown(expected.all()), str(statement)
            if answer.rows:
                assert tuple(answer.rows[0]._fields) == keys


async def test_means_are_rounded_to_the_digit_as_postgresql_does(fleet: Fleet, whole: AsyncEngine) -> None:
    """Large, tiny, negative and exact quotients, in one table and over shards."""
    dice = random.Random(7)
    async with whole.begin() as connection:
        for _ in range(25):
            scale, digits, count = dice.randrange(0, 25), dice.randrange(1, 30), dice.randrange(1, 12)
            amounts = [Decimal(dice.randrange(-(10**digits), 10**digits)).scaleb(-scale) for _ in range(count)]
            rows = [{**random_row(dice), "amount": amount} for amount in amounts]
            await connection.execute(delete(invoices))
            await connection.execute(insert(invoices), rows)
            for shard in fleet.shards.ids:
                async with fleet.shards.session_on(shard) as session, session.begin():
                    await session.execute(delete(invoices))
            await fleet.router.execute(insert(invoices), rows, each_alone=True)
            statement = select(func.avg(i.amount), func.sum(i.amount))
            expected = (await connection.execute(statement)).one()
            assert shown([(await fan_out(fleet.shards, fleet.tables, statement)).one()]) == shown([expected])


async def test_numbers_shown_as_floats_or_rounded_are_merged_by_what_they_are(fleet: Fleet, whole: AsyncEngine) -> None:
    """Types that show less than PostgreSQL holds change neither order nor sums."""
    as_float, as_decimal = type_coerce(i.amount, Numeric(asdecimal=False)), type_coerce(i.ratio, Float(asdecimal=True))
    rows = [
        {**random_row(random.Random(n)), "amount": Decimal(f"0.{n + 1}"), "ratio": (9 - n) * 1e-13} for n in range(9)
    ]
    await fleet.router.execute(insert(invoices), rows, each_alone=True)
    async with whole.begin() as connection:
        await connection.execute(insert(invoices), rows)
        for statement in (
            select(func.sum(as_float), func.avg(as_float), func.min(as_float), func.avg(as_float, type_=Float)),
            select(i.id, as_decimal.label("ratio")).order_by(as_decimal),
            select(i.id).order_by(as_float.desc()),
        ):
            expected = (await connection.execute(statement)).all()
            assert shown((await fan_out(fleet.shards, fleet.tables, statement)).rows) == shown(expected)


async def test_ties_may_come_in_any_order_but_never_twice(fleet: Fleet) -> None:
    """With an order that is not total, pages hold the right keys and no row twice."""
    dice = random.Random(1)
    rows = [random_row(dice) for _ in range(60)]
    await fleet.router.execute(insert(invoices), rows, each_alone=True)
    answer = await fan_out(fleet.shards, fleet.tables, select(i.id, i.pieces).order_by(i.pieces.desc()).limit(40))
    in_order = sorted((r["pieces"] for r in rows), key=lambda p: (p is not None, -(p or 0)))
    assert [row.pieces for row in answer.rows] == in_order[:40]
    assert len({row.id for row in answer.rows}) == 40


async def test_co_located_joins_and_nested_selects_are_merged(fleet: Fleet) -> None:
    """Rows tied by an id that carries the bucket meet on their own shard."""
    rows = [random_row(random.Random(n)) for n in range(20)]
    await fleet.router.execute(insert(invoices), rows, each_alone=True)
    await fleet.router.execute(
        insert(lines), [{"invoice_id": r["id"], "line": n} for r in rows[:10] for n in range(2)], each_alone=True
    )
    joined = select(i.id, lines.c.line).join(lines, lines.c.invoice_id == i.id).order_by(i.id, lines.c.line).limit(7)
    answer = await fan_out(fleet.shards, fleet.tables, joined)
    expected = sorted((r["id"], n) for r in rows[:10] for n in range(2))[:7]
    assert [tuple(row) for row in answer.rows] == expected
    without = select(func.count()).select_from(invoices).where(~exists().where(lines.c.invoice_id == i.id))
    assert (await fan_out(fleet.shards, fleet.tables, without)).scalar() == 10
    outer = select(i.id, lines.c.line).join(lines, lines.c.invoice_id == i.id, isouter=True).order_by(i.id)
    assert len((await fan_out(fleet.shards, fleet.tables, outer)).rows) == 30


REFUSED = [
    (select(i.id).distinct(), "DISTINCT"),
    (select(i.pieces, func.count()).group_by(i.pieces), "GROUP BY"),
    (select(func.count(distinct(i.pieces))), "count\\(DISTINCT\\)"),
    (select(func.sum(i.pieces) + 1), "sum\\(\\)"),
    (select(func.string_agg(i.note, ",")), "string_agg"),
    (select(func.my_total(i.pieces)), "my_total"),
    (select(func.count(), i.pieces), "beside an aggregate"),
    (select(func.row_number().over(order_by=i.id)), "window"),
    (select(i.id).order_by(i.title), "title.*COLLATE|title"),
    (select(i.id).order_by("id"), "by its name"),
    (select(i.id).order_by(func.max(i.id)), "max"),
    (select(i.id).order_by(func.gen_random_uuid(type_=i.id.type)), "gen_random_uuid"),
    (select(func.min(i.title)), "title"),
    (select(func.sum(i.created_at)), "only numbers"),
    (select(func.count()).limit(1).select_from(invoices), "one row"),
    (select(i.id).with_for_update(), "FOR UPDATE"),
    (select(i.id).fetch(3), "FETCH"),
    (select(i.id).limit(i.pieces), "LIMIT"),
    (select(i.id).prefix_with("/*+ x */"), "prefix"),
    (select(i.id).ext(distinct_on(i.pieces)), "DISTINCT"),
    (select(i.id).order_by(i.note + collate(i.title, "de_DE")), "de_DE"),
    (select(func.min(func.coalesce(i.note, collate(i.title, "de_DE")))), "de_DE"),
    (select(i.id).order_by(type_coerce(i.title, CITEXT).collate("C")), "title"),
    (select(func.sum(type_coerce(i.ratio, Float(asdecimal=True)))), "rounded"),
    (select(func.avg(i.ratio, type_=Float(asdecimal=True))), "rounded"),
]


@pytest.mark.parametrize(("statement", "words"), REFUSED)
async def test_what_has_no_true_merge_is_refused_by_name(fleet: Fleet, statement: Any, words: str) -> None:
    """Before any shard is asked, even where each shard alone could answer."""
    with pytest.raises(CannotMerge, match=words):
        await fan_out(fleet.shards, fleet.tables, statement)


async def test_what_is_on_one_shard_needs_no_merge(fleet: Fleet) -> None:
    """With its bucket given, the same statements run as they are."""
    for statement in (
        select(i.pieces, func.count()).group_by(i.pieces),
        select(func.string_agg(i.note, ",")),
        select(func.sum(i.pieces) + 1),
        select(i.id).distinct().order_by(i.id).with_only_columns(i.id, i.title).fetch(3),
        select(func.row_number().over(order_by=i.id)),
    ):
        await fleet.router.execute(statement.where(i.bucket == 3))


async def test_opaque_sql_is_not_fanned_out(fleet: Fleet) -> None:
    """text(), literal columns and unions name the way out."""
    for statement in (
        text("SELECT 1"),
        select(literal_column("1")).select_from(invoices),
        select(i.id).where(text("x")),
    ):
        with pytest.raises(CannotPlace, match="key="):
            await fan_out(fleet.shards, fleet.tables, statement)
    with pytest.raises(CannotPlace, match="union"):
        await fan_out(fleet.shards, fleet.tables, union_all(select(i.id), select(i.id)))


async def test_a_fan_out_is_bounded_in_rows(fleet: Fleet) -> None:
    """A full answer at the bound passes, one row more is refused, and deep pages never start."""
    rows = [
        {**random_row(random.Random(n)), "bucket": 3, "id": NEW(Bucket(3)), "customer_id": NEW(Bucket(3))}
        for n in range(6)
    ]
    await fleet.router.execute(insert(invoices), rows)
    everything = select(i.id)
    assert len((await fan_out(fleet.shards, fleet.tables, everything, rows_max=6)).rows) == 6
    for one_shard in (everything, everything.where(i.bucket == 3)):
        with pytest.raises(TooManyRows, match="more than 5 rows"):
            await fan_out(fleet.shards, fleet.tables, one_shard, rows_max=5)
    with pytest.raises(TooManyRows, match="page by cursor"):
        await fan_out(fleet.shards, fleet.tables, everything.limit(10).offset(9_995))


async def test_one_shard_gives_no_more_than_the_bound_either(fleet: Fleet) -> None:
    """Rows past the bound are not even computed: the shard itself stops."""
    rows = [
        {**random_row(random.Random(n)), "bucket": 3, "id": NEW(Bucket(3)), "customer_id": NEW(Bucket(3))}
        for n in range(9)
    ]
    await fleet.router.execute(insert(invoices), rows)
    raw = await fleet.raw(SHARD_0)
    try:
        await raw.execute("CREATE SEQUENCE counted")
        counting = select(i.id, func.nextval("counted")).where(i.bucket == 3)
        for statement, given in ((counting, None), (counting.limit(bindparam("most")), {"most": 8})):
            with pytest.raises(TooManyRows, match="more than 5 rows"):
                await fan_out(fleet.shards, fleet.tables, statement, given, rows_max=5)
            assert await raw.fetchval("SELECT setval('counted', 1, false) FROM counted WHERE last_value = 6") == 1
        assert len((await fan_out(fleet.shards, fleet.tables, counting.limit(4), rows_max=5)).rows) == 4
    finally:
        await raw.execute("DROP SEQUENCE IF EXISTS counted")
        await raw.close()


async def test_a_fan_out_is_bounded_in_time_and_names_who_was_late(fleet: Fleet) -> None:
    """A shard that is locked up is unavailable; partial answers name it; its connection is given back clean."""
    raw = await fleet.raw(SHARD_1)
    try:
        async with raw.transaction():
            await raw.execute("LOCK TABLE invoices")
            with pytest.raises(ShardUnavailable, match=r"shard-1.*no answer in time"):
                await fan_out(fleet.shards, fleet.tables, select(i.id), timeout_s=0.3)
            answer = await fan_out(
                fleet.shards, fleet.tables, select(func.count()).select_from(invoices), partial=True, timeout_s=0.3
            )
            assert (answer.scalar(), answer.missing) == (0, (SHARD_1,))
            with pytest.raises(ShardUnavailable, match="shard-1"):  # there are no others to answer in part
                await fan_out(
                    fleet.shards, fleet.tables, select(i.id).where(i.bucket == 900), partial=True, timeout_s=0.3
                )
        assert (await fan_out(fleet.shards, fleet.tables, select(func.count()).select_from(invoices))).missing == ()
    finally:
        await raw.close()


async def test_a_caller_that_gives_up_leaves_no_connection_and_no_statement(fleet: Fleet) -> None:
    """A fan-out that is cancelled gives back what it took, on the shard that answered and on the one that did not."""
    raw = await fleet.raw(SHARD_1)
    waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'invoices'::regclass"
    try:
        async with raw.transaction():
            await raw.execute("LOCK TABLE invoices")
            running = asyncio.create_task(fan_out(fleet.shards, fleet.tables, select(i.id), timeout_s=30))
            async with asyncio.timeout(20):
                while await raw.fetchval(waiting) == 0:  # noqa: ASYNC110 - no event to wait for
                    await asyncio.sleep(0.01)
                running.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await running
                while await raw.fetchval(waiting) > 0:  # noqa: ASYNC110 - no event to wait for
                    await asyncio.sleep(0.01)
        pools: list[Any] = [fleet.shards.engine(shard).pool for shard in fleet.shards.ids]
        assert [pool.checkedout() for pool in pools] == [0, 0]
    finally:
        await raw.close()


async def test_shards_are_asked_at_the_same_time(fleet: Fleet) -> None:
    """Each waits for the other's statement to have begun: one after the other would never end."""
    first, second = await fleet.raw(SHARD_0), await fleet.raw(SHARD_1)
    try:
        locks = [connection.transaction() for connection in (first, second)]
        for lock, connection in zip(locks, (first, second), strict=True):
            await lock.start()
            await connection.execute("LOCK TABLE invoices")
        running = asyncio.create_task(fan_out(fleet.shards, fleet.tables, select(i.id), timeout_s=30))
        blocked = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'invoices'::regclass"
        async with asyncio.timeout(20):
            while [await c.fetchval(blocked) for c in (first, second)] != [1, 1]:  # noqa: ASYNC110 - no event to wait for
                await asyncio.sleep(0.01)
        for lock in locks:
            await lock.rollback()
        assert (await running).rows == []
    finally:
        await first.close()
        await second.close()


async def test_a_bucket_is_read_on_its_owner_alone(fleet: Fleet) -> None:
    """Leftovers of a moved bucket on its old shard, or a copy on its way, are not counted twice."""
    row = {**random_row(random.Random(1)), "bucket": 3, "id": NEW(Bucket(3)), "customer_id": NEW(Bucket(3))}
    await fleet.router.execute(insert(invoices), [row])
    raw = await fleet.raw(SHARD_1)
    await set_bucket_states(raw, [Bucket(3)], BucketState.OWNED, epoch=2)
    async with fleet.shards.session_on(SHARD_1) as session, session.begin():
        await session.execute(insert(invoices), [row])
    await raw.close()
    assert (await fan_out(fleet.shards, fleet.tables, select(i.id))).scalars() == [row["id"]]
    assert (await fan_out(fleet.shards, fleet.tables, select(func.count()).select_from(invoices))).scalar() == 1


async def test_pages_by_cursor_visit_every_row_once_while_rows_arrive(fleet: Fleet) -> None:
    """Newest first over all shards; what arrives meanwhile is newer and disturbs no page."""
    dice, cursors = random.Random(3), Cursors(b"k" * 32)
    rows = [random_row(dice) for _ in range(45)]
    await fleet.router.execute(insert(invoices), rows, each_alone=True)
    seen: list[Any] = []
    cursor: str | None = None
    while True:
        after = cursors.decode(cursor, "all") if cursor else None
        anyhow = select(i.id, i.created_at).order_by(i.pieces)
        statement = page(anyhow, i.created_at, i.id, after=after, limit=10)
        found = (await fan_out(fleet.shards, fleet.tables, statement)).rows
        seen += [row.id for row in found]
        if len(found) < 10:
            break
        cursor = cursors.encode(Position(found[-1].created_at, found[-1].id), "all")
        late = {**random_row(dice), "created_at": START + timedelta(days=3)}
        await fleet.router.execute(insert(invoices), [late])
    expected = sorted(rows, key=lambda row: (row["created_at"], row["id"]), reverse=True)
    assert seen == [row["id"] for row in expected]
