"""Mapped classes through the router: entities in, entities out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import SmallInteger, delete, func, insert, select, update
from sqlalchemy.orm import DeclarativeBase, Mapped, aliased, mapped_column

from sharding import Bucket, IdMaker, Router
from tests.support.fleet import SHARD_0, SHARD_1, Fleet, declared

NEW = IdMaker()
BUCKETS = (Bucket(3), Bucket(900))


class Base(DeclarativeBase):
    """Mapped classes of this test."""


class Note(Base):
    """A mapped class whose attribute for the bucket has another name than the column."""

    __tablename__ = "mapped_notes"
    home: Mapped[int] = mapped_column("bucket", SmallInteger, primary_key=True)
    id: Mapped[UUID] = mapped_column(primary_key=True)
    body: Mapped[str | None]


@pytest.fixture
async def router(fleet: Fleet) -> AsyncIterator[Router]:
    """The fleet with the table of Note, empty."""
    for shard in (SHARD_0, SHARD_1):
        async with fleet.shards.engine(shard).begin() as connection:
            await connection.run_sync(Base.metadata.drop_all)
            await connection.run_sync(Base.metadata.create_all)
    tables = declared()
    tables.sharded(Note, id_columns=("id",))
    yield Router(fleet.shards, tables)
    for shard in (SHARD_0, SHARD_1):
        async with fleet.shards.engine(shard).begin() as connection:
            await connection.run_sync(Base.metadata.drop_all)


def rows() -> list[dict[str, Any]]:
    return [{"id": NEW(bucket), "body": str(bucket)} for bucket in BUCKETS]


FORMS = [
    (insert(Note), rows()),
    (insert(Note).values(body="x"), [{"id": NEW(bucket)} for bucket in BUCKETS]),
    (insert(Note), rows()[0]),
    (insert(Note).values(rows()), None),
    (insert(Note).values([{Note.id: NEW(BUCKETS[1]), Note.body: "x"}]), None),
    (insert(Note).values(rows()[1]), None),
    (insert(Note.__table__).values(body="x"), [{"id": NEW(bucket)} for bucket in BUCKETS]),  # type: ignore[arg-type]
    (insert(Note).returning(Note), rows()),
]


@pytest.mark.parametrize(("statement", "given"), FORMS)
async def test_the_bucket_is_filled_in_whatever_the_form_of_the_insert(
    router: Router, statement: Any, given: Any
) -> None:
    """By attribute, by column, in values() or in parameters: each row is written once, in its bucket."""
    answer = await router.execute(statement, given, each_alone=True)
    found = (await router.execute(select(Note).order_by(Note.id))).scalars()
    assert 1 <= len(found) <= 2
    assert {note.home for note in found} <= {3, 900}
    assert [note.id for note in answer.scalars()] in ([], [note.id for note in found])


async def test_entities_are_merged_and_writes_are_counted(router: Router) -> None:
    """Order, limit, aliases and joins over shards; updates and deletes say how many rows they touched."""
    given = [row for _ in range(3) for row in rows()]
    await router.execute(insert(Note), given, each_alone=True)
    ids = sorted((row["id"] for row in given), reverse=True)
    newest = await router.execute(select(Note).order_by(Note.id.desc()).limit(4))
    assert [note.id for note in newest.scalars()] == ids[:4]
    other = aliased(Note)
    joined = await router.execute(select(Note.home, other.body).join(other, other.id == Note.id).order_by(Note.id))
    assert [tuple(row) for row in joined.rows] == [(3, "3")] * 3 + [(900, "900")] * 3
    assert (await router.execute(select(func.count(Note.id)))).scalar() == 6
    assert (await router.execute(update(Note).values(body="y").where(Note.home == 3))).rowcount == 3
    assert (await router.execute(delete(Note).where(Note.home.in_(BUCKETS)), each_alone=True)).rowcount == 6
