"""Identifiers of global transactions, branches and resources.

All of them are made by the caller, never by the coordinator: an id that exists before the first message is
sent makes every message repeatable.
"""

from __future__ import annotations

import os
from typing import NewType
from uuid import UUID, uuid5

Xid = NewType("Xid", UUID)
"""A global transaction. A UUIDv7 (RFC 9562), so that ids sort by the time of their making."""

BranchId = NewType("BranchId", UUID)
"""One branch: one local transaction of one global transaction in one resource."""

ResourceName = NewType("ResourceName", str)
"""A database that takes part, such as ``capacity`` or ``order@shard-0``. Unique in one coordinator."""

HEADER_XID = "X-Tx-Xid"
HEADER_BRANCH = "X-Tx-Branch"
HEADER_DEADLINE = "X-Tx-Deadline"
HEADER_BRANCHES = "X-Tx-Branches"


def uuid7(unix_ms: int, dice: bytes | None = None) -> UUID:
    """A UUIDv7 for `unix_ms` (milliseconds since 1970); `dice` is 10 random bytes, the system's if absent."""
    random_bytes = os.urandom(10) if dice is None else dice
    value = (unix_ms & ((1 << 48) - 1)) << 80 | int.from_bytes(random_bytes, "big")
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return UUID(int=value)


def unix_ms_of(xid: Xid) -> int:
    """The millisecond in which a transaction was begun, as its maker's clock had it."""
    return xid.int >> 80


def derived_branch(call: BranchId, resource: ResourceName, ordinal: int) -> BranchId:
    """The id of the `ordinal`-th local transaction that a call makes in `resource`.

    The same call always derives the same ids, so a repeated call meets its own branch rows (RFC 9562, version 5).
    """
    return BranchId(uuid5(call, f"{resource}/{ordinal}"))
