"""Declarations: which tables are sharded, and which of their columns say where a row lives."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal
from uuid import UUID

from sqlalchemy import CHAR, NCHAR, Enum, Integer, LargeBinary, String, Table, Uuid, inspect
from sqlalchemy.dialects.postgresql import CITEXT
from sqlalchemy.orm import Mapper
from sqlalchemy.sql.schema import Column
from sqlalchemy.types import NullType

from sharding.buckets import Bucket, bucket, bucket_of
from sharding.errors import CannotPlace, NotAKey
from sharding.ids import bucket_for

Kind = Literal["bucket", "id", "key"]


def is_text(kind: Any) -> bool:
    """Whether a type is text compared by its characters alone: no CHAR, CITEXT, enumeration or decorated type."""
    kind = kind._variant_mapping.get("postgresql", kind)
    return isinstance(kind, String) and not isinstance(kind, CHAR | NCHAR | CITEXT | Enum)


def is_sent_as_given(kind: Any) -> bool:
    """Whether the value of a parameter of this type reaches PostgreSQL, and is compared there, as it is here."""
    kind = kind._variant_mapping.get("postgresql", kind)
    return isinstance(kind, Integer | Uuid | LargeBinary | NullType) or is_text(kind)


@dataclass(frozen=True)
class PlacingColumn:
    """A column whose value tells the bucket of its row.

    `names` are what an insert may call it; `attribute` is its name in a mapped class, the column's key without one.
    """

    column: Column[Any]
    kind: Kind
    names: frozenset[str]
    attribute: str

    def bucket_of(self, value: object) -> Bucket | None:
        """The bucket of rows with `value` here; None when the value does not tell (wrong type, out of range)."""
        value = self._normal(value)
        try:
            if self.kind == "bucket":
                return bucket(value) if isinstance(value, int) else None
            if isinstance(value, UUID):
                return bucket_for(value)
            return bucket_of(value) if isinstance(value, str | int | bytes) else None
        except NotAKey:
            return None

    def _normal(self, value: object) -> object:
        kind = self.column.type
        if isinstance(kind, Uuid):
            try:
                return value if isinstance(value, UUID) else UUID(value) if isinstance(value, str) else None
            except ValueError:
                return None
        wanted = int if isinstance(kind, Integer) else str if isinstance(kind, String) else bytes
        return value if isinstance(value, wanted) and not isinstance(value, bool) else None


@dataclass(frozen=True)
class ShardedTable:
    """One declared table with its placing columns; the first is its bucket."""

    table: Table
    placing: tuple[PlacingColumn, ...]

    @property
    def name(self) -> str:
        """The table's name, with its schema where it has one."""
        return self.table.fullname

    @property
    def bucket(self) -> PlacingColumn:
        """The column that holds the bucket itself."""
        return self.placing[0]

    def ways(self) -> str:
        """What a statement may give to be placed, for messages."""
        return ", ".join(p.column.name for p in self.placing)


class ShardedTables:
    """The declarations of one application. Make one, declare each table, pass it on; there is no global one."""

    def __init__(self) -> None:
        self._by_table: dict[Table, ShardedTable] = {}

    def sharded(
        self, table: Any, *, key: str | None = None, id_columns: Iterable[str] = (), bucket: str = "bucket"
    ) -> ShardedTable:
        """Declares a Table or a mapped class as sharded.

        `bucket` names the column with the bucket; `key` the column with the sharding key; `id_columns` name UUID
        columns whose values carry the bucket of the row (its own id, its owner's). A UUID in `key` that carries a
        bucket is placed by it too, as everywhere (`bucket_for`). Tables joined by equal placing columns of one kind
        count as co-located. Raises CannotPlace for a column that is missing or whose equality is not the equality of
        its bytes (CHAR, CITEXT, enumerations, decorated types).
        """
        mapper = None if isinstance(table, Table) else inspect(table)
        if mapper is not None and not isinstance(mapper, Mapper):
            raise CannotPlace(str(table), "only tables and mapped classes can be sharded")
        real: Any = table if mapper is None else mapper.local_table
        columns: list[tuple[str, Kind]] = [(bucket, "bucket")]
        columns += [(name, "id") for name in id_columns]
        columns += [(key, "key")] if key is not None and key not in {name for name, _ in columns} else []
        placing = tuple(_placing(real, name, kind, mapper) for name, kind in columns)
        declared = ShardedTable(real, placing)
        self._by_table[real] = declared
        return declared

    def find(self, table: Table) -> ShardedTable:
        """The declaration of a table. Raises CannotPlace when there is none."""
        try:
            return self._by_table[table]
        except KeyError:
            raise CannotPlace(
                table.fullname, "the table is not declared as sharded: declare it, or say where with key="
            ) from None


def _placing(table: Table, name: str, kind: Kind, mapper: Mapper[Any] | None) -> PlacingColumn:
    found = next((column for column in table.columns if name in (column.name, column.key)), None)
    if found is None:
        raise CannotPlace(table.fullname, f"there is no column {name}")
    wanted: tuple[type, ...] = {"bucket": (Integer,), "id": (Uuid,), "key": (Uuid, Integer, String, LargeBinary)}[kind]
    if not isinstance(found.type, wanted) or not is_sent_as_given(found.type):
        raise CannotPlace(table.fullname, f"{name} has type {found.type!r}, which cannot be a {kind} column")
    attribute = found.key if mapper is None else mapper.get_property_by_column(found).key
    return PlacingColumn(found, kind, frozenset({found.name, found.key, attribute}), attribute)
