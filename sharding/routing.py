"""From a statement to the parts that the shards are to run. Pure: a plan is a value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from sqlalchemy import ColumnElement, CompoundSelect, Delete, Executable, Insert, Select, Update, any_, literal, or_
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.sql.visitors import ExternallyTraversible
from sqlalchemy.types import SmallInteger

from sharding.buckets import Bucket, Key
from sharding.criteria import UNKNOWN, Placement, bound_value, place_criteria, refuse_nested
from sharding.errors import CannotPlace
from sharding.ids import bucket_for
from sharding.shard_map import ShardId, ShardMap
from sharding.tables import PlacingColumn, ShardedTable, ShardedTables

RANGES_MAX = 4
"""Up to so many runs of neighbouring buckets are written as ranges, more as a list."""

Row = Mapping[Any, Any]
Given = Row | Sequence[Row] | None
"""Parameters as `execute` takes them: one mapping, several, or none."""


@dataclass(frozen=True)
class Part:
    """What one shard runs: `statement` with `parameters`. It touches rows of `buckets` only."""

    shard: ShardId
    buckets: frozenset[Bucket]
    statement: Any
    parameters: Given = None


@dataclass(frozen=True)
class Plan:
    """A statement taken apart under one version of the map.

    More than one part of a read is a fan-out: its parts need a merge. More than one part of a write are as many local
    transactions: run them as branches of one global transaction where all or none is wanted.
    """

    parts: tuple[Part, ...]
    writes: bool
    table: str
    map_version: int


def plan(
    statement: Executable,
    parameters: Given,
    tables: ShardedTables,
    map: ShardMap,
    *,
    key: Key | Bucket | None = None,
    only: frozenset[Bucket] | None = None,
) -> Plan:
    """Where `statement` runs, by its own criteria or values, or by `key` (an id, a bucket, a key: see `bucket_for`).

    With `key` the statement is not read at all: the caller vouches for it. With `only` a select, update or delete
    leaves out the rows of all other buckets. Raises CannotPlace for a write that does not say where, and for whatever
    no shard can answer alone; the message names the table and what to add.
    """
    if key is not None:
        where = bucket_for(key)
        writes = not isinstance(statement, Select | CompoundSelect)
        part = Part(map.shard_of(where), frozenset({where}), statement, parameters)
        return Plan((part,), writes, "the statement", map.version)
    if isinstance(statement, Insert):
        return _plan_insert(statement, parameters, tables, map)
    if not isinstance(statement, Select | CompoundSelect | Update | Delete):
        raise CannotPlace("the statement", "text() and the like cannot be read: say where with key=")
    if parameters is not None and not isinstance(parameters, Mapping):
        raise CannotPlace("the statement", "only inserts take several sets of parameters: run the others one by one")
    placement = place_criteria(statement, parameters or {}, tables)
    writes = isinstance(statement, Update | Delete)
    if isinstance(statement, Update):
        _refuse_moving(statement, parameters or {}, placement.table)
    if placement.buckets is None and writes:
        raise CannotPlace(placement.table.name, f"the write does not say where: add one of {placement.table.ways()}")
    return _spread(statement, parameters, placement, map, writes=writes, only=only)


def within(column: ColumnElement[Any], buckets: frozenset[Bucket]) -> ColumnElement[bool]:
    """The criterion that `column`, a bucket, is one of `buckets`; short where they are neighbours."""
    runs: list[list[int]] = []
    for number in sorted(buckets):
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    if 0 < len(runs) <= RANGES_MAX:
        return or_(*(column.between(first, last) for first, last in runs))
    return column == any_(literal(sorted(buckets), ARRAY(SmallInteger)))


def _spread(
    statement: Any,
    parameters: Given,
    placement: Placement,
    map: ShardMap,
    *,
    writes: bool,
    only: frozenset[Bucket] | None,
) -> Plan:
    name = placement.table.name
    wanted = placement.buckets
    if only is not None:
        wanted = only if wanted is None else wanted & only
    if placement.together and wanted != placement.buckets:
        raise CannotPlace(name, "a join cannot leave out buckets: run it for one key")
    groups = map.by_shard(wanted)
    if placement.together and len(groups) > 1:
        raise CannotPlace(name, f"the statement joins rows of {len(groups)} shards: split it, or run it for one key")
    # Criteria that contradict themselves match nothing, on whichever shard.
    groups = groups or {map.shards[0]: frozenset()}
    if not placement.together and (len(groups) > 1 or wanted is None or wanted != placement.buckets):
        # A shard may still hold rows of buckets that it gave away: it answers for its own alone.
        column = placement.main.c[placement.table.bucket.column.key]
        parts = tuple(
            Part(shard, owned, statement.where(within(column, owned)), parameters) for shard, owned in groups.items()
        )
        return Plan(parts, writes, name, map.version)
    ((shard, owned),) = groups.items()
    return Plan((Part(shard, owned, statement, parameters),), writes, name, map.version)


def _refuse_moving(statement: Update, parameters: Row, table: ShardedTable) -> None:
    written = [*(statement._values or {}), *(key for key, _ in getattr(statement, "_ordered_values", None) or ())]
    for placing in table.placing:
        # SQLAlchemy sets what parameters name, beside what values() says.
        if any(_names(placing, key) for key in (*written, *parameters)):
            raise CannotPlace(table.name, f"{placing.column.name} places the row and never changes: insert another row")


def _plan_insert(statement: Insert, parameters: Given, tables: ShardedTables, map: ShardMap) -> Plan:
    table = tables.find(cast("Any", statement.table)._deannotate())
    if statement.select is not None:
        raise CannotPlace(table.name, "the rows of INSERT ... SELECT are not known: say where with key=")
    if statement._independent_ctes:
        raise CannotPlace(table.name, "the insert adds a CTE of its own: say where with key=")
    _refuse_moving_upsert(statement, table)
    refuse_nested(_expressions_of(statement))
    groups: dict[ShardId, list[tuple[Bucket, Row]]] = {}
    rows, rebuild = _rows_of(statement, parameters)
    mapped = statement._propagate_attrs.get("compile_state_plugin") == "orm"
    for row in rows:
        bucket = _bucket_of_row(row, parameters if isinstance(parameters, Mapping) else {}, table)
        groups.setdefault(map.shard_of(bucket), []).append((bucket, _with_bucket(row, bucket, table, mapped)))
    parts = []
    for shard in sorted(groups):
        built, given = rebuild([row for _, row in groups[shard]])
        parts.append(Part(shard, frozenset(bucket for bucket, _ in groups[shard]), built, given))
    if not parts:
        raise CannotPlace(table.name, f"the insert has no values: give one of {table.ways()}")
    if len(parts) > 1 and statement._sort_by_parameter_order:
        raise CannotPlace(table.name, "the rows would come back shard by shard: leave out sort_by_parameter_order")
    return Plan(tuple(parts), True, table.name, map.version)


def _rows_of(statement: Insert, parameters: Given) -> tuple[list[Row], Any]:
    """The rows of an insert, and how to make the insert of some of them again."""
    if statement._multi_values:
        columns = list(statement.table.c)
        rows: list[Row] = [
            row if isinstance(row, Mapping) else dict(zip(columns, row, strict=False))
            for group in statement._multi_values
            for row in group
        ]

        def rebuild_values(some: list[Row]) -> tuple[Any, Given]:
            changed: Any = statement._generate()
            changed._multi_values = (some,)
            return changed, parameters

        return rows, rebuild_values
    if isinstance(parameters, Mapping) or parameters is None:
        own: Row = {**(statement._values or {}), **(parameters or {})}

        def rebuild_one(some: list[Row]) -> tuple[Any, Given]:
            added = {key: value for key, value in some[0].items() if key not in own}
            return statement.values(added) if added else statement, parameters

        return [own] if own else [], rebuild_one
    fixed: Row = statement._values or {}
    given: list[Row] = [{**fixed, **row} for row in parameters]

    def rebuild_many(some: list[Row]) -> tuple[Any, Given]:
        return statement, [{key: value for key, value in row.items() if key not in fixed} for row in some]

    return given, rebuild_many


def _bucket_of_row(row: Row, parameters: Row, table: ShardedTable) -> Bucket:
    found: dict[str, Bucket] = {}
    for key, value in row.items():
        for placing in table.placing:
            if not _names(placing, key):
                continue
            known = bound_value(value, parameters) if hasattr(value, "get_children") else value
            where = None if known is UNKNOWN or known is None else placing.bucket_of(known)
            if where is not None:
                found[placing.column.name] = where
            elif known is not None:
                raise CannotPlace(table.name, f"{placing.column.name} must be a plain value that has a bucket")
    if not found:
        raise CannotPlace(table.name, f"the insert does not say where: give one of {table.ways()}")
    for placing in table.placing[1:]:
        makes_one = placing.column.default is not None or placing.column.server_default is not None
        if makes_one and not any(_names(placing, key) for key in row):
            raise CannotPlace(
                table.name, f"the default of {placing.column.name} knows nothing of the row's bucket: give a value"
            )
    if len(set(found.values())) > 1:
        said = ", ".join(f"{name} says {where}" for name, where in found.items())
        raise CannotPlace(table.name, f"the columns of one row name different buckets: {said}")
    return next(iter(found.values()))


def _with_bucket(row: Row, bucket: Bucket, table: ShardedTable, mapped: bool) -> Row:
    if any(_names(table.bucket, key) for key in row):
        return row
    # Parameters have names, those of a mapped class its attributes'; values() may have columns instead.
    if not any(isinstance(key, str) for key in row):
        return {**row, table.bucket.column: bucket}
    return {**row, table.bucket.attribute if mapped else table.bucket.column.key: bucket}


def _expressions_of(statement: Insert) -> list[Any]:
    """Whatever an insert has the database compute."""
    upsert: Any = getattr(statement, "_post_values_clause", None)
    rows = [statement._values or {}, *(row for group in statement._multi_values for row in group)]
    found = [value for row in rows for value in (row.values() if isinstance(row, Mapping) else row)]
    found += dict(getattr(upsert, "update_values_to_set", None) or ()).values()
    found += [getattr(upsert, "update_whereclause", None), *statement._returning]
    return [value for value in found if isinstance(value, ExternallyTraversible)]


def _names(placing: PlacingColumn, key: Any) -> bool:
    if isinstance(key, str):
        return key in placing.names
    return getattr(key, "key", None) in placing.names


def _refuse_moving_upsert(statement: Insert, table: ShardedTable) -> None:
    upsert = getattr(statement, "_post_values_clause", None)
    for key in dict(getattr(upsert, "update_values_to_set", None) or ()):
        for placing in table.placing:
            if _names(placing, key):
                raise CannotPlace(table.name, f"the upsert sets {placing.column.name}, which places the row")
