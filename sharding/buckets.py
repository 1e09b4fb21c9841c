"""Buckets: the 1024 fixed classes of sharding keys.

`bucket_of` is SHA-256 (FIPS 180-4) of the key's canonical bytes, its first 16 bits as a big-endian number, the low ten
of them. SHA-256 is the same on every machine, in every version of Python and PostgreSQL, and as a built-in of both:
`sharding.bucket_of` in guard.sql is its twin. PostgreSQL's own hash functions make no promise over versions.
"""

from __future__ import annotations

import hashlib
from typing import NewType
from uuid import UUID

from sharding.errors import NotAKey

Bucket = NewType("Bucket", int)
"""A number in ``range(BUCKET_COUNT)``."""

Key = UUID | str | int | bytes
"""What may be a sharding key."""

BUCKET_COUNT = 1024
"""Fixed for the life of the data: ids carry ten bits of it."""


def bucket(number: int) -> Bucket:
    """`number` as a bucket. Raises NotAKey when it is outside ``range(BUCKET_COUNT)``."""
    if isinstance(number, bool) or not 0 <= number < BUCKET_COUNT:
        raise NotAKey(f"{number!r} is no bucket: buckets are 0 to {BUCKET_COUNT - 1}")
    return Bucket(number)


def bucket_of(key: Key) -> Bucket:
    """The bucket of a sharding key, by hash; it never changes.

    The canonical bytes are those of the key's text in UTF-8: a UUID as 8-4-4-4-12 lower-case digits, an int in
    decimal; bytes stand for themselves. So ``bucket_of(key) == bucket_of(str(key))``, and PostgreSQL agrees on
    ``key::text``. Raises NotAKey for other types, and for text that UTF-8 cannot hold. Costs about a microsecond.
    """
    if isinstance(key, bytes):
        raw = key
    elif isinstance(key, str):
        raw = _utf8(key)
    elif isinstance(key, UUID):
        raw = str(key).encode()
    elif isinstance(key, int) and not isinstance(key, bool):
        raw = int.__repr__(key).encode()  # not str(): a member of an enumeration has a text of its own
    else:
        raise NotAKey(f"a sharding key is a UUID, str, int or bytes, not {type(key).__name__}")
    return Bucket(int.from_bytes(hashlib.sha256(raw).digest()[:2], "big") % BUCKET_COUNT)


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise NotAKey(f"{text!r} is no text of UTF-8") from None
