"""Partial aggregates of shards and their combination, to the digit as PostgreSQL computes the whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import MAX_EMAX, MIN_EMIN, ROUND_HALF_UP, Context, Decimal
from typing import Any

from sqlalchemy import Double, Float, Integer, Numeric, cast, func, type_coerce
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import NullType

from sharding.errors import CannotMerge

NUMBERS = (Integer, Numeric, Float)
AGGREGATES = frozenset({"count", "sum", "min", "max", "avg"})
NUMERIC_DIGITS_MAX = 150_000
"""More digits than PostgreSQL's numeric can have (131072 before the point, 16383 after it)."""
DIVISION_SIGNIFICANT_DIGITS = 16
DIVISION_SCALE_MAX = 1000
GROUP_DIGITS = 4
"""PostgreSQL keeps numeric in groups of four decimal digits; the scale of a quotient depends on them."""


@dataclass(frozen=True)
class Aggregate:
    """One aggregate of a statement: ``name(function's arguments) FILTER (WHERE criterion)``."""

    name: str
    function: FunctionElement[Any]
    criterion: ColumnElement[Any] | None

    def arguments(self) -> list[ColumnElement[Any]]:
        """What the function is applied to; ``*`` for ``count(*)``."""
        return list(self.function.clauses)


def partials(aggregate: Aggregate) -> list[ColumnElement[Any]]:
    """What each shard computes. Raises CannotMerge for a sum or mean of anything but numbers."""
    name = aggregate.name
    if name in ("sum", "avg"):
        (argument,) = aggregate.arguments()
        if not isinstance(argument.type, NUMBERS):
            raise CannotMerge(f"{name}({argument})", f"only numbers are added up, not {argument.type!r}")
        given = aggregate.function.type
        if not isinstance(given, (*NUMBERS, NullType)) or (isinstance(given, Float) and given.asdecimal):
            raise CannotMerge(f"{name}({argument})", f"sums shown as {given!r} are rounded before they are added up")
        summed = argument
        if isinstance(argument.type, Float) and name == "avg":
            summed = cast(argument, Double)
        elif isinstance(argument.type, Numeric) and not isinstance(argument.type, Float):
            summed = type_coerce(argument, Numeric())  # Decimals, also where the whole is shown as a float
        found = [_filtered(func.sum(summed), aggregate)]
        return [*found, _filtered(func.count(argument), aggregate)] if name == "avg" else found
    return [_filtered(aggregate.function, aggregate)]


def shown(aggregate: Aggregate, value: Any) -> Any:
    """A combined value in the type that SQLAlchemy would have given it."""
    given = aggregate.function.type
    as_float = isinstance(given, Numeric | Float) and not given.asdecimal
    return float(value) if as_float and value is not None and aggregate.name in ("sum", "avg") else value


def combine(name: str, parts: Sequence[tuple[Any, ...]], sort_value: Callable[[Any], Any]) -> Any:
    """The aggregate of the whole from those of its parts; None where PostgreSQL says NULL."""
    values = [part[0] for part in parts if part[0] is not None]
    if name == "count":
        return sum(values)
    if not values:
        return None
    if name == "min":
        return min(values, key=sort_value)
    if name == "max":
        return max(values, key=sort_value)
    total = add(values)
    if name == "sum":
        return total
    count = sum(part[1] for part in parts)
    return total / count if isinstance(total, float) else divide(Decimal(total), count)


def add(values: Sequence[Any]) -> Any:
    """The exact sum of ints or Decimals; floats are added in the order given, which PostgreSQL leaves open too."""
    total = values[0]
    context = _exact()
    for value in values[1:]:
        total = context.add(total, value) if isinstance(total, Decimal) else total + value
    return total


def divide(numerator: Decimal, count: int) -> Decimal:
    """``numerator / count`` as PostgreSQL's numeric gives it: its scale, rounded half away from zero.

    The scale follows select_div_scale in src/backend/utils/adt/numeric.c. `count` is positive.
    """
    if not numerator.is_finite():
        return numerator
    top_weight, top_digit = _leading(numerator)
    bottom_weight, bottom_digit = _leading(Decimal(count))
    weight = top_weight - bottom_weight - (top_digit <= bottom_digit)
    exponent = numerator.as_tuple().exponent
    shown = max(-exponent, 0) if isinstance(exponent, int) else 0
    scale = min(max(DIVISION_SIGNIFICANT_DIGITS - weight * GROUP_DIGITS, shown, 0), DIVISION_SCALE_MAX)
    context = _exact()
    scaled = context.scaleb(numerator, scale)
    # Integer division first: rounding a quotient that was rounded before could go the other way.
    whole, rest = divmod(int(context.abs(context.scaleb(scaled, shown))), count * 10**shown)
    whole += 2 * rest >= count * 10**shown
    return context.scaleb(Decimal(-whole if numerator < 0 else whole), -scale)


def _leading(value: Decimal) -> tuple[int, int]:
    """The weight and value of the first non-zero group of four digits; (0, 0) for zero."""
    if not value:
        return 0, 0
    weight = value.adjusted() // GROUP_DIGITS
    return weight, int(abs(_exact().scaleb(value, -weight * GROUP_DIGITS)))


def _exact() -> Context:
    return Context(prec=NUMERIC_DIGITS_MAX, rounding=ROUND_HALF_UP, Emin=MIN_EMIN, Emax=MAX_EMAX, traps=[])


def _filtered(function: Any, aggregate: Aggregate) -> ColumnElement[Any]:
    found: ColumnElement[Any] = function if aggregate.criterion is None else function.filter(aggregate.criterion)
    return found
