"""The SQL of locking and committed reads: names are quoted, and the select stays what it was."""

from __future__ import annotations

from sqlalchemy import Integer, select
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.sql.base import Executable

from coordinator.client import committed
from coordinator.client.statements import locking


class Base(DeclarativeBase):
    """The mapped classes of these tests."""


class Odd(Base):
    """A table whose names need quotes."""

    __tablename__ = "Te st"
    __table_args__ = {"schema": "Odd one"}
    id: Mapped[int] = mapped_column("Id", Integer, primary_key=True)


def sql(statement: Executable) -> str:
    compiled = statement.compile(dialect=postgresql.asyncpg.dialect())  # type: ignore[attr-defined]
    return " ".join(str(compiled).split())


def test_a_locking_read_wraps_the_select() -> None:
    """Condition, order and limit choose the rows; the lock is asked for in the same statement."""
    statement = sql(locking(select(Odd).where(Odd.id > 7).order_by(Odd.id).limit(3)))
    assert 'array((SELECT "Te st" FROM "Odd one"."Te st" WHERE "Odd one"."Te st"."Id" > ' in statement
    assert 'ORDER BY "Odd one"."Te st"."Id" LIMIT ' in statement
    assert 'FOR NO KEY UPDATE OF "Te st"' in statement
    assert "at.lock(array((" in statement


def test_a_committed_read_stands_in_place_of_the_table() -> None:
    """Twice in one statement it has two names."""
    first, second = committed(Odd), committed(Odd, own=True)
    statement = sql(select(first.id, second.id).where(first.id == second.id))
    assert 'at.committed(NULL::"Odd one"."Te st") AS anon_1' in statement
    assert 'at.committed(NULL::"Odd one"."Te st", true) AS anon_2' in statement
    assert 'anon_1."Id" = anon_2."Id"' in statement
