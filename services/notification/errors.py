"""What the notification service refuses."""

from __future__ import annotations

from services.kit.problems import Problem, bad_request


def unknown_kind(kind: str) -> Problem:
    """400: there is no such kind of notification."""
    return bad_request(f"There is no notification of kind {kind!r}.", code="unknown-kind")
