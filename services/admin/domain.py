"""The audit log's chain. Pure.

Every entry carries the hash of the one before it, so that nothing in the middle can be changed or taken out unseen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

GENESIS = b"\x00" * 32


@dataclass(frozen=True)
class Entry:
    """What an administrator did, as it is hashed."""

    number: int
    actor: UUID
    action: str
    subject: str
    reason: str
    at_ms: int
    xid: UUID | None


def chained(previous: bytes, entry: Entry) -> bytes:
    """The hash of an entry: SHA-256 over the hash before it and its own fields, each with its length."""
    fields = (
        str(entry.number),
        str(entry.actor),
        entry.action,
        entry.subject,
        entry.reason,
        str(entry.at_ms),
        str(entry.xid or ""),
    )
    body = b"".join(len(raw).to_bytes(4, "big") + raw for raw in (field.encode() for field in fields))
    return hashlib.sha256(previous + body).digest()


def first_broken(entries: Sequence[tuple[Entry, bytes]], head: tuple[int, bytes]) -> int | None:
    """The number of the first entry that does not follow; None when the chain holds.

    `head` is the number and hash that the last entry must have, so that entries cut off the end are missed too.
    """
    previous, expected = GENESIS, 1
    for entry, stored in entries:
        if entry.number != expected or chained(previous, entry) != stored:
            return expected
        previous, expected = stored, expected + 1
    return None if head == (expected - 1, previous) else expected
