"""Where statements go: by their own criteria, or not at all."""

from __future__ import annotations

import enum
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import (
    CHAR,
    NCHAR,
    Column,
    Integer,
    MetaData,
    SmallInteger,
    String,
    Table,
    Uuid,
    bindparam,
    column,
    delete,
    exists,
    false,
    func,
    insert,
    literal,
    literal_column,
    not_,
    or_,
    select,
    table,
    text,
    true,
    union_all,
    update,
    values,
)
from sqlalchemy.dialects.postgresql import CITEXT, distinct_on
from sqlalchemy.dialects.postgresql import insert as pg_insert
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator

from sharding import Bucket, CannotPlace, IdMaker, Plan, ShardedTables, bucket_of, even_map, plan
from tests.support.fleet import SHARD_0, SHARD_1, colors, declared, invoices, lines, logins

MAP = even_map([SHARD_0, SHARD_1])
IDS = IdMaker()
ID_3, ID_4, ID_900 = IDS(Bucket(3)), IDS(Bucket(4)), IDS(Bucket(900))
i, d, g = invoices.c, lines.c, logins.c
OTHER = invoices.alias()
PAIR = invoices.join(OTHER, true())
ALL_LINES = select(func.max(d.line)).scalar_subquery()
GONE = delete(invoices).returning(i.id).cte("gone")
UPSERT = pg_insert(invoices).values(id=ID_3)


class Base(DeclarativeBase):
    """Mapped classes of this test."""


class Note(Base):
    """A mapped class whose attribute and column have different names."""

    __tablename__ = "notes"
    home: Mapped[int] = mapped_column("bucket", primary_key=True)
    id: Mapped[UUID] = mapped_column(primary_key=True)
    body: Mapped[str | None]


