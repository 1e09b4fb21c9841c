"""Keyset cursors for pages over shards, ordered by (created_at desc, id desc).

A page starts strictly after the last row of the one before, so rows that arrive and buckets that move neither repeat
nor hide a row. A cursor is opaque: version, microseconds since 1970, id, and a keyed BLAKE2b (RFC 7693) over all.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import struct
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar
from uuid import UUID

from sqlalchemy import ColumnElement, Select, tuple_

from sharding.errors import BadCursor

CURSOR_VERSION = 1
CURSOR_CHARS_MAX = 128
SIGNATURE_BYTES = 16
KEY_BYTES_MIN = 16
KEY_BYTES_MAX = 64
_BODY = struct.Struct(">Bq16s")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

S = TypeVar("S", bound=Select[Any])


@dataclass(frozen=True)
class Position:
    """The place of a row in the order (created_at desc, id desc). `created_at` has a zone."""

    created_at: datetime
    id: UUID


@dataclass(frozen=True)
class Cursors:
    """Encodes and decodes cursors. `key` is 16 to 64 secret bytes, the same in all replicas.

    `scope` ties a cursor to what it pages (such as ``orders:<owner>``): one made for another scope is refused.
    """

    key: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if not KEY_BYTES_MIN <= len(self.key) <= KEY_BYTES_MAX:
            raise BadCursor(f"a cursor key has {KEY_BYTES_MIN} to {KEY_BYTES_MAX} bytes, this one {len(self.key)}")

    def encode(self, position: Position, scope: str = "") -> str:
        """The cursor of a row, in URL-safe letters. Raises BadCursor when `created_at` has no zone."""
        if position.created_at.tzinfo is None:
            raise BadCursor("the time of a position needs a zone")
        micros = (position.created_at - _EPOCH) // _MICROSECOND
        body = _BODY.pack(CURSOR_VERSION, micros, position.id.bytes)
        return base64.urlsafe_b64encode(body + self._sign(body, scope)).decode().rstrip("=")

    def decode(self, cursor: str, scope: str = "") -> Position:
        """The row of a cursor. Raises BadCursor when it was not made with this key for this scope."""
        if len(cursor) > CURSOR_CHARS_MAX:
            raise BadCursor("the cursor is too long to be one of ours")
        try:
            raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            raise BadCursor("the cursor is not one of ours: start again without it") from None
        body, signature = raw[: _BODY.size], raw[_BODY.size :]
        if len(body) != _BODY.size or not hmac.compare_digest(signature, self._sign(body, scope)):
            raise BadCursor("the cursor is not one of ours: start again without it")
        _, micros, id_bytes = _BODY.unpack(body)
        return Position(_EPOCH + micros * _MICROSECOND, UUID(bytes=id_bytes))

    def _sign(self, body: bytes, scope: str) -> bytes:
        return hashlib.blake2b(body + scope.encode(), key=self.key, digest_size=SIGNATURE_BYTES).digest()


def page(
    statement: S,
    created_at: ColumnElement[Any] | Any,
    id: ColumnElement[Any] | Any,
    *,
    after: Position | None,
    limit: int,
) -> S:
    """`statement` as one page of at most `limit` rows after a position (from the newest without one).

    Both columns are NOT NULL. An ORDER BY that `statement` has is replaced. Ask for one row more than is shown to know
    whether there is a next page.
    """
    if after is not None:
        statement = statement.where(tuple_(created_at, id) < tuple_(after.created_at, after.id))
    # An order of its own would come first, and the position would not be one in it.
    return statement.order_by(None).order_by(created_at.desc(), id.desc()).limit(limit)
