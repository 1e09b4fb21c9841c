"""Random statements through the router against the same statements in one unsharded database.

Whatever the router answers is the truth; what it cannot place or merge it may refuse. Leftovers of buckets that the map
places elsewhere lie in both shards: a statement that runs where it should not would see them.
"""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import (
    and_,
    any_,
    bindparam,
    delete,
    exists,
    func,
    insert,
    literal,
    not_,
    or_,
    select,
    text,
    true,
    tuple_,
    union_all,
    update,
)
from sqlalchemy.dialects.postgresql import array
from sqlalchemy.exc import DBAPIError, SAWarning
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.sql import operators
from sqlalchemy.sql.elements import BooleanClauseList

from sharding import Bucket, CannotMerge, CannotPlace, IdMaker, bucket_of
from sharding.criteria import _Scope
from tests.support.fleet import SHARD_0, SHARD_1, Fleet, invoices, lines, logins, metadata

ROUNDS = int(os.environ.get("ROUTER_ROUNDS", "3"))
STATEMENTS_PER_ROUND = 120
PLANTED_ROUNDS_MAX = 20
ANSWERED_SHARE_MIN = 0.15
BUCKETS = [Bucket(number) for number in (3, 4, 511, 512, 900)]
START = datetime(2026, 11, 1, tzinfo=UTC)
NOW_MS = 1_793_491_200_000
PLACING = {
    "invoices": ("bucket", "id", "customer_id"),
    "lines": ("bucket", "invoice_id"),
    "logins": ("bucket", "login"),
}
KEYS = {table.name: [column.name for column in table.primary_key] for table in (invoices, lines, logins)}
NUMBER = {"invoices": "pieces", "lines": "line", "logins": "bucket"}
NAMES = [f"name-{number}" for number in range(8)]

Criteria = Any
Rows = dict[str, list[dict[str, Any]]]


@pytest.fixture
async def whole(database: str) -> AsyncIterator[AsyncEngine]:
    """One database with the same tables, unsharded."""
    engine = create_async_engine(database.replace("postgresql://", "postgresql+asyncpg://"))
    async with engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
    yield engine
    await engine.dispose()


def id_maker(dice: random.Random) -> IdMaker:
    """Makes the same ids from the same dice."""
    return IdMaker(lambda: NOW_MS, dice.randbytes)


def stranger(dice: random.Random) -> UUID:
    """A UUID that carries no bucket."""
    return UUID(bytes=dice.randbytes(16), version=4)


def random_rows(dice: random.Random) -> Rows:
    """Customers in few buckets, so that random criteria meet rows, on both sides of the border between the shards."""
    made: Rows = {"invoices": [], "lines": [], "logins": []}
    new = id_maker(dice)
    for _ in range(25):
        bucket = dice.choice(BUCKETS)
        row = {"bucket": bucket, "id": new(bucket), "customer_id": new(bucket)}
        pieces, note = dice.choice([None, *range(4)]), dice.choice([None, "a", "b"])
        made["invoices"].append({**row, "created_at": START + timedelta(days=1), "pieces": pieces, "note": note})
        for line in range(dice.randrange(3)):
            made["lines"].append({"bucket": bucket, "invoice_id": row["id"], "line": line, "text": note})
    for name in NAMES:
        made["logins"].append({"bucket": bucket_of(name), "login": name, "customer_id": stranger(dice)})
    return made


