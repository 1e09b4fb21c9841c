"""What a statement's own criteria say about where its rows live. Pure; errs on the side of not knowing.

A statement is a tree of scopes: itself, and every select nested in it. A scope has instances (a sharded table or an
alias of one). Instances joined by equal placing columns are one class: their rows meet only within a bucket, so on one
shard. A class is restricted where a conjunct of the WHERE (or of an inner join) allows only certain buckets.
The statement is right on one shard that holds all buckets of all its classes; a single class may be spread over shards.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import CompoundSelect, Delete, Select, Table, Update
from sqlalchemy.sql import operators
from sqlalchemy.sql.dml import UpdateBase
from sqlalchemy.sql.elements import (
    AbstractTextClause,
    BinaryExpression,
    BindParameter,
    BooleanClauseList,
    ColumnClause,
    ColumnElement,
    ExpressionClauseList,
    False_,
    Grouping,
)
from sqlalchemy.sql.selectable import (
    AliasedReturnsRows,
    FromClause,
    Join,
    ScalarSelect,
    ScalarValues,
    SelectBase,
    SelectStatementGrouping,
    TableClause,
    Values,
)
from sqlalchemy.sql.visitors import ExternallyTraversible

from sharding.buckets import Bucket
from sharding.errors import CannotPlace
from sharding.tables import PlacingColumn, ShardedTable, ShardedTables, is_sent_as_given

Buckets = frozenset[Bucket]
Parameters = Mapping[str, Any]
UNKNOWN = object()
"""Stands for a value that is not known before the database computes it."""


@dataclass(frozen=True)
class Placement:
    """Where a statement may run.

    `buckets` are all that its rows can be in, None when it does not say. With `together` all of them must be on one
    shard. `main` is the FROM element whose bucket column narrows the whole statement, `table` its declaration.
    """

    table: ShardedTable
    main: FromClause
    buckets: Buckets | None
    together: bool


def place_criteria(
    statement: Select[Any] | CompoundSelect[Any] | Update | Delete, parameters: Parameters, tables: ShardedTables
) -> Placement:
    """Reads the placement out of a select, update or delete. Raises CannotPlace for what no shard alone can answer."""
    if isinstance(statement, CompoundSelect):
        return _place_compound(statement, parameters, tables)
    _refuse_own_ctes(statement)
    scope = _Scope(statement, parameters, tables, enclosing=None)
    classes = scope.classes()
    if not classes or scope.main is None:
        raise CannotPlace("the statement", "reads no sharded table: say where with key=")
    sets = [scope.restriction(members) for members in classes]
    nested = scope.nested_buckets()
    declared = scope.instances[hash(scope.main)][1]
    if len(classes) == 1 and nested is None:
        return Placement(declared, scope.main, sets[0], together=False)
    for members, known in zip(classes, sets, strict=True):
        if known is None:
            raise CannotPlace(
                scope.name_of(members),
                "joined to rows of other buckets: join by equal placing columns, or restrict both",
            )
    known_sets = [known for known in sets if known is not None]
    return Placement(declared, scope.main, frozenset[Bucket]().union(*known_sets, nested or ()), together=True)


def _place_compound(statement: CompoundSelect[Any], parameters: Parameters, tables: ShardedTables) -> Placement:
    _refuse_own_ctes(statement)
    refuse_nested(_around_union(statement))
    parts = []
    for part in statement.selects:
        plain = _ungrouped(part)
        if not isinstance(plain, Select | CompoundSelect):
            raise CannotPlace("the statement", "a part of the union is opaque: say where with key=")
        parts.append(place_criteria(plain, parameters, tables))
    for placement in parts:
        if placement.buckets is None:
            raise CannotPlace(placement.table.name, f"each part of a union needs one of: {placement.table.ways()}")
    buckets = frozenset[Bucket]().union(*(p.buckets for p in parts if p.buckets is not None))
    return Placement(parts[0].table, parts[0].main, buckets, together=True)


@dataclass
class _Facts:
    """Conjuncts found in a scope: those that restrict, and those that only link (ON of an outer join)."""

    restricting: list[ColumnElement[Any]] = field(default_factory=list)
    linking: list[tuple[ColumnElement[Any], frozenset[int] | None]] = field(default_factory=list)
    """Each with the instances of the nullable side, of which the clause must name one; None when any will do."""


class _Scope:
    """One select, update or delete, without what is nested in it."""

    def __init__(self, statement: Any, parameters: Parameters, tables: ShardedTables, enclosing: _Scope | None) -> None:
        self.parameters = parameters
        self.tables = tables
        self.enclosing = enclosing
        self.instances: dict[int, tuple[FromClause, ShardedTable]] = {}
        self.main: FromClause | None = None
        self.facts = _Facts()
        self.inner: list[tuple[Any, bool]] = []
        self.statement = statement
        self._links: list[tuple[int, int]] = []
        self._hanging: set[int] = set()
        roots = self._read(statement)
        self._find_nested(roots)
        self._link()

    def classes(self) -> list[frozenset[int]]:
        """The instances of this scope, grouped by co-location."""
        group = {key: frozenset([key]) for key in self.instances}
        for left, right in self._links:
            merged = group[left] | group[right]
            for key in merged:
                group[key] = merged
        return list(dict.fromkeys(group.values()))

    def restriction(self, members: frozenset[int]) -> Buckets | None:
        """The buckets that a class is restricted to by conjuncts; None when by none."""
        known: Buckets | None = None
        for clause in self.facts.restricting:
            allowed = self._allowed(clause, members)
            if allowed is not None:
                known = allowed if known is None else known & allowed
        return known

    def nested_buckets(self) -> Buckets | None:
        """The buckets that nested selects need beside their outer rows; None when they need nothing."""
        needed: Buckets | None = None
        for element, correlates in self.inner:
            for part in _selects_of(element):
                plain = isinstance(_ungrouped(element), Select)
                scope = _Scope(part, self.parameters, self.tables, self if correlates and plain else None)
                for members in scope.classes():
                    if members & scope._hanging:
                        continue
                    known = scope.restriction(members)
                    if known is None:
                        raise CannotPlace(
                            scope.name_of(members),
                            "a nested select reads it on all shards: tie it to the outer row by equal placing columns,"
                            " or restrict it",
                        )
                    needed = known | (needed or frozenset())
                deeper = scope.nested_buckets()
                needed = needed if deeper is None else deeper | (needed or frozenset())
        return needed

    def name_of(self, members: frozenset[int]) -> str:
        """The table of a class, for messages."""
        return self.instances[min(members)][1].name

    def _read(self, statement: Any) -> list[Any]:
        """Takes in the FROM elements and conjuncts; returns everything that may hold nested selects."""
        if isinstance(statement, Select):
            froms = list(statement.get_final_froms())
            for element in froms:
                self._add_from(element, nullable=False)
            self.facts.restricting += _conjuncts(statement._where_criteria)
            rest: Iterable[Any] = (
                *statement.selected_columns,
                *statement._order_by_clauses,
                *statement._group_by_clauses,
                *statement._having_criteria,
                *statement._distinct_on,
                *extensions(statement),
            )
            return [*froms, *statement._where_criteria, *rest, *_limits(statement)]
        self._add_from(statement.table, nullable=False)
        where = statement._where_criteria
        self.facts.restricting += _conjuncts(where)
        written = _written(statement) if isinstance(statement, Update) else ()
        roots = [*where, *(value for _, value in written if isinstance(value, ExternallyTraversible))]
        roots += [column for column in statement._returning if isinstance(column, ExternallyTraversible)]
        roots += extensions(statement)
        sources = [getattr(element, "table", None) for element in walk(roots) if isinstance(element, ColumnClause)]
        extra = [source for source in dict.fromkeys(sources) if isinstance(source, FromClause)]
        for source in extra:
            self._add_from(source, nullable=False)
        return [*roots, *extra]

    def _add_from(self, element: FromClause, *, nullable: bool) -> None:
        if isinstance(element, Join):
            if element.full:
                raise CannotPlace("the statement", "a full outer join has no placement: say where with key=")
            self._add_from(element.left, nullable=nullable)
            before = set(self.instances)
            self._add_from(element.right, nullable=nullable or element.isouter)
            found = _conjuncts([element.onclause] if element.onclause is not None else [])
            # The ON of an outer join, and all inside its nullable side, does not restrict the rows that come out; it
            # says only which rows of the nullable side may stand beside the others.
            if element.isouter:
                self.facts.linking += [(clause, frozenset(self.instances.keys() - before)) for clause in found]
            elif nullable:
                self.facts.linking += [(clause, None) for clause in found]
            else:
                self.facts.restricting += found
            return
        table = _behind_alias(element)
        if isinstance(table, TableClause) and not isinstance(table, Table):
            raise CannotPlace(str(table), "a bare table() is not declared as sharded: use the Table that is")
        if not isinstance(table, Table) or hash(element) in self.instances:
            return
        if self.enclosing is not None and self._correlated(element):
            return
        declared = self.tables.find(_plain(table))
        self.instances[hash(element)] = (element, declared)
        if self.main is None and not nullable:
            self.main = element

    def _correlated(self, element: FromClause) -> bool:
        """Whether SQLAlchemy takes `element` from the enclosing scope instead of reading it here."""
        outer = self.enclosing
        if outer is None or hash(element) not in outer.instances:
            return False
        statement = self.statement
        if statement._auto_correlate or any(hash(f) == hash(element) for f in statement._correlate):
            return True
        raise CannotPlace(
            outer.instances[hash(element)][1].name, "a nested select reads it again without correlation: use an alias"
        )

    def _find_nested(self, roots: Iterable[Any]) -> None:
        for element in walk(roots):
            _refuse_opaque(element)
            if isinstance(element, ScalarSelect):
                self.inner.append((element.element, True))
            elif isinstance(element, SelectBase):
                self.inner.append((element, True))
            elif isinstance(element, AliasedReturnsRows) and isinstance(_behind_alias(element), SelectBase):
                self.inner.append((_behind_alias(element), False))  # what stands in a FROM does not correlate

    def _link(self) -> None:
        everything: list[tuple[ColumnElement[Any], frozenset[int] | None]]
        everything = [(clause, None) for clause in self.facts.restricting]
        for clause, side in [*everything, *self.facts.linking]:
            if not isinstance(clause, BinaryExpression) or clause.operator is not operators.eq:
                continue
            left, right = self._placing(clause.left), self._placing(clause.right)
            if left is None or right is None or left[1].kind != right[1].kind:
                continue
            if type(left[1].column.type).__name__ != type(right[1].column.type).__name__ and left[1].kind == "key":
                continue
            here = [key for key, _ in (left, right) if key in self.instances]
            if len(here) == 2 and (side is None or side & set(here)):
                self._links.append((here[0], here[1]))
            elif len(here) == 1 and any(clause is certain for certain in self.facts.restricting):
                self._hanging.add(here[0])

    def _placing(self, element: Any) -> tuple[int, PlacingColumn] | None:
        """The instance, here or in the enclosing scope, and the placing column that `element` is."""
        element = _ungrouped(element)
        source = getattr(element, "table", None)
        if not isinstance(element, ColumnClause) or source is None:
            return None
        key = hash(source)
        scope: _Scope | None = self
        while scope is not None and key not in scope.instances:
            scope = scope.enclosing
        if scope is None:
            return None
        for placing in scope.instances[key][1].placing:
            if placing.column.key == element.key:
                return key, placing
        return None

    def _allowed(self, clause: Any, members: frozenset[int]) -> Buckets | None:
        """The buckets of a class that can make `clause` true; None for any."""
        clause = _ungrouped(clause)
        if isinstance(clause, False_):
            return frozenset()
        if isinstance(clause, BooleanClauseList | ExpressionClauseList):
            parts = [self._allowed(part, members) for part in clause.clauses]
            known = [part for part in parts if part is not None]
            if clause.operator is operators.and_:
                return frozenset.intersection(*known) if known else None
            if clause.operator is operators.or_ and len(known) == len(parts):
                return frozenset[Bucket]().union(*known)
            return None
        if not isinstance(clause, BinaryExpression):
            return None
        for column, value in ((clause.left, clause.right), (clause.right, clause.left)):
            placing = self._placing(column)
            if placing is None or placing[0] not in members:
                continue
            if clause.operator is operators.eq:
                return self._buckets(placing[1], [self._value(value)])
            if clause.operator is operators.in_op and column is clause.left:
                return self._buckets(placing[1], self._values(value))
        return None

    def _buckets(self, placing: PlacingColumn, values: Any) -> Buckets | None:
        if not isinstance(values, list | tuple | set | frozenset):
            return None
        found = []
        for value in values:
            if value is None:
                continue  # nothing equals NULL
            where = None if value is UNKNOWN else placing.bucket_of(value)
            if where is None:
                return None
            found.append(where)
        return frozenset(found)

    def _value(self, element: Any) -> Any:
        return bound_value(_ungrouped(element), self.parameters)

    def _values(self, element: Any) -> Any:
        element = _ungrouped(element)
        if isinstance(element, BindParameter):
            return bound_value(element, self.parameters)
        return [self._value(part) for part in element.clauses] if isinstance(element, ExpressionClauseList) else UNKNOWN


def bound_value(element: Any, parameters: Parameters) -> Any:
    """The value of a bind parameter, UNKNOWN for any other expression and for types that change what they are given.

    Raises CannotPlace when the value is missing.
    """
    if not isinstance(element, BindParameter) or not is_sent_as_given(element.type):
        return UNKNOWN
    if element.key in parameters:
        return parameters[element.key]
    if element.required:
        raise CannotPlace("the statement", f"the parameter {element.key} has no value")
    return element.effective_value


def refuse_nested(roots: Iterable[Any]) -> None:
    """Raises CannotPlace when `roots` hold a select of their own, or what cannot be read."""
    for element in walk(roots):
        _refuse_opaque(element)
        if isinstance(_behind_alias(element), ScalarSelect | SelectBase):
            raise CannotPlace("the statement", "a nested select here sees one shard only: say where with key=")


def extensions(statement: Any) -> list[Any]:
    """What was added to a statement with ``ext()``."""
    names = ("_pre_columns_clause", "_post_select_clause", "_post_criteria_clause", "_post_body_clause")
    found = (getattr(statement, name, None) for name in (*names, "_post_values_clause"))
    return [clause for clause in found if clause is not None]


def _refuse_opaque(element: Any) -> None:
    if isinstance(element, AbstractTextClause) or (
        isinstance(element, ColumnClause) and element.is_literal and element.name != "*"
    ):
        raise CannotPlace("text()", "literal SQL inside a statement cannot be read: say where with key=")
    if isinstance(_behind_alias(element), UpdateBase):
        raise CannotPlace("the statement", "a nested insert, update or delete: say where with key=")


def _refuse_own_ctes(statement: Any) -> None:
    if statement._independent_ctes:
        raise CannotPlace("the statement", "it adds a CTE of its own: say where with key=")


def _limits(statement: Any) -> list[Any]:
    clauses = (statement._limit_clause, statement._offset_clause, statement._fetch_clause)
    return [clause for clause in clauses if clause is not None]


def _around_union(statement: CompoundSelect[Any]) -> list[Any]:
    return [*statement._order_by_clauses, *statement._group_by_clauses, *_limits(statement)]


def _written(statement: Any) -> list[tuple[Any, Any]]:
    pairs = list((statement._values or {}).items())
    return pairs + list(getattr(statement, "_ordered_values", None) or ())


def _plain(table: Any) -> Table:
    plain: Table = table._deannotate() if hasattr(table, "_deannotate") else table
    return plain


def _behind_alias(element: Any) -> Any:
    while isinstance(element, AliasedReturnsRows):
        element = element.element
    return element


def _ungrouped(element: Any) -> Any:
    while isinstance(element, Grouping | SelectStatementGrouping):
        element = element.element
    return element


def _conjuncts(clauses: Iterable[Any]) -> list[ColumnElement[Any]]:
    found = []
    for clause in clauses:
        plain = _ungrouped(clause)
        if isinstance(plain, BooleanClauseList) and plain.operator is operators.and_:
            found += _conjuncts(plain.clauses)
        else:
            found.append(plain)
    return found


def walk(roots: Iterable[Any]) -> Iterator[Any]:
    """Every element under `roots`; nested statements and tables are given but not entered."""
    stack = list(roots)
    seen: dict[int, Any] = {}  # the elements too: an id is unique only among the living
    while stack:
        element = stack.pop()
        if id(element) in seen:
            continue
        seen[id(element)] = element
        yield element
        if not isinstance(_behind_alias(element), ScalarSelect | SelectBase | UpdateBase | TableClause):
            stack.extend(element.get_children())
        if isinstance(element, Values | ScalarValues):
            # Its rows are no children to SQLAlchemy.
            cells = (cell for rows in element._data for row in rows for cell in row)
            stack.extend(cell for cell in cells if isinstance(cell, ExternallyTraversible))


def _selects_of(element: Any) -> Iterator[Any]:
    plain = _ungrouped(element)
    if isinstance(plain, Select | CompoundSelect):
        _refuse_own_ctes(plain)
    if isinstance(plain, Select):
        yield plain
    elif isinstance(plain, CompoundSelect):
        refuse_nested(_around_union(plain))
        for part in plain.selects:
            yield from _selects_of(part)
    else:
        raise CannotPlace("the statement", "a nested select is opaque: say where with key=")
