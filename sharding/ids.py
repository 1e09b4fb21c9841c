"""Ids that carry their bucket: UUIDv7 (RFC 9562) with the bucket in `rand_a`.

     48 bits   4     10      2     2      62
    unix_ms | 7 | bucket | layout | 2 | random, rising within a millisecond

The two layout bits are 0. They are kept free so that a hot bucket can one day be split in four, or the layout change,
without a second kind of id: whoever meets another value knows that it cannot read the bucket, instead of routing wrong.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from uuid import UUID

from sharding.buckets import Bucket, Key, bucket_of
from sharding.buckets import bucket as checked
from sharding.errors import NotAKey

LAYOUT = 0
RANDOM_BITS = 62
BUCKET_BYTES = 2
STEP_BYTES = 4
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Dice = Callable[[int], bytes]
"""Gives that many random bytes."""


def new_id(bucket: Bucket | None = None, *, unix_ms: int, dice: Dice = os.urandom) -> UUID:
    """An id in `bucket` (an even random one without) for the instant `unix_ms`, in milliseconds since 1970.

    For ids that also rise within a millisecond use an IdMaker.
    """
    return _pack(unix_ms, _chosen(bucket, dice), int.from_bytes(dice(8), "big") >> 2)


def bucket_of_id(id: UUID) -> Bucket:
    """The bucket that `id` carries. Raises NotAKey when it is no id of this layout."""
    if not _carries(id):
        raise NotAKey(f"{id} carries no bucket: it was not made by new_id or an IdMaker")
    return Bucket(id.int >> 66 & 0x3FF)


def time_of_id(id: UUID) -> datetime:
    """When `id` was made, in UTC to the millisecond. Raises NotAKey when it is no UUIDv7, or past the year 9999."""
    if id.version != 7:
        raise NotAKey(f"{id} carries no time: it is no UUIDv7")
    try:
        return EPOCH + timedelta(milliseconds=id.int >> 80)
    except OverflowError:
        raise NotAKey(f"{id} carries no time: it is past the year 9999") from None


def bucket_for(where: Key | Bucket) -> Bucket:
    """The bucket meant by `where`: an id's own, a bucket itself (every int), else the hash of the key.

    A UUID that carries no bucket is hashed like any key, so a look-up of a made-up id finds nothing instead of
    failing. For an int that is a key, pass ``bucket_of(key)``; so for UUIDv7 keys that others made: one in four of
    those looks like an id of this layout.
    """
    if isinstance(where, UUID):
        return bucket_of_id(where) if _carries(where) else bucket_of(where)
    return checked(where) if isinstance(where, int) else bucket_of(where)


class IdMaker:
    """Makes ids whose time never steps back and that strictly rise within each bucket, in one process.

    Across buckets of one millisecond the bucket orders them; across processes only the time does. Safe in threads.
    `clock_ms` is milliseconds since 1970; while it stands or steps back, the last time is kept.
    """

    def __init__(
        self, clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000, dice: Dice = os.urandom
    ) -> None:
        self._clock_ms = clock_ms
        self._dice = dice
        self._lock = threading.Lock()
        self._last_ms = -1
        self._last_random = 0

    def __call__(self, bucket: Bucket | None = None) -> UUID:
        """A new id in `bucket`, or in an even random one."""
        thrown = int.from_bytes(self._dice(BUCKET_BYTES + STEP_BYTES), "big")
        chosen = Bucket(thrown >> 8 * STEP_BYTES & 0x3FF) if bucket is None else checked(bucket)
        with self._lock:
            now = self._clock_ms()
            if now > self._last_ms:
                self._last_ms = now
                # The top bit stays 0: room for every step of one millisecond.
                self._last_random = int.from_bytes(self._dice(8), "big") >> 3
            else:
                # A random step keeps ids unguessable and keeps two processes of one fork apart.
                self._last_random += 1 + (thrown & (1 << 8 * STEP_BYTES) - 1)
                if self._last_random >> RANDOM_BITS:
                    self._last_ms += 1
                    self._last_random = int.from_bytes(self._dice(8), "big") >> 3
            return _pack(self._last_ms, chosen, self._last_random)


def _carries(id: UUID) -> bool:
    return id.version == 7 and id.int >> 64 & 0x3 == LAYOUT


def _chosen(chosen: Bucket | None, dice: Dice) -> Bucket:
    return Bucket(int.from_bytes(dice(BUCKET_BYTES), "big") & 0x3FF) if chosen is None else checked(chosen)


def _pack(unix_ms: int, bucket: Bucket, random: int) -> UUID:
    if not 0 <= unix_ms < 1 << 48:
        raise NotAKey(f"{unix_ms} ms since 1970 does not fit an id")
    return UUID(int=unix_ms << 80 | 0x7 << 76 | bucket << 66 | LAYOUT << 64 | 0x2 << 62 | random)