class Statements:
    """Makes random statements over rows that are there; `parameters` are those of the last one made."""

    def __init__(self, dice: random.Random, rows: Rows) -> None:
        self.dice = dice
        self.rows = rows
        self.parameters: dict[str, Any] = {}
        self.wrapped: dict[Any, str] = {}
        """Nested selects that stand in a FROM, with the table that they show."""

    def read(self) -> Any:
        """A select: of one table or several, joined in any way, nested, counted or cut."""
        self.parameters = {}
        if self.dice.random() < 0.1:
            return union_all(*(self._plain_select(limited=False) for _ in range(2)))
        return self._plain_select(limited=True)

    def write(self) -> Any:
        """An update or delete of one table."""
        self.parameters = {}
        target = self.dice.choice([invoices, lines])
        where = [self._criteria([target], 2) for _ in range(self.dice.randrange(3))]
        if self.dice.random() < 0.2:
            return delete(target).where(*where)
        changed = {"invoices": {"note": invoices.c.note + "x"}, "lines": {"text": lines.c.text + "x"}}[target.name]
        if self.dice.random() < 0.2:
            other = self._instance()
            where += [self._tie(target, other), self._criteria([target, other], 1)]
        return update(target).values(**changed).where(*where)

    def _plain_select(self, *, limited: bool) -> Any:
        instances = [self._instance()]
        source: Any = instances[0]
        loose = []
        for _ in range(self.dice.choice([0, 0, 0, 1, 1, 2])):
            other = self._wrapped() if self.dice.random() < 0.2 else self._instance()
            instances.append(other)
            on = self._tie(self.dice.choice(instances[:-1]), other)
            if self.dice.random() < 0.3:
                on = and_(on, self._criteria(instances, 1))
            kind = self.dice.choice(["inner", "outer", "where", "swapped"])
            if kind == "where":
                source, loose = source.join(other, literal(1) == 1), [*loose, on]
            elif kind == "swapped":
                source = other.join(source, on, isouter=self.dice.random() < 0.5)
            else:
                source = source.join(other, on, isouter=kind == "outer")
        where = [*loose, *(self._criteria(instances, 2) for _ in range(self.dice.randrange(3)))]
        keys = [one.c[name] for one in instances for name in KEYS[self._name(one)]]
        if limited and self.dice.random() < 0.2:
            number = instances[0].c[NUMBER[self._name(instances[0])]]
            return select(func.count(), func.sum(number), func.max(number)).select_from(source).where(*where)
        if limited and self.dice.random() < 0.2:
            inner = self._instance()
            computed = select(func.count()).select_from(inner).where(self._tie(inner, self.dice.choice(instances)))
            statement = select(*keys, computed.scalar_subquery().label("computed"))
        else:
            statement = select(*keys) if limited else select(instances[0].c.bucket)
        statement = statement.select_from(source).where(*where)
        if not limited:
            return statement
        logins_there = any(self._name(one) == "logins" for one in instances)
        if not logins_there and self.dice.random() < 0.5:
            statement = statement.order_by(*(key.desc() if self.dice.random() < 0.3 else key for key in keys))
            return statement.limit(self.dice.choice([0, 1, 5, 50])).offset(self.dice.choice([None, None, 2]))
        return statement

    def _instance(self) -> Any:
        table = self.dice.choice([invoices, invoices, lines, lines, logins])
        return table.alias()

    def _wrapped(self) -> Any:
        inner = self._instance()
        where = [self._criteria([inner], 1) for _ in range(self.dice.choice([0, 1, 1]))]
        shown_whole = select(inner).where(*where)
        made = shown_whole.cte() if self.dice.random() < 0.5 else shown_whole.subquery()
        self.wrapped[made] = self._name(inner)
        return made

    def _name(self, instance: Any) -> str:
        return self.wrapped.get(instance) or str(getattr(instance, "element", instance).name)

    def _tie(self, one: Any, other: Any) -> Criteria:
        """How two instances are joined: mostly by placing columns, right or not."""
        dice = self.dice
        ids = {"invoices": ["id", "id", "customer_id"], "lines": ["invoice_id"], "logins": ["customer_id"]}
        if dice.random() < 0.7:
            return one.c[dice.choice(ids[self._name(one)])] == other.c[dice.choice(ids[self._name(other)])]
        if dice.random() < 0.6:
            return one.c.bucket == other.c.bucket
        return one.c[NUMBER[self._name(one)]] == other.c[NUMBER[self._name(other)]]

    def _criteria(self, instances: list[Any], depth: int) -> Criteria:
        dice = self.dice
        if depth > 0 and dice.random() < 0.45:
            parts = [self._criteria(instances, depth - 1) for _ in range(dice.choice([1, 2, 2, 3]))]
            combined = dice.choice([and_, or_])(*parts)
            return not_(combined) if dice.random() < 0.2 else combined
        makers: list[Callable[[list[Any]], Criteria]] = [self._equal, self._equal, self._equal, self._in, self._other]
        if depth > 0:
            makers += [self._nested, self._nested]
        return dice.choice(makers)(instances)

    def _equal(self, instances: list[Any]) -> Criteria:
        dice, one = self.dice, self.dice.choice(instances)
        column = one.c[dice.choice(PLACING[self._name(one)])]
        value = self._value(column)
        form = dice.randrange(6)
        if form == 0:
            name = f"given_{len(self.parameters)}"
            self.parameters[name] = value
            return column == bindparam(name)
        if form == 1:
            return literal(value, column.type) == column
        if form == 2:
            return column == bindparam(None, value, column.type, literal_execute=True)
        if form == 3:
            return not_(column == value)
        return column == value

    def _in(self, instances: list[Any]) -> Criteria:
        dice, one = self.dice, self.dice.choice(instances)
        column = one.c[dice.choice(PLACING[self._name(one)])]
        values = [self._value(column) for _ in range(dice.choice([0, 1, 2, 2, 3]))]
        form = dice.randrange(5)
        if form == 0:
            name = f"given_{len(self.parameters)}"
            self.parameters[name] = values
            return column.in_(bindparam(name, expanding=True))
        if form == 1 and values:
            return column == any_(array(values, type_=column.type))
        if form == 2:
            return column.not_in(values)
        if form == 3 and values:
            return tuple_(one.c.bucket, column).in_([(self._value(one.c.bucket), value) for value in values])
        return column.in_(values)

    def _other(self, instances: list[Any]) -> Criteria:
        dice, one = self.dice, self.dice.choice(instances)
        number = one.c[NUMBER[self._name(one)]]
        return dice.choice(
            [
                lambda: number > dice.randrange(-1, 3),
                lambda: number.is_(None),
                lambda: one.c.bucket < dice.choice([4, 512, 901]),
                lambda: one.c.bucket != dice.choice(BUCKETS),
                lambda: one.c.bucket.between(3, dice.choice([4, 600])),
                lambda: func.coalesce(one.c.bucket, 3) == 3,
                lambda: one.c.bucket == number,
                lambda: one.c.bucket.is_not_distinct_from(dice.choice(BUCKETS)),
            ]
        )()

    def _nested(self, instances: list[Any]) -> Criteria:
        dice, outer, inner = self.dice, self.dice.choice(instances), self._instance()
        where = [self._criteria([inner], 1) for _ in range(dice.choice([0, 1, 1]))]
        if dice.random() < 0.7:
            where.append(self._tie(inner, outer))
        if dice.random() < 0.25:
            # Nested once more, tied to the one outside or to the outermost.
            innermost = self._instance()
            tie = self._tie(innermost, dice.choice([inner, outer]))
            where.append(exists(select(innermost.c.bucket).where(tie).correlate(inner, outer)))
        form = dice.randrange(4)
        if form == 0:
            return outer.c.bucket.in_(select(inner.c.bucket).where(*where))
        if form == 1:
            number = inner.c[NUMBER[self._name(inner)]]
            return outer.c[NUMBER[self._name(outer)]] <= select(func.max(number)).where(*where).scalar_subquery()
        found = exists(select(inner.c.bucket).where(*where))
        return ~found if form == 2 else found

    def _value(self, column: Any) -> Any:
        dice = self.dice
        if column.name == "bucket":
            return dice.choice(BUCKETS)
        if column.name == "login":
            return dice.choice(NAMES)
        ids: list[UUID] = [row[name] for row in self.rows["invoices"] for name in ("id", "customer_id")]
        return dice.choice([*ids, *ids, stranger(dice), id_maker(dice)(dice.choice(BUCKETS))])


