"""The wire shapes of the admin service."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

import msgspec
from msgspec import Meta


class Decide(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An administrator's word."""

    reason: Annotated[str, Meta(max_length=1000)] = ""


class Decided(msgspec.Struct, frozen=True):
    """What the decision did: the subject as it is now, the transaction, and the audit entry."""

    subject: dict[str, Any]
    xid: UUID
    audit_number: int


class AuditEntry(msgspec.Struct, frozen=True):
    """One line of the audit log; `hash` is hexadecimal."""

    number: int
    at: datetime
    actor: UUID
    action: str
    subject: str
    reason: str
    xid: UUID | None
    hash: str


class AuditCheck(msgspec.Struct, frozen=True):
    """Whether the chain holds; `first_broken` is the first entry that does not follow."""

    entries: int
    holds: bool
    first_broken: int | None


class Health(msgspec.Struct, frozen=True):
    """Every service and the coordinator, as their readiness says."""

    status: str
    parts: dict[str, Any]


class Consistency(msgspec.Struct, frozen=True):
    """What each service says of its part of the promises; `holds` is true when nothing is broken."""

    holds: bool
    parts: dict[str, dict[str, Any]]
