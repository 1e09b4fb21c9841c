"""Monthly partitions, made ahead: ``orders_2026_11`` holds the rows of November 2026, in UTC."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from asyncpg.exceptions import (
    CheckViolationError,
    DuplicateTableError,
    InvalidObjectDefinitionError,
    LockNotAvailableError,
)

from sharding.connections import AnyConnection, bare, local_setting
from sharding.errors import PartitionsRefused

NAME_BYTES_MAX = 63
AHEAD_MONTHS_MAX = 120
LOCK_TIMEOUT_MS = 1_000
LOCK_ATTEMPTS_MAX = 5
LOCK_PAUSE_S = 0.2
PARTITION_LOCK_CLASS = 7_204_516
"""First key of the advisory lock that lets one caller at a time make partitions of a table."""
TABLE_SQL = """
SELECT n.nspname AS schema, c.relname AS name, n.nspname::regnamespace::text AS quoted_schema, o.rolname AS owner,
       c.oid::int8 AS oid,
       p.partstrat = 'r' AND p.partnatts = 1 AND a.atttypid = 'timestamptz'::regtype AS by_time
FROM pg_class AS c
JOIN pg_namespace AS n ON n.oid = c.relnamespace
JOIN pg_roles AS o ON o.oid = c.relowner
LEFT JOIN pg_partitioned_table AS p ON p.partrelid = c.oid
LEFT JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum = p.partattrs[0]
WHERE c.oid = to_regclass($1)
"""
PARTITIONS_SQL = """
SELECT c.oid::regclass::text AS name, pg_get_expr(c.relpartbound, c.oid) AS bound
FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid
WHERE i.inhparent = to_regclass($1)
"""
_BOUND = re.compile(r"FOR VALUES FROM \((?:'([^']+)'|(MINVALUE))\) TO \((?:'([^']+)'|(MAXVALUE))\)")

AfterCreate = Callable[[Any, str], Awaitable[None]]
"""Is given the asyncpg connection, inside the transaction that made the partition, and the partition's name for SQL."""


@dataclass(frozen=True)
class Partition:
    """One partition, with its half-open span in UTC. None is without a bound; a default partition has neither."""

    name: str
    starts: datetime | None
    ends: datetime | None
    is_default: bool = False