async def load(fleet: Fleet, whole: AsyncEngine, rows: Rows) -> None:
    """The same rows on both sides, and leftovers of shard 0 on shard 1 and the other way round."""
    for table in (invoices, lines, logins):
        async with whole.begin() as connection:
            await connection.execute(insert(table), rows[table.name])
        await fleet.router.execute(insert(table), rows[table.name], each_alone=True)
        for shard in (SHARD_0, SHARD_1):
            foreign = [row for row in rows[table.name] if fleet.shards.shard_of(row["bucket"]) != shard]
            async with fleet.shards.engine(shard).begin() as connection:
                await connection.execute(text("SET LOCAL session_replication_role = replica"))
                await connection.execute(insert(table), foreign)


def shown(rows: Any) -> list[str]:
    """Rows in a form that sorts."""
    return [repr(tuple(row)) for row in rows]


async def content(fleet: Fleet, whole: AsyncEngine, table: Any) -> tuple[list[str], list[str]]:
    """What a table holds in the fleet, where rows belong, and in the one database."""
    found = []
    for shard in (SHARD_0, SHARD_1):
        async with fleet.shards.engine(shard).connect() as connection:
            rows = (await connection.execute(select(table))).all()
        found += [row for row in rows if fleet.shards.shard_of(Bucket(row.bucket)) == shard]
    async with whole.connect() as connection:
        return sorted(shown(found)), sorted(shown((await connection.execute(select(table))).all()))


