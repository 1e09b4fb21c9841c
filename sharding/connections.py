"""Small things that every module that speaks to a database needs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any

import asyncpg
from asyncpg.exceptions import InterfaceError, InternalClientError, PostgresError
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from sharding.errors import ShardUnavailable

AnyConnection = asyncpg.Connection | AsyncConnection
"""A bare asyncpg connection, or a SQLAlchemy one over asyncpg whose transaction, if begun, is joined."""

CONNECT_TIMEOUT_S = 5.0
CONNECT_ERRORS = (DBAPIError, PoolTimeout, PostgresError, InterfaceError, InternalClientError, OSError, TimeoutError)
"""What a server that is away may raise; a connection cut at an unlucky moment confuses asyncpg itself."""
UNREACHABLE_STATES = ("08", "57P", "53300")
"""SQLSTATEs, or their beginnings, that speak of the server and not of the statement."""


def load_sql(name: str) -> str:
    """The text of a .sql file of this package."""
    return files("sharding").joinpath(name).read_text(encoding="utf-8")


def asyncpg_dsn(url: str) -> str:
    """`url` as asyncpg reads it: SQLAlchemy's driver name is taken off."""
    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


async def connect(dsn: str, **options: Any) -> Any:
    """A new asyncpg connection, within CONNECT_TIMEOUT_S."""
    opening: Any = asyncpg.connect
    return await opening(dsn, timeout=CONNECT_TIMEOUT_S, **options)


async def bare(connection: AnyConnection) -> Any:
    """The asyncpg connection itself; Any, because asyncpg has no types."""
    if isinstance(connection, AsyncConnection):
        # A statement makes SQLAlchemy begin, so that what is done here is in its transaction and not beside it.
        await connection.exec_driver_sql("SELECT 1")
        return (await connection.get_raw_connection()).driver_connection
    return connection


@asynccontextmanager
async def local_setting(raw: Any, name: str, value: str) -> AsyncIterator[None]:
    """A setting inside a transaction or savepoint, put back at the end: the caller may go on in the same transaction.

    When the block raises, the rollback that follows puts it back.
    """
    before = await raw.fetchval("SELECT current_setting($1)", name)
    await raw.execute("SELECT set_config($1, $2, true)", name, value)
    yield
    await raw.execute("SELECT set_config($1, $2, true)", name, before)


def postgres_error(error: BaseException) -> Any:
    """The server's own error inside what a library made of it, None when there is none."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, PostgresError):
            return seen
        inner: Any = getattr(seen, "orig", None)
        seen = inner if isinstance(inner, BaseException) else seen.__cause__
    return None


def is_moved(error: BaseException) -> bool:
    """Whether the guard refused a write because its bucket is elsewhere by now: roll back, refresh the map, go again.

    Under REPEATABLE READ and SERIALIZABLE the guard speaks by a serialization failure of its own.
    """
    found = postgres_error(error)
    if found is None:
        return False
    if found.sqlstate == "SH001":
        return True
    return found.sqlstate == "40001" and "sharding.guard()" in (found.as_dict().get("context") or "")


@asynccontextmanager
async def open_session(session: AsyncSession, shard: str) -> AsyncIterator[AsyncSession]:
    """`session`, connected; closed at the end, and rolled back unless it was committed.

    Raises ShardUnavailable when there is no connection to be had, for whatever reason the server or the pool gives.
    """
    async with session:
        try:
            await session.connection()
        except CONNECT_ERRORS as error:
            raise ShardUnavailable(shard, str(getattr(error, "orig", None) or error) or type(error).__name__) from error
        yield session


def why_unreachable(error: BaseException) -> str | None:
    """What is wrong with the server, None when `error` is about the statement or a bug."""
    found = postgres_error(error)
    if found is not None:
        return str(found) if str(found.sqlstate).startswith(UNREACHABLE_STATES) else None
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, PoolTimeout):
        return "no free connection in time"
    if isinstance(error, OSError):
        return str(error) or type(error).__name__
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return "the connection was cut"
    if isinstance(error, InternalClientError) or (isinstance(error, InterfaceError) and "closed" in str(error)):
        return "the connection was cut"
    return None
