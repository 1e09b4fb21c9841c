"""One read on many shards at once, with a true merge: each bucket is read once, under one version of the map."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy.engine.result import IteratorResult, SimpleResultMetaData
from sqlalchemy.engine.row import Row

from sharding.connections import open_session, why_unreachable
from sharding.criteria import Parameters, bound_value
from sharding.errors import CannotMerge, ShardUnavailable, TooManyRows
from sharding.merge import Merge, Rows, plan_merge
from sharding.routing import Given, Part, Plan, plan
from sharding.shard_map import ShardId
from sharding.shards import Shards
from sharding.tables import ShardedTables

FAN_OUT_ROWS_MAX = 10_000
"""Rows that one shard may give to one fan-out."""
FAN_OUT_TIMEOUT_S = 5.0
FAN_OUT_CONCURRENCY_MAX = 16
"""Shards that one fan-out asks at a time."""


@dataclass(frozen=True)
class Answer:
    """What a statement returned. `missing` names the shards that did not answer, where that was allowed.

    `rowcount` is the number of rows written, -1 for reads and where the driver does not say.
    """

    rows: list[Row[Any]]
    missing: tuple[ShardId, ...] = ()
    rowcount: int = -1

    def scalars(self) -> list[Any]:
        """The first value of each row."""
        return [row[0] for row in self.rows]

    def one(self) -> Row[Any]:
        """The only row. Raises CannotMerge when there are none or more."""
        if len(self.rows) != 1:
            raise CannotMerge("one()", f"there are {len(self.rows)} rows")
        return self.rows[0]

    def scalar(self) -> Any:
        """The first value of the first row; None when there are no rows."""
        return self.rows[0][0] if self.rows else None


@dataclass(frozen=True)
class _ShardAnswer:
    keys: tuple[str, ...]
    rows: Rows


async def fan_out(
    shards: Shards,
    tables: ShardedTables,
    statement: Any,
    parameters: Given = None,
    *,
    partial: bool = False,
    timeout_s: float = FAN_OUT_TIMEOUT_S,
    rows_max: int = FAN_OUT_ROWS_MAX,
) -> Answer:
    """Reads from every shard that may hold rows of `statement`, all at once, and merges truly.

    ORDER BY, LIMIT and OFFSET, or count, sum, min, max and avg without GROUP BY, hold for the whole; what cannot be
    merged raises CannotMerge before anything runs. A shard that is down or silent for `timeout_s` seconds raises
    ShardUnavailable with its name; with `partial` the others' answer comes, and `missing` names it (when there are no
    others it raises). Raises TooManyRows when a shard has more than `rows_max` rows to give, CannotPlace when rows of
    different shards would be joined. Shards are read at slightly different instants, each by a transaction of its own.
    Entities come detached.
    """
    planned = plan(statement, parameters, tables, shards.map)
    return await run_fan_out(
        shards, planned, statement, parameters, partial=partial, timeout_s=timeout_s, rows_max=rows_max
    )


async def run_fan_out(
    shards: Shards,
    planned: Plan,
    statement: Any,
    parameters: Given,
    *,
    partial: bool = False,
    timeout_s: float = FAN_OUT_TIMEOUT_S,
    rows_max: int = FAN_OUT_ROWS_MAX,
) -> Answer:
    """`fan_out` of a read that was planned already."""
    if planned.writes:
        raise CannotMerge("a write", "a fan-out only reads")
    given = parameters if isinstance(parameters, Mapping) else {}
    if len(planned.parts) == 1:
        part = replace(planned.parts[0], statement=_bounded(planned.parts[0].statement, given, rows_max))
        found = await _ask_all(shards, [part], None, partial=partial, timeout_s=timeout_s)
        if found[0] is None:
            raise ShardUnavailable(part.shard, "no other shard has rows for this")
        return _only(found[0], part, rows_max)
    merges = [plan_merge(part.statement, given, rows_max=rows_max) for part in planned.parts]
    answers = await _ask_all(shards, planned.parts, merges, partial=partial, timeout_s=timeout_s)
    missing = tuple(p.shard for p, answer in zip(planned.parts, answers, strict=True) if answer is None)
    present = [answer for answer in answers if answer is not None]
    if not present:
        raise ShardUnavailable(", ".join(missing), "no shard answered")
    merge = merges[0]
    for part, answer in zip(planned.parts, answers, strict=True):
        if answer is not None and len(answer.rows) > merge.rows_per_shard:
            raise TooManyRows(f"shard {part.shard} has more than {rows_max} rows for this: add a LIMIT, page by cursor")
    rows = merge.merge([answer.rows for answer in present])
    keys = merge.keys or present[0].keys[: len(rows[0]) if rows else None]
    return Answer(_named(keys, rows), missing)


def _bounded(statement: Any, parameters: Parameters, rows_max: int) -> Any:
    """`statement` with a LIMIT that lets one row more through than allowed, unless its own is lower or unknown."""
    if statement._fetch_clause is not None:
        return statement
    asked = None if statement._limit_clause is None else bound_value(statement._limit_clause, parameters)
    if asked is None or (isinstance(asked, int) and asked > rows_max):
        return statement.limit(rows_max + 1)
    return statement


def _only(answer: _ShardAnswer, part: Part, rows_max: int) -> Answer:
    if len(answer.rows) > rows_max:
        raise TooManyRows(f"shard {part.shard} has more than {rows_max} rows for this: add a LIMIT, page by cursor")
    return Answer(_named(answer.keys, [tuple(row) for row in answer.rows]))


def _named(keys: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> list[Row[Any]]:
    result: IteratorResult[Any] = IteratorResult(SimpleResultMetaData(keys), iter(rows))
    return list(result.all())


async def _ask_all(
    shards: Shards, parts: Sequence[Part], merges: Sequence[Merge] | None, *, partial: bool, timeout_s: float
) -> list[_ShardAnswer | None]:
    """The answers in the order of `parts`; None for a shard that did not answer and may be missing."""
    places = asyncio.Semaphore(FAN_OUT_CONCURRENCY_MAX)
    statements = [part.statement for part in parts] if merges is None else [merge.statement for merge in merges]

    async def ask(part: Part, statement: Any) -> _ShardAnswer | None:
        try:
            async with (
                places,
                asyncio.timeout(timeout_s),
                open_session(shards.session_on(part.shard), part.shard) as session,
            ):
                result = await session.execute(statement, part.parameters)
                return _ShardAnswer(tuple(result.keys()), result.all())
        except Exception as error:
            reason = error.reason if isinstance(error, ShardUnavailable) else why_unreachable(error)
            if reason is None:
                raise
            if partial:
                return None
            raise ShardUnavailable(part.shard, reason) from error

    tasks = [asyncio.create_task(ask(part, one)) for part, one in zip(parts, statements, strict=True)]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
