"""Locking and committed reads as SQLAlchemy statements. Imported only where SQLAlchemy is used."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Column, FromClause, Select, Table, column, func, literal_column, select, true
from sqlalchemy import inspect as inspected
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import NoInspectionAvailable
from sqlalchemy.orm import Mapper, aliased
from sqlalchemy.sql.base import Executable

_dialect: Any = postgresql.dialect
_QUOTING = _dialect().identifier_preparer


def locking(statement: Select[Any]) -> Executable:
    """The select of one mapped class, rewritten to lock its rows. Raises TypeError for any other statement."""
    if not isinstance(statement, Select):
        raise TypeError(f"lock() needs a select, not {type(statement).__name__}")
    described = statement.column_descriptions
    entity = described[0]["entity"] if len(described) == 1 else None
    if entity is None or described[0]["expr"] is not entity or described[0]["aliased"]:
        raise TypeError("lock() needs a select of one mapped class: columns, aggregates and aliases cannot be locked")
    table = _table_of(entity)
    row: Any = literal_column(_QUOTING.quote(table.name))
    picked = statement.with_only_columns(row, maintain_column_froms=True).with_for_update(key_share=True, of=table)
    rows = _rows_of(table, func.at.lock(func.array(picked.scalar_subquery())))
    read = select(entity).from_statement(select(*rows.c))
    return read.options(*statement._with_options)


def committed_entity(entity: Any, *, own: bool) -> Any:
    """See reads.committed."""
    table = _table_of(entity)
    arguments = [literal_column(f"NULL::{_QUOTING.format_table(table)}"), *([true()] if own else [])]
    return aliased(entity, _rows_of(table, func.at.committed(*arguments)), adapt_on_names=True)


def _rows_of(table: Table, function: Any) -> FromClause:
    columns: list[Any] = [column(known.name, known.type) for known in table.columns if isinstance(known, Column)]
    rows: FromClause = function.table_valued(*columns)
    return rows


def _table_of(entity: Any) -> Table:
    try:
        mapper = inspected(entity)
    except NoInspectionAvailable:
        mapper = None
    if not isinstance(mapper, Mapper) or not isinstance(mapper.local_table, Table) or len(mapper.tables) != 1:
        raise TypeError(f"{entity!r} is no class that is mapped to one table")
    return mapper.local_table