class LowerCase(TypeDecorator[str]):
    """A type that sends something else than it is given."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: object) -> str | None:
        return None if value is None else value.lower()


class Name(str, enum.Enum):  # noqa: UP042 - a StrEnum has the text of its value, this has not
    """Text with a text of its own."""

    ANNA = "anna"


def tables() -> ShardedTables:
    made = declared()
    made.sharded(Note, id_columns=("id",))
    return made


def planned(statement: Any, parameters: Any = None, **options: Any) -> Plan:
    return plan(statement, parameters, tables(), MAP, **options)


def buckets(statement: Any, parameters: Any = None) -> set[int] | None:
    """The buckets that a read is placed on; None for a fan-out over all."""
    found = {int(b) for part in planned(statement, parameters).parts for b in part.buckets}
    return None if len(found) == 1024 else found


PLACED = [
    (select(invoices).where(i.bucket == 3), {3}),
    (select(invoices).where(literal(3) == i.bucket), {3}),
    (select(invoices).where(i.id == ID_3), {3}),
    (select(invoices).where(i.id == str(ID_3)), {3}),
    (select(invoices.c.pieces).where(i.customer_id == ID_900, i.pieces > 1), {900}),
    (select(logins).where(g.login == "anna"), {bucket_of("anna")}),
    (select(logins).where(g.login == Name.ANNA), {bucket_of("anna")}),
    (select(logins).where(g.login == literal("ANNA", LowerCase)), None),
    (select(logins).where(g.login.in_(bindparam("x", ["ANNA"], expanding=True, type_=LowerCase))), None),
    (select(logins).where(g.login == literal("ANNA", CITEXT)), None),
    (select(logins).where(g.login == literal("anna", CHAR(9))), None),
    (select(invoices).where(i.id.in_([ID_3, ID_4])), {3, 4}),
    (select(invoices).where(i.id.in_([ID_3, ID_900])), {3, 900}),
    (select(invoices).where(or_(i.id == ID_3, i.bucket == 7)), {3, 7}),
    (select(invoices).where(or_(i.id == ID_3, i.pieces == 7)), None),
    (select(invoices).where(or_(i.id == ID_3, i.pieces == 7), i.bucket.in_([3, 5])), {3, 5}),
    (select(invoices).where(i.id.in_([ID_3, ID_4]), i.bucket == 4), {4}),
    (select(invoices).where(not_(i.bucket == 3)), None),
    (select(invoices).where(not_(or_(i.bucket == 3, i.bucket == 4))), None),
    (select(invoices).where(i.bucket != 3), None),
    (select(invoices).where(i.bucket > 3), None),
    (select(invoices).where(i.bucket.is_(None)), None),
    (select(invoices).where(i.bucket == i.pieces), None),
    (select(invoices).where(i.bucket == 3.0), None),
    (select(invoices).where(i.bucket == func.abs(3)), None),
    (select(invoices), None),
    (select(Note).where(Note.id == ID_3), {3}),
    (select(Note).where(Note.home == 9), {9}),
    (select(Note).filter_by(home=9, body="x"), {9}),
    (select(func.count()).select_from(invoices).where(i.id == ID_3), {3}),
    (select(invoices, lines).join(lines, d.invoice_id == i.id).where(i.customer_id == ID_3), {3}),
    (select(invoices, lines).join(lines, d.invoice_id == i.id).where(d.bucket == 4), {4}),
    (select(invoices, lines).join(lines, d.bucket == i.bucket), None),
    (select(invoices, lines).join(lines, d.invoice_id == i.id, isouter=True).where(i.bucket == 4), {4}),
    (select(invoices, lines).join(lines, d.invoice_id == i.id, isouter=True).where(d.bucket == 4), {4}),
    (select(invoices, lines).join(lines, (d.invoice_id == i.id) & (d.bucket == 4), isouter=True), None),
    (select(invoices).where(exists().where(d.invoice_id == i.id)), None),
    (select(invoices).where(~exists().where(d.invoice_id == i.id, d.bucket == 5), i.bucket == 5), {5}),
    (select(invoices).where(i.id.in_(select(d.invoice_id).where(d.bucket == 6)), i.bucket == 6), {6}),
]


@pytest.mark.parametrize(("statement", "expected"), PLACED)
def test_a_read_is_placed_by_what_its_criteria_really_say(statement: Any, expected: set[int] | None) -> None:
    """AND narrows, OR widens, and what only looks like a placement is none."""
    assert buckets(statement) == expected


def test_values_come_from_bind_parameters_too() -> None:
    """A parameter given at execution places; one that is missing is named; NULL matches nothing."""
    statement = select(invoices).where(i.bucket == bindparam("b"))
    assert buckets(statement, {"b": 12}) == {12}
    with pytest.raises(CannotPlace, match="parameter b has no value"):
        planned(statement)
    assert planned(statement, {"b": None}).parts[0].buckets == frozenset()
    listed = select(invoices).where(i.bucket.in_(bindparam("bs", expanding=True)))
    assert buckets(listed, {"bs": [1, 2]}) == {1, 2}


def test_criteria_that_contradict_themselves_run_on_one_shard() -> None:
    """They match nothing there either, and the answer has the right form."""
    for criterion in (i.bucket.in_([]), false(), (i.bucket == 3) & (i.bucket == 900)):
        assert len(planned(select(invoices).where(criterion)).parts) == 1


REFUSED = [
    (select(invoices).where(text("a = 1 OR b = 2"), i.bucket == 3), "text"),
    (select(invoices).where(literal_column("a = 1 OR true"), i.bucket == 3), "text"),
    (text("SELECT 1"), "key="),
    (select(invoices, lines).where(i.bucket == 3), "lines"),
    (select(invoices, lines), "joined to rows of other buckets"),
    (select(invoices).where(i.id == ID_3, exists().where(d.line == 1)), "nested select reads it on all shards"),
    (select(invoices).where(~exists().where(d.invoice_id == i.id).correlate(None)), "uncorrelated|without correlation"),
    (select(invoices).join(lines, d.line == i.pieces, isouter=True).where(i.bucket == 3), "lines"),
    (select(invoices).join(lines, d.invoice_id == i.id, full=True), "full outer join"),
    (
        select(i.id, OTHER.c.id).join_from(PAIR, lines, (i.id == OTHER.c.id) & (d.line == 1), isouter=True),
        "other buckets",
    ),
    (
        select(i.id, OTHER.c.id)
        .join_from(PAIR, lines, (i.id == OTHER.c.id) & (d.invoice_id == i.id), isouter=True)
        .where(i.bucket == 3),
        "other buckets",
    ),
    (select(colors), "colors"),
    (select(table("invoices")), "bare table"),
    (select(func.now()), "reads no sharded table"),
    (select(invoices).where(i.id == ID_3, i.id.in_(select(d.invoice_id).where(d.bucket == 900))), "2 shards"),
    (union_all(select(i.id).where(i.bucket == 1), select(i.id)), "each part of a union"),
    (union_all(select(i.id).where(i.bucket == 1), select(i.id).where(i.bucket == 1)).add_cte(GONE), "CTE of its own"),
    (union_all(select(i.id).where(i.bucket == 1), select(i.id).where(i.bucket == 1)).order_by(ALL_LINES), "nested"),
    (select(i.id).where(i.bucket == 3).add_cte(GONE), "CTE of its own"),
    (select(i.id).where(i.bucket == 3, exists(select(d.line).where(d.bucket == 3).add_cte(GONE))), "CTE of its own"),
    (select(i.id, GONE.c.id).where(i.bucket == 3), "nested insert, update or delete"),
    (select(i.id).where(i.bucket == 3, i.id.in_(select(GONE.c.id))), "nested insert, update or delete"),
    (select(i.id, func.unnest(ALL_LINES).table_valued("x").c.x).where(i.bucket == 3), "lines"),
    (
        select(i.id)
        .join_from(invoices, values(column("x", Integer), name="v").data([(ALL_LINES,)]), true())
        .where(i.bucket == 3),
        "lines",
    ),
    (select(i.id).distinct(ALL_LINES).where(i.bucket == 3), "lines"),
    (select(i.id).ext(distinct_on(ALL_LINES)).where(i.bucket == 3), "lines"),
    (select(select(invoices).subquery()), "reads no sharded table|all shards"),
    (update(invoices).values(pieces=1), "does not say where: add one of bucket, id, customer_id"),
    (update(invoices).values(pieces=1).where(i.pieces == 2), "does not say where"),
    (delete(invoices), "does not say where"),
    (update(invoices).values(bucket=4).where(i.bucket == 3), "never changes"),
    (update(invoices).values(id=ID_4).where(i.id == ID_3), "never changes"),
    (update(Note).values(home=3).where(Note.home == 3), "never changes"),
    (update(invoices).values(pieces=d.line).where(i.id == ID_3), "lines"),
    (delete(invoices).where(i.bucket == 3, i.pieces == d.line), "lines"),
    (insert(invoices), "no values"),
    (insert(invoices).values(id=ID_3, pieces=ALL_LINES), "nested select"),
    (insert(invoices).values([{"id": ID_3, "pieces": ALL_LINES}]), "nested select"),
    (insert(invoices).values(id=ID_3, pieces=text("(SELECT 1)")), "text"),
    (insert(invoices).values(id=ID_3).returning(ALL_LINES), "nested select"),
    (UPSERT.on_conflict_do_update(index_elements=["bucket", "id"], set_={"pieces": ALL_LINES}), "nested select"),
    (
        UPSERT.on_conflict_do_update(index_elements=["bucket", "id"], set_={"pieces": 1}, where=exists(select(d.line))),
        "nested select",
    ),
    (insert(invoices).values(pieces=1), "does not say where: give one of bucket, id"),
    (insert(invoices).values(bucket=func.abs(3)), "plain value"),
    (insert(invoices).values(bucket=4, id=ID_3), "different buckets: bucket says 4, id says 3"),
    (insert(lines).from_select(["bucket"], select(i.bucket).where(i.bucket == 3)), "INSERT ... SELECT"),
    (pg_insert(invoices).values(id=ID_3).on_conflict_do_update(index_elements=["id"], set_={"bucket": 3}), "upsert"),
]


@pytest.mark.parametrize(("statement", "words"), REFUSED)
def test_what_cannot_be_placed_is_refused_with_the_way_out(statement: Any, words: str) -> None:
    """The message names the table or the part, and what to add."""
    with pytest.raises(CannotPlace, match=words):
        planned(statement)


def test_what_parameters_add_to_an_update_cannot_move_a_row_either() -> None:
    """SQLAlchemy sets a column that a parameter names, beside those of values()."""
    statement = update(invoices).values(pieces=1).where(i.bucket == 3)
    with pytest.raises(CannotPlace, match="id places the row and never changes"):
        planned(statement, {"id": ID_900})


def test_an_order_of_parameters_that_shards_cannot_keep_is_refused() -> None:
    """RETURNING over two shards comes shard by shard; on one it keeps the order asked for."""
    statement = insert(invoices).returning(i.id, sort_by_parameter_order=True)
    assert len(planned(statement, [{"id": ID_4}, {"id": ID_3}]).parts) == 1
    with pytest.raises(CannotPlace, match="sort_by_parameter_order"):
        planned(statement, [{"id": ID_900}, {"id": ID_3}])


def test_only_leaves_out_all_other_buckets() -> None:
    """Also where nothing is left, and never silently: a join is refused instead of being read whole."""
    only = frozenset({Bucket(900)})
    (part,) = planned(delete(invoices).where(i.bucket == 3), only=only).parts
    assert part.buckets == frozenset()
    assert "ANY" in str(part.statement)
    joined = select(invoices, OTHER).where(i.bucket == 3, OTHER.c.bucket == 4)
    assert len(planned(joined, only=frozenset({Bucket(3), Bucket(4), Bucket(5)})).parts) == 1
    with pytest.raises(CannotPlace, match="cannot leave out buckets"):
        planned(joined, only=frozenset({Bucket(3)}))


def test_an_explicit_key_places_anything() -> None:
    """The caller vouches: text() and undeclared tables go where the key lives."""
    assert planned(text("SELECT 1"), key=ID_900).parts[0].shard == SHARD_1
    assert planned(select(colors), key="anna").parts[0].shard == MAP.shard_of(bucket_of("anna"))
    assert planned(text("DELETE FROM x"), key=Bucket(3)).writes


def test_writes_go_where_their_criteria_or_values_say() -> None:
    """One shard by one bucket; several parts, each narrowed to its own buckets, by several."""
    assert planned(update(invoices).values(pieces=1).where(i.id == ID_900)).parts[0].shard == SHARD_1
    assert planned(delete(Note).where(Note.id == ID_3)).parts[0].shard == SHARD_0
    both = planned(delete(invoices).where(i.id.in_([ID_3, ID_900])))
    assert [(part.shard, set(part.buckets)) for part in both.parts] == [(SHARD_0, {3}), (SHARD_1, {900})]
    assert all("bucket BETWEEN" in str(part.statement) for part in both.parts)


def test_inserts_are_split_by_shard_and_get_their_bucket() -> None:
    """Every row reaches exactly one shard, with its bucket filled in where only an id was given."""
    rows = [{"id": ID_3, "pieces": 1}, {"id": ID_900, "pieces": 2}, {"id": ID_4, "pieces": 3}]
    many = planned(insert(invoices), rows)
    assert [(p.shard, [(r["bucket"], r["pieces"]) for r in p.parameters]) for p in many.parts] == [  # type: ignore[union-attr]
        (SHARD_0, [(3, 1), (4, 3)]),
        (SHARD_1, [(900, 2)]),
    ]
    inline = planned(insert(invoices).values(rows))
    assert [p.statement.compile().params for p in inline.parts][1] == {
        "id_m0": ID_900,
        "pieces_m0": 2,
        "bucket_m0": 900,
    }
    one = planned(insert(invoices).values(id=ID_900)).parts[0]
    assert one.statement.compile().params == {"id": ID_900, "bucket": 900}
    given = planned(insert(invoices), {"id": ID_900}).parts[0]
    assert (given.shard, given.statement.compile(column_keys=["id"]).params["bucket"]) == (SHARD_1, 900)
    mapped = planned(insert(Note), [{"id": ID_900, "body": "x"}]).parts[0]
    assert (mapped.shard, mapped.parameters) == (SHARD_1, [{"id": ID_900, "body": "x", "home": 900}])


def test_a_default_that_knows_nothing_of_the_bucket_is_no_id() -> None:
    """A row whose id carries another bucket than its own would never be found by it."""
    made = ShardedTables()
    bills = Table(
        "bills", MetaData(), Column("bucket", SmallInteger, primary_key=True), Column("id", Uuid, default=IdMaker())
    )
    made.sharded(bills, id_columns=("id",))
    with pytest.raises(CannotPlace, match="the default of id"):
        plan(insert(bills).values(bucket=3), None, made, MAP)
    assert len(plan(insert(bills).values(bucket=3, id=ID_3), None, made, MAP).parts) == 1


def test_a_made_up_id_is_looked_up_on_some_shard_and_found_nowhere() -> None:
    """An id that carries no bucket is hashed, so a stranger's guess is no error."""
    assert len(planned(select(invoices).where(i.id == uuid4())).parts) == 1


