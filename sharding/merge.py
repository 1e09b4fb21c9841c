"""How the answers of several shards become the one answer. Pure.

Either the columns are all aggregates, and partial aggregates are combined; or the rows are merged by their ORDER BY
(a heap merge of sorted answers) and cut by OFFSET and LIMIT. What has no true merge is refused by name.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import islice
from typing import Any

from sqlalchemy import (
    Boolean,
    CompoundSelect,
    Date,
    DateTime,
    Double,
    Float,
    Integer,
    LargeBinary,
    Numeric,
    Select,
    Uuid,
    type_coerce,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.sql import operators
from sqlalchemy.sql.elements import (
    AggregateOrderBy,
    BinaryExpression,
    CollationClause,
    ColumnElement,
    FunctionFilter,
    Grouping,
    Label,
    Over,
    UnaryExpression,
    WithinGroup,
)
from sqlalchemy.sql.functions import FunctionElement

from sharding.aggregates import AGGREGATES, Aggregate, combine, partials, shown
from sharding.criteria import UNKNOWN, Parameters, bound_value, extensions, walk
from sharding.errors import CannotMerge, TooManyRows
from sharding.tables import is_text

BYTEWISE_COLLATIONS = frozenset({"C", "POSIX", "ucs_basic", "pg_c_utf8"})
# fmt: off
SCALAR_FUNCTIONS = frozenset({
    "abs", "age", "ascii", "btrim", "ceil", "ceiling", "char_length", "character_length", "coalesce", "concat",
    "concat_ws", "current_date", "current_timestamp", "date", "date_bin", "date_part", "date_trunc", "decode",
    "encode", "exp", "extract", "floor", "format", "greatest", "initcap", "jsonb_build_array",
    "jsonb_build_object", "jsonb_extract_path", "jsonb_extract_path_text", "jsonb_typeof", "lcase", "least", "left",
    "length", "ln", "localtimestamp", "log", "lower", "lpad", "ltrim", "make_date", "md5", "mod", "now", "nullif",
    "octet_length", "overlay", "position", "power", "regexp_replace", "repeat", "replace", "reverse", "right",
    "round", "rpad", "rtrim", "sha256", "sign", "split_part", "sqrt", "starts_with", "statement_timestamp",
    "strpos", "substr", "substring", "to_char", "to_date", "to_jsonb", "to_number", "to_timestamp",
    "transaction_timestamp", "translate", "trim", "trunc", "upper",
})
# fmt: on
"""Functions known to give one value a row, the same each time. Others may be aggregates: PostgreSQL alone knows."""

Rows = Sequence[Sequence[Any]]


@dataclass(frozen=True)
class Merge:
    """`statement` is what each shard runs; `merge` makes the one answer of theirs.

    `width` columns of the answer are the caller's; `rows_per_shard` is how many a shard may give at most.
    """

    statement: Select[Any]
    merge: Callable[[Sequence[Rows]], list[tuple[Any, ...]]]
    rows_per_shard: int
    keys: tuple[str, ...] | None
    """Names of the answer's columns where they are not those of the shards' answers."""


@dataclass(frozen=True)
class _OrderKey:
    expression: ColumnElement[Any]
    descending: bool
    nulls_first: bool


def plan_merge(statement: Any, parameters: Parameters, *, rows_max: int) -> Merge:
    """How to run `statement` on several shards. Raises CannotMerge naming what cannot be merged, TooManyRows when
    OFFSET and LIMIT ask a shard for more than `rows_max` rows.
    """
    if isinstance(statement, CompoundSelect):
        raise CannotMerge("UNION", "selects of several shards are combined by the caller")
    if not isinstance(statement, Select):
        raise CannotMerge(type(statement).__name__, "only a select is merged")
    _refuse_parts(statement)
    if any(_aggregate_of(column) for column in statement._raw_columns):
        return _plan_aggregates(statement)
    for column in statement.selected_columns:
        _refuse_functions(column)
    return _plan_rows(statement, parameters, rows_max)


def comparable(expression: ColumnElement[Any]) -> ColumnElement[Any]:
    """`expression` in a form whose Python values compare as PostgreSQL compares them. Raises CannotMerge for others."""
    kind = expression.type
    if is_text(kind):
        if getattr(kind, "collation", None) in BYTEWISE_COLLATIONS and not _collates_otherwise(expression):
            return expression
        raise CannotMerge(f"ORDER BY {expression}", 'text is merged only in the order of its bytes: add .collate("C")')
    if isinstance(kind, Float):
        return type_coerce(expression, Double()) if kind.asdecimal else expression  # as Decimals they would be rounded
    if isinstance(kind, Numeric):
        return expression if kind.asdecimal else type_coerce(expression, Numeric())
    if isinstance(kind, Integer | Uuid | DateTime | Date | Boolean | LargeBinary):
        return expression
    raise CannotMerge(f"ORDER BY {expression}", f"values of type {kind!r} are not compared outside PostgreSQL")


def sort_value(value: Any) -> tuple[Any, ...]:
    """`value`, which is not None, so that tuples of them sort as PostgreSQL sorts: NaN above every number."""
    if isinstance(value, float | Decimal):
        return (1, 0) if value != value else (0, value)
    return (0, value)


def _collates_otherwise(expression: Any) -> bool:
    """Whether a part of a text has a collation that could win over the one that SQLAlchemy sees."""
    while isinstance(expression, Label | Grouping):
        expression = expression.element
    if isinstance(expression, BinaryExpression) and expression.operator is operators.collate:
        return False  # an explicit collation on top is the last word
    return any(_collation_of(element) not in {None, *BYTEWISE_COLLATIONS} for element in walk([expression]))


def _collation_of(element: Any) -> Any:
    if isinstance(element, CollationClause):
        return element.collation
    return getattr(getattr(element, "type", None), "collation", None)


def _refuse_parts(statement: Select[Any]) -> None:
    refused = {
        "DISTINCT": statement._distinct or statement._distinct_on,
        "GROUP BY": statement._group_by_clauses,
        "HAVING": statement._having_criteria,
        "FETCH": statement._fetch_clause is not None,
        "FOR UPDATE": statement._for_update_arg is not None,
        "a syntax extension": extensions(statement),
        "a prefix or suffix": statement._prefixes or statement._suffixes or statement._statement_hints,
    }
    for what, there in refused.items():
        if there:
            raise CannotMerge(what, "it has no merge over shards: ask for one key, or finish it in the application")


def _refuse_functions(expression: Any) -> None:
    for element in walk([expression]):
        if isinstance(element, Over | WithinGroup | FunctionFilter | AggregateOrderBy):
            raise CannotMerge(str(element), "window and ordered-set functions see one shard only")
        if isinstance(element, FunctionElement):
            name = str(getattr(element, "name", type(element).__name__)).lower()
            if _packages(element) or name not in SCALAR_FUNCTIONS:
                raise CannotMerge(
                    f"{name}()",
                    "it may see more than one row; only count, sum, min, max and avg, each alone, are merged",
                )


def _packages(function: Any) -> Any:
    return getattr(function, "packagenames", None)


def _aggregate_of(column: Any) -> Aggregate | None:
    """The aggregate that a column is, whole; None for any other column."""
    element = column
    while isinstance(element, Label | Grouping):
        element = element.element
    criterion = None
    if isinstance(element, FunctionFilter):
        criterion, element = element.criterion, element.func
    name = str(getattr(element, "name", "")).lower()
    if not isinstance(element, FunctionElement) or _packages(element) or name not in AGGREGATES:
        return None
    return Aggregate(name, element, criterion)


def _plan_aggregates(statement: Select[Any]) -> Merge:
    found: list[Aggregate] = []
    for column in statement._raw_columns:
        aggregate = _aggregate_of(column)
        if aggregate is None:
            raise CannotMerge(
                str(column), "beside an aggregate every column must be count, sum, min, max or avg, alone"
            )
        found.append(aggregate)
    if statement._order_by_clauses or statement._limit_clause is not None or statement._offset_clause is not None:
        raise CannotMerge("ORDER BY or LIMIT of an aggregate", "the answer is one row: leave them out")
    widths: list[int] = []
    columns: list[ColumnElement[Any]] = []
    for aggregate in found:
        for argument in aggregate.arguments():
            if isinstance(argument, UnaryExpression) and argument.operator is operators.distinct_op:
                raise CannotMerge(f"{aggregate.name}(DISTINCT)", "different shards may hold the same value")
            _refuse_functions(argument)
            if aggregate.name in ("min", "max"):
                comparable(argument)
                comparable(aggregate.function)
        parts = partials(aggregate)
        widths.append(len(parts))
        columns += [part.label(f"_part_{len(columns) + number}") for number, part in enumerate(parts)]

    def merge(answers: Sequence[Rows]) -> list[tuple[Any, ...]]:
        rows = [answer[0] for answer in answers]
        combined, start = [], 0
        for aggregate, width in zip(found, widths, strict=True):
            parts = [tuple(row[start : start + width]) for row in rows]
            combined.append(shown(aggregate, combine(aggregate.name, parts, sort_value)))
            start += width
        return [tuple(combined)]

    # The names that SQLAlchemy gives the columns when the statement runs as it is: count_1 and the like.
    names = tuple(str(entry.keyname) for entry in _compiled(statement)._result_columns)
    return Merge(statement.with_only_columns(*columns, maintain_column_froms=True), merge, 1, names)


def _compiled(statement: Select[Any]) -> Any:
    dialect: Any = postgresql.dialect
    return statement.compile(dialect=dialect())


def _plan_rows(statement: Select[Any], parameters: Parameters, rows_max: int) -> Merge:
    order = [_order_key(clause) for clause in statement._order_by_clauses]
    limit = _number(statement._limit_clause, parameters, "LIMIT")
    offset = _number(statement._offset_clause, parameters, "OFFSET") or 0
    wanted = rows_max if limit is None else offset + limit
    if wanted > rows_max or offset > rows_max:
        raise TooManyRows(
            f"OFFSET and LIMIT ask every shard for {max(wanted, offset)} rows, the bound is {rows_max}: page by cursor"
        )
    # Without LIMIT one row more than allowed is asked for: it tells a full answer from a cut one.
    asked = wanted if limit is not None else rows_max + 1
    keys = [key.expression.label(f"_order_{number}") for number, key in enumerate(order)]
    cut = statement.add_columns(*keys).limit(asked).offset(None)
    count = len(order)

    def sort_key(row: Sequence[Any]) -> tuple[Any, ...]:
        values = row[len(row) - count :]
        return tuple(_ranked(key, value) for key, value in zip(order, values, strict=True))

    def merge(answers: Sequence[Rows]) -> list[tuple[Any, ...]]:
        merged = heapq.merge(*answers, key=sort_key) if count else (row for answer in answers for row in answer)
        stop = None if limit is None else offset + limit
        return [tuple(row[: len(row) - count]) for row in islice(merged, offset, stop)]

    return Merge(cut, merge, asked if limit is not None else rows_max, None)


def _order_key(clause: Any) -> _OrderKey:
    descending, nulls_first, element = False, None, clause
    if type(element).__name__ == "_textual_label_reference":
        raise CannotMerge(f"ORDER BY {element.element!r}", "order by the column itself, not by its name")
    while True:
        if isinstance(element, UnaryExpression) and element.modifier is not None:
            if element.modifier is operators.desc_op:
                descending = True
            elif element.modifier is operators.nulls_first_op:
                nulls_first = True
            elif element.modifier is operators.nulls_last_op:
                nulls_first = False
            elif element.modifier is not operators.asc_op:
                break
            element = element.element
        elif isinstance(element, Label | Grouping) or type(element).__name__ == "_label_reference":
            element = element.element
        else:
            break
    _refuse_functions(element)
    return _OrderKey(comparable(element), descending, descending if nulls_first is None else nulls_first)


def _ranked(key: _OrderKey, value: Any) -> tuple[int, Any]:
    if value is None:
        return (0 if key.nulls_first else 2, ())
    return (1, _Reversed(sort_value(value)) if key.descending else sort_value(value))


@dataclass(frozen=True, order=False)
class _Reversed:
    value: tuple[Any, ...]

    def __lt__(self, other: _Reversed) -> bool:
        return other.value < self.value


def _number(clause: Any, parameters: Parameters, what: str) -> int | None:
    if clause is None:
        return None
    value = bound_value(clause, parameters)
    if value is UNKNOWN or not (value is None or isinstance(value, int)) or (value is not None and value < 0):
        raise CannotMerge(what, "it must be a plain number that is not negative")
    return value
