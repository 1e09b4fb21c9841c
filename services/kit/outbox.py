"""Outbox: messages leave after the change that they tell of, never before, and never for a change that was undone.

`send` writes the message beside the change. The relay of each database takes rows that no undecided global transaction
holds, hands them to Dramatiq, and deletes them: at least once, so consumers use `taken_once`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

import dramatiq
import structlog
from redis.exceptions import RedisError
from sqlalchemy import bindparam, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession

from coordinator.protocol.ids import uuid7
from services.kit.cache import Cache
from services.kit.clock import Clock
from services.kit.database import Store

BATCH_MAX = 200
POLL_MIN_S = 0.05
POLL_MAX_S = 1.0
FAILURE_WAIT_S = 1.0
CACHE_QUEUE = "cache"
TAKEN_KEPT_DAYS = 30
"""How long a message that was taken is remembered: longer than one can still come again (a day of retries, and a week
in which the broker keeps what failed for good)."""

log = structlog.get_logger(__name__)

INSERT = text(
    """
    INSERT INTO outbox (id, queue, actor, args, delay_ms, trace_id)
    VALUES (:id, :queue, :actor, :args, :delay_ms, :trace_id)
    """
).bindparams(bindparam("args", type_=JSONB))

# A row and the lock on it become visible in the same commit, so one snapshot sees both or neither.
TAKE = text(
    """
    SELECT id, queue, actor, args, delay_ms, trace_id
    FROM outbox AS o
    WHERE NOT EXISTS (SELECT FROM at."public.outbox" AS u WHERE u.id = o.id)
    ORDER BY id
    LIMIT :batch
    FOR UPDATE SKIP LOCKED
    """
)
DELETE = text("DELETE FROM outbox WHERE id = ANY(:ids)")
TAKEN = text("INSERT INTO inbox (message_id, consumer) VALUES (:message_id, :consumer) ON CONFLICT DO NOTHING")
FORGET = text("DELETE FROM inbox WHERE taken_at < clock_timestamp() - make_interval(days => :kept_days)")


async def send(
    session: AsyncSession, clock: Clock, *, queue: str, actor: str, args: Mapping[str, Any], delay_ms: int = 0
) -> UUID:
    """Writes a message for `actor` beside the change in `session`; returns its id. `args` must be JSON."""
    message_id = uuid7(int(clock().timestamp() * 1000))
    trace_id = structlog.contextvars.get_contextvars().get("trace_id")
    await session.execute(
        INSERT,
        {
            "id": message_id,
            "queue": queue,
            "actor": actor,
            "args": dict(args),
            "delay_ms": delay_ms,
            "trace_id": trace_id,
        },
    )
    return message_id


async def cache_drop(session: AsyncSession, clock: Clock, *keys: str) -> None:
    """Has `keys` dropped from the cache once the change in `session` can no longer be undone."""
    await send(session, clock, queue=CACHE_QUEUE, actor="drop", args={"keys": list(keys)})


async def taken_once(session: AsyncSession, message_id: UUID, consumer: str) -> bool:
    """True the first time that `consumer` takes this message in a committed transaction, False for a repeat."""
    result = await session.execute(TAKEN, {"message_id": message_id, "consumer": consumer})
    return bool(result.rowcount)  # type: ignore[attr-defined]  # a CursorResult, for a statement without rows


async def forget_taken(store: Store) -> None:
    """Drops what was taken more than TAKEN_KEPT_DAYS ago."""

    async def work(session: AsyncSession) -> None:
        await session.execute(FORGET, {"kept_days": TAKEN_KEPT_DAYS})

    await store.local(work)


class Relay:
    """Moves one database's outbox to the broker. Any number of replicas may run it at once."""

    def __init__(self, store: Store, broker: dramatiq.Broker, cache: Cache) -> None:
        self._store = store
        self._broker = broker
        self._cache = cache

    async def run(self) -> None:
        """Runs until cancelled; survives the database and Redis being away."""
        wait_s = POLL_MIN_S
        while True:
            try:
                sent = await self.relay_once()
                wait_s = POLL_MIN_S if sent else min(wait_s * 2, POLL_MAX_S)
            except (DBAPIError, RedisError, dramatiq.errors.ConnectionError, OSError, TimeoutError) as error:
                log.warning("outbox.waiting", store=self._store.name, error=str(error).splitlines()[0])
                wait_s = FAILURE_WAIT_S
            except Exception:  # a relay that has ended is missed by nobody but those who wait for their messages
                log.exception("outbox.failed", store=self._store.name)
                wait_s = FAILURE_WAIT_S
            await asyncio.sleep(wait_s)

    async def relay_once(self) -> int:
        """Sends what is free, at most BATCH_MAX; returns how many."""
        async with self._store.session() as session, session.begin():
            rows = (await session.execute(TAKE, {"batch": BATCH_MAX})).all()
            if not rows:
                return 0
            await self._send_all(rows)
            await session.execute(DELETE, {"ids": [row.id for row in rows]})
        return len(rows)

    async def _send_all(self, rows: Sequence[Any]) -> None:
        messages = []
        for row in rows:
            if row.queue == CACHE_QUEUE:
                await self._cache.drop_surely(*row.args["keys"])
                continue
            message: dramatiq.Message[Any] = dramatiq.Message(
                queue_name=row.queue,
                actor_name=row.actor,
                args=(),
                kwargs={**row.args, "message_id": str(row.id)},
                options={"trace_id": row.trace_id},
                message_id=str(row.id),
            )
            messages.append((message, row.delay_ms or None))
        if messages:
            await asyncio.to_thread(self._enqueue, messages)

    def _enqueue(self, messages: Sequence[tuple[dramatiq.Message[Any], int | None]]) -> None:
        for message, delay_ms in messages:
            self._broker.enqueue(message, delay=delay_ms)
