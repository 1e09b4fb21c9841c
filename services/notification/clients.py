"""The services that the notification service asks."""

from __future__ import annotations

from uuid import UUID

from services.kit.problems import Problem
from services.kit.runtime import Runtime
from services.notification.schemas import Contact


async def contact_of(runtime: Runtime, user_id: UUID) -> Contact | None:
    """Somebody's addresses; None when there is no such account any more."""
    try:
        return await runtime.service("user").call("GET", f"/internal/users/{user_id}", Contact)
    except Problem as problem:
        if problem.status == 404:
            return None
        raise
