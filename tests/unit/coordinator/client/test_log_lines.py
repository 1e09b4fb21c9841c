"""Log lines inside a global transaction carry its xid, whoever began it."""

from __future__ import annotations

import structlog

from coordinator.client.context import Participant, bound
from coordinator.protocol.ids import BranchId, Xid, uuid7


def logged() -> object:
    return structlog.contextvars.get_contextvars().get("xid")


def test_a_log_line_carries_the_xid_of_the_transaction_that_it_is_in() -> None:
    """The innermost one's, none where a block runs without, and the former one's afterwards."""
    outer, inner = (Participant(Xid(uuid7(n)), BranchId(uuid7(9)), 4_000_000_000_000) for n in (1, 2))
    assert logged() is None
    with bound(outer):
        assert logged() == str(outer.xid)
        with bound(inner):
            assert logged() == str(inner.xid)
        with bound(None):
            assert logged() is None
        assert logged() == str(outer.xid)
    assert logged() is None
