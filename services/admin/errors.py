"""What the admin service refuses."""

from __future__ import annotations

from services.kit.problems import Problem, bad_request, not_found, unavailable


def unknown_kind(kind: str) -> Problem:
    """400: there are approvals of users, providers and services only."""
    return bad_request(f"'kind' is user, provider or service, not {kind!r}.", code="unknown-kind")


def no_transaction(xid: object) -> Problem:
    """404: the coordinator does not know it."""
    return not_found("transaction", xid)


def coordinator_failed(status: int) -> Problem:
    """503: the coordinator answered, and has no answer."""
    return unavailable("coordinator-failed", f"The coordinator failed (status {status}). Try again.")