@pytest.mark.filterwarnings(f"ignore::{SAWarning.__module__}.{SAWarning.__name__}")  # cartesian products are meant
@pytest.mark.parametrize("seed", range(ROUNDS))
async def test_the_router_reads_as_one_database_would_or_refuses(fleet: Fleet, whole: AsyncEngine, seed: int) -> None:
    """Criteria, joins, nested selects, unions and parameters: no row missing, none twice, none of a leftover."""
    statements = Statements(random.Random(seed), random_rows(random.Random(seed)))
    await load(fleet, whole, statements.rows)
    answered = await compare_reads(fleet, whole, statements)
    assert answered > ANSWERED_SHARE_MIN * STATEMENTS_PER_ROUND


async def test_the_comparison_notices_leftovers_that_are_not_left_out(
    fleet: Fleet, whole: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planted fault: a fan-out in which each shard answers for all that it holds."""
    monkeypatch.setattr("sharding.routing.within", lambda column, buckets: true())
    await the_comparison_fails(fleet, whole)


async def test_the_comparison_notices_criteria_that_are_misread(
    fleet: Fleet, whole: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planted fault: of an OR only the parts are heard that name a place."""
    read: Callable[..., Any] = _Scope._allowed

    def misread(scope: _Scope, clause: Any, members: frozenset[int]) -> Any:
        found = read(scope, clause, members)
        if found is None and isinstance(clause, BooleanClauseList) and clause.operator is operators.or_:
            known = [part for part in (read(scope, part, members) for part in clause.clauses) if part is not None]
            return frozenset().union(*known) if known else None
        return found

    monkeypatch.setattr(_Scope, "_allowed", misread)
    await the_comparison_fails(fleet, whole)


async def the_comparison_fails(fleet: Fleet, whole: AsyncEngine) -> None:
    """Within PLANTED_ROUNDS_MAX rounds."""
    rows = random_rows(random.Random(0))
    await load(fleet, whole, rows)

    async def compare() -> None:
        for seed in range(PLANTED_ROUNDS_MAX):
            await compare_reads(fleet, whole, Statements(random.Random(seed), rows))

    with pytest.raises(AssertionError):
        await compare()


async def compare_reads(fleet: Fleet, whole: AsyncEngine, statements: Statements) -> int:
    """How many of STATEMENTS_PER_ROUND statements were answered, each as in one database."""
    answered = 0
    for _ in range(STATEMENTS_PER_ROUND):
        statement = statements.read()
        given = statements.parameters or None
        try:
            answer = await fleet.router.execute(statement, given)
        except (CannotPlace, CannotMerge):
            continue
        except DBAPIError:
            async with whole.connect() as connection:
                with pytest.raises(DBAPIError):
                    await connection.execute(statement, given)
            continue
        answered += 1
        async with whole.connect() as connection:
            expected = shown((await connection.execute(statement, given)).all())
        got = shown(answer.rows)
        if getattr(statement, "_limit_clause", None) is None:
            got, expected = sorted(got), sorted(expected)
        assert got == expected, f"{statement}\n{statement.compile().params}\n{given}"
    return answered


@pytest.mark.parametrize("seed", range(ROUNDS))
async def test_the_router_writes_as_one_database_would_or_refuses(fleet: Fleet, whole: AsyncEngine, seed: int) -> None:
    """Updates and deletes touch the rows that they would touch there, and count them."""
    statements = Statements(random.Random(seed), random_rows(random.Random(seed)))
    await load(fleet, whole, statements.rows)
    answered = 0
    for _ in range(STATEMENTS_PER_ROUND):
        statement = statements.write()
        given = statements.parameters or None
        try:
            answer = await fleet.router.execute(statement, given, each_alone=True)
        except CannotPlace:
            continue
        answered += 1
        async with whole.begin() as connection:
            result: Any = await connection.execute(statement, given)
        assert answer.rowcount == result.rowcount, f"{statement}\n{statement.compile().params}\n{given}"
        there, expected = await content(fleet, whole, statement.table)
        assert there == expected, f"{statement}\n{statement.compile().params}\n{given}"
    assert answered > ANSWERED_SHARE_MIN * STATEMENTS_PER_ROUND
