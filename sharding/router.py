"""Executes statements where their rows live: one shard by the criteria, several by fan-out, none by guess."""

from __future__ import annotations

from typing import Any

from sqlalchemy.sql.dml import UpdateBase

from sharding.buckets import Bucket, Key
from sharding.connections import open_session, why_unreachable
from sharding.errors import CannotPlace, ShardUnavailable
from sharding.fan_out import FAN_OUT_ROWS_MAX, FAN_OUT_TIMEOUT_S, Answer, run_fan_out
from sharding.routing import Given, Part, Plan, plan
from sharding.shard_map import ShardMap
from sharding.shards import Shards
from sharding.tables import ShardedTables


class Router:
    """Shards and the declarations of their tables: what it takes to run a statement without naming a shard."""

    def __init__(self, shards: Shards, tables: ShardedTables) -> None:
        self.shards = shards
        self.tables = tables

    def plan(self, statement: Any, parameters: Given = None, *, key: Key | Bucket | None = None) -> Plan:
        """Where a statement would run, part by part; runs nothing. Raises CannotPlace."""
        return plan(statement, parameters, self.tables, self.shards.map, key=key)

    async def execute(
        self,
        statement: Any,
        parameters: Given = None,
        *,
        key: Key | Bucket | None = None,
        each_alone: bool = False,
        partial: bool = False,
        timeout_s: float = FAN_OUT_TIMEOUT_S,
        rows_max: int = FAN_OUT_ROWS_MAX,
    ) -> Answer:
        """Runs a statement in local transactions of its own, one on each shard it touches, and commits them.

        A read of several shards is a fan-out (see `fan_out` for `partial`, `timeout_s` and `rows_max`). A write that
        touches several shards raises CannotPlace unless `each_alone` says that its parts may succeed alone; run the
        parts of `plan` as branches of one global transaction where they may not. A part that the guard refuses is
        placed anew and repeated; where its buckets are on several shards by then, that too takes `each_alone`. When a
        shard goes away during a write, the write may have been committed. Raises CannotPlace, CannotMerge, TooManyRows,
        ShardUnavailable, BucketMoved.
        """
        first = self.plan(statement, parameters, key=key)
        if not first.writes and len(first.parts) > 1:
            return await run_fan_out(
                self.shards, first, statement, parameters, partial=partial, timeout_s=timeout_s, rows_max=rows_max
            )
        _need_consent(first, each_alone)
        done = [await self._run(part, key, each_alone) for part in first.parts]
        rows = [row for answer in done for row in answer.rows]
        return Answer(rows, (), _sum_rowcounts(done))

    async def _run(self, part: Part, key: Key | Bucket | None, each_alone: bool) -> Answer:
        """Runs a part on the one shard that the map says at each attempt.

        A part was narrowed to its own buckets, so placing it anew after a move cannot touch what another part did.
        """

        async def attempt(map: ShardMap) -> list[Answer]:
            planned = plan(part.statement, part.parameters, self.tables, map, key=key, only=part.buckets)
            if len(planned.parts) == 1:
                return [await self._run_on(planned.parts[0])]
            # The buckets came apart: each part is repeated for itself, so none that committed runs again.
            _need_consent(planned, each_alone)
            return [await self._run(one, key, each_alone) for one in planned.parts]

        answers = await self.shards.retry_moved(attempt)
        rows = [row for answer in answers for row in answer.rows]
        return Answer(rows, (), _sum_rowcounts(answers))

    async def _run_on(self, part: Part) -> Answer:
        try:
            async with open_session(self.shards.session_on(part.shard), part.shard) as session:
                # The session has no objects yet that a write would have to be told to.
                result: Any = await session.execute(
                    part.statement, part.parameters, execution_options={"synchronize_session": False}
                )
                returns_rows = getattr(result, "returns_rows", None)
                if returns_rows is None:  # what mapped classes answer with does not say
                    returns_rows = not isinstance(part.statement, UpdateBase) or bool(part.statement._returning)
                rows = list(result.all()) if returns_rows else []
                rowcount = -1 if returns_rows else getattr(result, "rowcount", -1)
                await session.commit()
                return Answer(rows, (), rowcount)
        except ShardUnavailable:
            raise
        except Exception as error:
            reason = why_unreachable(error)
            if reason is None:
                raise
            raise ShardUnavailable(part.shard, reason) from error


def _need_consent(planned: Plan, each_alone: bool) -> None:
    if len(planned.parts) > 1 and not each_alone:
        names = ", ".join(part.shard for part in planned.parts)
        raise CannotPlace(
            planned.table,
            f"the write touches shards {names}: run the parts of plan() as branches of one global transaction,"
            " or say each_alone=True",
        )


def _sum_rowcounts(answers: list[Answer]) -> int:
    counts = [answer.rowcount for answer in answers]
    return -1 if -1 in counts else sum(counts)