def month_of(instant: datetime, ahead: int = 0) -> datetime:
    """The first instant of the month that is `ahead` months after that of `instant`, in UTC."""
    there = instant.astimezone(UTC)
    months = there.year * 12 + there.month - 1 + ahead
    return datetime(months // 12, months % 12 + 1, 1, tzinfo=UTC)


def partition_name(table: str, month: datetime) -> str:
    """``table_YYYY_MM``. Raises PartitionsRefused when PostgreSQL would cut the name."""
    name = f"{table}_{month:%Y_%m}"
    if len(name.encode()) > NAME_BYTES_MAX:
        raise PartitionsRefused(f"{name} is longer than {NAME_BYTES_MAX} bytes: shorten the table's name")
    return name


async def partitions_of(connection: AnyConnection, table: str) -> list[Partition]:
    """The partitions of `table` ("orders" or "schema.orders") by their start, the default one last."""
    raw = await bare(connection)
    async with raw.transaction():
        async with local_setting(raw, "datestyle", "ISO"):
            rows = await raw.fetch(PARTITIONS_SQL, table)
    found = [_partition(row["name"], row["bound"]) for row in rows]
    return sorted(found, key=lambda p: (p.is_default, p.starts or datetime.min.replace(tzinfo=UTC)))


async def ensure_months(
    connection: AnyConnection,
    table: str,
    ahead: int = 3,
    *,
    now: datetime,
    behind: int = 0,
    after_create: AfterCreate | None = None,
) -> list[str]:
    """Makes the partitions of `now`'s month, `behind` before it and `ahead` after it that are missing; names the new.

    `table` is partitioned by range of one timestamptz column. Repeatable; concurrent callers wait for one another.
    Partitions belong to the table's owner, and get its indexes and row triggers from it; `after_create` is for what
    does not follow by itself (statement triggers). A month that an existing partition covers is left alone. Making one
    locks the table for an instant: behind a long transaction that is tried again, LOCK_ATTEMPTS_MAX times, without
    holding up others for more than LOCK_TIMEOUT_MS. Raises PartitionsRefused.
    """
    if not 0 <= ahead <= AHEAD_MONTHS_MAX or not 0 <= behind <= AHEAD_MONTHS_MAX or now.tzinfo is None:
        raise PartitionsRefused(f"ahead and behind are 0 to {AHEAD_MONTHS_MAX} months, and now needs a zone")
    raw = await bare(connection)
    months = [month_of(now, step) for step in range(-behind, ahead + 1)]
    for attempt in range(1, LOCK_ATTEMPTS_MAX + 1):
        try:
            async with raw.transaction():
                return await _make_missing(raw, table, months, after_create)
        except LockNotAvailableError:
            if attempt == LOCK_ATTEMPTS_MAX:
                raise PartitionsRefused(f"{table} was locked by others in {attempt} attempts: try later") from None
            await asyncio.sleep(LOCK_PAUSE_S)
    raise AssertionError("unreachable")


async def _make_missing(raw: Any, table: str, months: list[datetime], after_create: AfterCreate | None) -> list[str]:
    row = await raw.fetchrow(TABLE_SQL, table)
    if row is None or not row["by_time"]:
        raise PartitionsRefused(f"{table} is not a table partitioned by range of one timestamptz column")
    await raw.execute("SELECT pg_advisory_xact_lock($1, $2)", PARTITION_LOCK_CLASS, row["oid"] % 2**31)
    standing = await partitions_of(raw, table)
    made = []
    async with local_setting(raw, "lock_timeout", f"{LOCK_TIMEOUT_MS}ms"):
        for month in months:
            if _covered(month, standing):
                continue
            plain = partition_name(row["name"], month)
            name = f"{row['quoted_schema']}.{await raw.fetchval('SELECT quote_ident($1)', plain)}"
            await _make(raw, table, name, month)
            owner = await raw.fetchval("SELECT quote_ident($1)", row["owner"])
            if await raw.fetchval("SELECT current_user <> $1", row["owner"]):
                await raw.execute(f"ALTER TABLE {name} OWNER TO {owner}")
            if after_create is not None:
                await after_create(raw, name)
            made.append(plain)
    return made


async def _make(raw: Any, table: str, name: str, month: datetime) -> None:
    try:
        await raw.execute(
            f"CREATE TABLE {name} PARTITION OF {table}"
            f" FOR VALUES FROM ('{month.isoformat()}') TO ('{month_of(month, 1).isoformat()}')"
        )
    except CheckViolationError as error:
        raise PartitionsRefused(
            f"{name}: the default partition holds rows of this month, move them: {error}"
        ) from error
    except (DuplicateTableError, InvalidObjectDefinitionError) as error:
        raise PartitionsRefused(f"{name}: another table has its name or a part of its month: {error}") from error


def _covered(month: datetime, partitions: list[Partition]) -> bool:
    ends = month_of(month, 1)
    return any(
        not p.is_default and (p.starts is None or p.starts <= month) and (p.ends is None or p.ends >= ends)
        for p in partitions
    )


def _partition(name: str, bound: str) -> Partition:
    found = _BOUND.fullmatch(bound)
    if found is None:
        return Partition(name, None, None, is_default=bound == "DEFAULT")
    starts, _, ends, _ = found.groups()
    return Partition(name, _instant(starts), _instant(ends))


def _instant(text: str | None) -> datetime | None:
    # In ISO form PostgreSQL writes the offset of the session's zone, so no zone has to be set.
    return None if text in (None, "infinity", "-infinity") else datetime.fromisoformat(text).astimezone(UTC)
