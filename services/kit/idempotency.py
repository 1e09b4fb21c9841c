"""Idempotency-Key: the same key and request get the same answer, once done (draft-ietf-httpapi-idempotency-key-header).

The answer is kept in the branch that makes the request's effect durable, so a crash leaves both or neither. A key
without an answer belongs to a request that is running, or whose process died: after `LEASE_S` it may be taken again.
Errors are not kept: the same key may try again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import msgspec
from sqlalchemy import bindparam, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncSession

from coordinator.client import OutcomeUnknown
from services.kit.database import Store
from services.kit.problems import Problem, bad_request, conflict, unprocessable

HEADER = "Idempotency-Key"
REPLAYED_HEADER = "Idempotency-Replayed"
LEASE_S = 30
"""Longer than a global transaction lives (10 s), so whoever takes a key again finds the first one decided."""
KEPT_H = 24
KEY_LENGTH_MAX = 200

OPEN = text(
    """
    INSERT INTO idempotency_keys (bucket, actor, key, request_hash)
    VALUES (:bucket, :actor, :key, :request_hash)
    ON CONFLICT DO NOTHING
    RETURNING key
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
    """
)
KEEP = text(
    """
    UPDATE idempotency_keys SET done = true, status = :status, body = :body
    WHERE bucket = :bucket AND actor = :actor AND key = :key
    """
).bindparams(bindparam("body", type_=JSONB(none_as_null=True)))
ABANDON = text("DELETE FROM idempotency_keys WHERE bucket = :bucket AND actor = :actor AND key = :key AND NOT done")
SWEEP = text("DELETE FROM idempotency_keys WHERE started_at < clock_timestamp() - make_interval(hours => :kept_h)")


@dataclass(frozen=True)
class Reply:
    """An answer as it is kept: `body` is JSON."""

    status: int
    body: Any
    replayed: bool = False


@dataclass(frozen=True)
class Keyed:
    """One request with its key. `keep` must be called in the branch that makes the effect durable."""

    actor: UUID
    key: str
    request_hash: bytes
    bucket: int = 0

    @property
    def _row(self) -> dict[str, Any]:
        return {"bucket": self.bucket, "actor": self.actor, "key": self.key}

    async def keep(self, session: AsyncSession, status: int, body: Any) -> Reply:
        """Writes the answer beside the effect; returns it."""
        plain = msgspec.to_builtins(body)
        await session.execute(KEEP, {**self._row, "status": status, "body": plain})
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
    known = await store.local(lambda session: _open(session, request))
    if known is not None:
        return known
    try:
        reply = await work(request)
    except OutcomeUnknown:
        raise  # the key stays taken: only the decision can tell
    except BaseException:
        await store.local(lambda session: _abandon(session, request))
        raise
    return reply


async def sweep(store: Store) -> None:
    """Drops keys older than KEPT_H hours."""

    async def work(session: AsyncSession) -> None:
        await session.execute(SWEEP, {"kept_h": KEPT_H})

    await store.local(work)


async def _open(session: AsyncSession, request: Keyed) -> Reply | None:
    row = {**request._row, "request_hash": request.request_hash}
    if (await session.execute(OPEN, row)).first() is not None:
        return None
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
        await session.execute(RETAKE, request._row)
        return None
    raise Problem(
        409,
        "idempotency-in-flight",
        f"The request with {HEADER} {request.key!r} is running. Repeat it in a moment.",
        headers={"Retry-After": "1"},
    )


async def _abandon(session: AsyncSession, request: Keyed) -> None:
    await session.execute(ABANDON, request._row)
