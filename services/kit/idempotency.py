"""Idempotency-Key: the same key and request get the same answer, once done (draft-ietf-httpapi-idempotency-key-header).

The answer is kept in the branch that makes the request's effect durable, so a crash leaves both or neither. A key
without an answer belongs to a request that is running, or whose process died: after `LEASE_S` it may be taken again.
Whoever was only slow finds then that the key is not theirs any more: they can neither make their effect durable nor
free the key. Errors are not kept: the same key may try again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec
import structlog
from sqlalchemy import bindparam, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncSession

from coordinator.client import OutcomeUnknown
from services.kit.database import Store
from services.kit.problems import Problem, bad_request, conflict, unprocessable

HEADER = "Idempotency-Key"
REPLAYED_HEADER = "Idempotency-Replayed"
LEASE_S = 30
"""Longer than a global transaction lives (10 s), so whoever takes a key again seldom meets the first one."""
KEPT_H = 24
KEY_LENGTH_MAX = 200

log = structlog.get_logger(__name__)

OPEN = text(
    """
    INSERT INTO idempotency_keys (bucket, actor, key, request_hash)
    VALUES (:bucket, :actor, :key, :request_hash)
    ON CONFLICT DO NOTHING
    RETURNING started_at
    """
)
# An update, not a select: it meets the lock of a transaction that kept its answer and is not decided yet.
FIND = text(
    """
    UPDATE idempotency_keys SET done = done
    WHERE bucket = :bucket AND actor = :actor AND key = :key
    RETURNING request_hash, done, status, body,
              started_at < clock_timestamp() - make_interval(secs => :lease_s) AS abandoned
    """
)
# The row lock of FIND is held until then, so only one of two who find an abandoned key takes it.
RETAKE = text(
    """
    UPDATE idempotency_keys SET started_at = clock_timestamp()
    WHERE bucket = :bucket AND actor = :actor AND key = :key
    RETURNING started_at
    """
)
# `started_at` fences: it is another one once somebody else has taken the key.
KEEP = text(
    """
    UPDATE idempotency_keys SET done = true, status = :status, body = :body
    WHERE bucket = :bucket AND actor = :actor AND key = :key AND started_at = :taken_at
    RETURNING key
    """
).bindparams(bindparam("body", type_=JSONB(none_as_null=True)))
# Like FIND, it meets the lock of our own answer while that is being undone: before, the key would look done.
TOUCH = text(
    """
    UPDATE idempotency_keys SET done = done
    WHERE bucket = :bucket AND actor = :actor AND key = :key AND started_at = :taken_at
    """
)
ABANDON = text(
    """
    DELETE FROM idempotency_keys
    WHERE bucket = :bucket AND actor = :actor AND key = :key AND started_at = :taken_at AND NOT done
    """
)
SWEEP = text("DELETE FROM idempotency_keys WHERE started_at < clock_timestamp() - make_interval(hours => :kept_h)")


@dataclass(frozen=True)
class Reply:
    """An answer as it is kept: `body` is JSON."""

    status: int
    body: Any
    replayed: bool = False


@dataclass(frozen=True)
class Keyed:
    """One request with its key. `keep` must be called in the branch that makes the effect durable.

    `taken_at` is when the key was taken for it; None before it was, and then there is nothing to keep.
    """

    actor: UUID
    key: str
    request_hash: bytes
    bucket: int = 0
    taken_at: datetime | None = None

    @property
    def _row(self) -> dict[str, Any]:
        return {"bucket": self.bucket, "actor": self.actor, "key": self.key}

    async def keep(self, session: AsyncSession, status: int, body: Any) -> Reply:
        """Writes the answer beside the effect; returns it.

        Raises 409 `idempotency-in-flight` when the key's lease ended and somebody else took it: the effect is theirs.
        """
        plain = msgspec.to_builtins(body)
        row = {**self._row, "taken_at": self.taken_at, "status": status, "body": plain}
        if (await session.execute(KEEP, row)).first() is None:
            raise _in_flight(f"The request with {HEADER} {self.key!r} took too long, and a repeat of it is running.")
        return Reply(status, plain)


def keyed(actor: UUID, key: str | None, method: str, path: str, body: Any, *, bucket: int = 0) -> Keyed:
    """Reads the header's value. Raises a 400 problem when it is missing or unusable."""
    if not key:
        raise bad_request(
            f"Send a new '{HEADER}' header with every booking or payment (a random UUID does), and the same one when "
            "you repeat it.",
            code="idempotency-key-missing",
        )
    if len(key) > KEY_LENGTH_MAX or not key.isprintable():
        raise bad_request(f"'{HEADER}' must be 1 to {KEY_LENGTH_MAX} printable characters.", code="idempotency-key-bad")
    request = msgspec.json.encode([method, path.rstrip("/"), body], order="deterministic")
    return Keyed(actor, key, hashlib.sha256(request).digest(), bucket)


async def once(store: Store, request: Keyed, work: Callable[[Keyed], Awaitable[Reply]]) -> Reply:
    """Runs `work` for a new key; gives the kept answer for a known one.

    Raises 422 `idempotency-conflict` when the key came with another request, 409 `idempotency-in-flight` when
    the first is still running.
    """
    opened = await store.local(lambda session: _open(session, request))
    if isinstance(opened, Reply):
        return opened
    taken = replace(request, taken_at=opened)
    try:
        reply = await work(taken)
    except OutcomeUnknown:
        raise  # the key stays taken: only the decision can tell
    except BaseException:
        await _free(store, taken)
        raise
    return reply


async def sweep(store: Store) -> None:
    """Drops keys older than KEPT_H hours."""

    async def work(session: AsyncSession) -> None:
        await session.execute(SWEEP, {"kept_h": KEPT_H})

    await store.local(work)


async def _open(session: AsyncSession, request: Keyed) -> Reply | datetime:
    """The kept answer, or when the key was taken."""
    row = {**request._row, "request_hash": request.request_hash}
    taken_at: datetime | None = (await session.execute(OPEN, row)).scalar_one_or_none()
    if taken_at is not None:
        return taken_at
    found = (await session.execute(FIND, {**request._row, "lease_s": LEASE_S})).first()
    if found is None:
        raise conflict("idempotency-in-flight", f"The request with {HEADER} {request.key!r} just ended. Repeat it.")
    if bytes(found.request_hash) != request.request_hash:
        raise unprocessable(
            "idempotency-conflict", f"{HEADER} {request.key!r} was used for another request. Take a new key."
        )
    if found.done:
        return Reply(found.status, found.body, replayed=True)
    if found.abandoned:
        retaken_at: datetime = (await session.execute(RETAKE, request._row)).scalar_one()
        return retaken_at
    raise _in_flight(f"The request with {HEADER} {request.key!r} is running.")


async def _free(store: Store, request: Keyed) -> None:
    """Frees the key of a request that failed. Never raises: whoever asked must hear why their request failed."""
    try:
        await store.local(lambda session: _abandon(session, request))
    except Exception as error:  # whatever it is, the key is free when its lease ends
        log.warning("idempotency.not_freed", key=request.key, error=f"{type(error).__name__}: {error}")


async def _abandon(session: AsyncSession, request: Keyed) -> None:
    mine = {**request._row, "taken_at": request.taken_at}
    await session.execute(TOUCH, mine)
    await session.execute(ABANDON, mine)


def _in_flight(detail: str) -> Problem:
    return Problem(409, "idempotency-in-flight", f"{detail} Repeat it in a moment.", headers={"Retry-After": "1"})
