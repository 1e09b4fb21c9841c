"""Pages by keyset: `{items, next_cursor}`, stable while rows arrive. The cursor is opaque and signed."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import msgspec

from services.kit.problems import bad_request

LIMIT_DEFAULT = 20
LIMIT_MAX = 100
SIGNATURE_BYTES = 8

T = TypeVar("T")


class Page(msgspec.Struct, Generic[T], frozen=True):
    """One page; `next_cursor` is None on the last."""

    items: list[T]
    next_cursor: str | None = None


@dataclass(frozen=True)
class Cursors:
    """Makes and reads cursors; `secret` keeps callers from writing their own."""

    secret: bytes

    def encode(self, position: Sequence[Any]) -> str:
        """A cursor for the last row of a page, given as its sort key (JSON values, instants, UUIDs)."""
        body = msgspec.json.encode(list(position))
        return base64.urlsafe_b64encode(self._sign(body) + body).decode().rstrip("=")

    def decode(self, cursor: str | None, kind: type[T]) -> T | None:
        """The position as `kind` (such as ``tuple[datetime, UUID]``), None without one; a 400 problem when forged."""
        if cursor is None:
            return None
        try:
            raw = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
            signature, body = raw[:SIGNATURE_BYTES], raw[SIGNATURE_BYTES:]
            if not hmac.compare_digest(signature, self._sign(body)):
                raise ValueError("signature")
            return msgspec.json.decode(body, type=kind)
        except (ValueError, msgspec.DecodeError):
            raise bad_request("The cursor is not one of ours. Start again without it.", code="bad-cursor") from None

    def _sign(self, body: bytes) -> bytes:
        return hmac.new(self.secret, body, hashlib.sha256).digest()[:SIGNATURE_BYTES]


def page_of(rows: Sequence[T], limit: int, cursors: Cursors, key: Any) -> Page[T]:
    """A page from up to `limit` + 1 rows: the extra one only tells that there is a next page."""
    more = len(rows) > limit
    items = list(rows[:limit])
    return Page(items, cursors.encode(key(items[-1])) if more and items else None)