def test_an_alias_is_an_instance_of_its_own() -> None:
    """What restricts one alias of a table says nothing of another."""
    other = invoices.alias()
    with pytest.raises(CannotPlace):
        planned(select(invoices, other).where(i.bucket == 3))
    assert buckets(select(invoices, other).where(i.bucket == 3, other.c.bucket == 4)) == {3, 4}
    assert buckets(select(invoices, other).where(i.bucket == 3, other.c.customer_id == i.id)) == {3}
    with pytest.raises(CannotPlace, match="2 shards"):
        planned(select(invoices, other).where(i.bucket == 3, other.c.bucket == 900))


def test_columns_that_cannot_place_are_refused_when_they_are_declared() -> None:
    """Missing columns, and types whose equality is not that of their bytes."""
    for options in ({"key": "nothing"}, {"id_columns": ("pieces",)}, {"bucket": "title"}, {"key": "amount"}):
        with pytest.raises(CannotPlace):
            ShardedTables().sharded(invoices, **options)  # type: ignore[arg-type]
    for kind in (CHAR(5), NCHAR(5), CITEXT(), LowerCase(), String().with_variant(CHAR(5), "postgresql")):
        odd = Table("odd", MetaData(), Column("bucket", SmallInteger), Column("login", kind))
        with pytest.raises(CannotPlace, match="cannot be a key column"):
            ShardedTables().sharded(odd, key="login")
