"""The routing table: which path belongs to which service, and under which limits.

Everything else about the door follows from this one value: the Nginx configuration (`gateway.nginx`), the merged API
document (`gateway.openapi`), the reference page and the architecture diagram (both checked against it by tests).
Whatever is not in the table does not exist outside: `/internal/*`, `/v1/*`, `/health` and `/schema` are never routed.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property

WILDCARD = "{}"
"""Stands for one path segment of any content."""

ROUTED_ROOT = "/api/"
"""Only paths below it may be routed."""

_SEGMENT = re.compile(r"^(?:[a-z0-9-]+|\{\})$")


@dataclass(frozen=True)
class Limits:
    """What a class of routes allows each client address, and how long it may take.

    `rate_per_s` requests a second are let through with up to `burst` ahead of them (429 beyond), `connections_max` at
    the same time (429 beyond), bodies of `body_max_bytes` (413 beyond). The service must take the connection within
    `connect_timeout_s` (502 or 504) and may be silent for `read_timeout_s` (504).
    """

    name: str
    body_max_bytes: int
    rate_per_s: int
    burst: int
    connections_max: int
    connect_timeout_s: int = 2
    send_timeout_s: int = 15
    read_timeout_s: int = 30
    streaming: bool = False


@dataclass(frozen=True)
class Route:
    """`path` and everything below it, with and without a trailing slash, goes to `service`, unchanged.

    `path` has no trailing slash; a `{}` segment stands for any one segment.
    """

    path: str
    service: str
    limits: Limits

    @property
    def pattern(self) -> str:
        """A regular expression for the decoded path, as Python and Nginx (PCRE) both read it."""
        return f"^{self.path.replace(WILDCARD, '[^/]+')}(?:/|$)"

    @property
    def raw_pattern(self) -> str:
        """The same for the path as it was sent. Both must match: what the service reads is what was checked here."""
        return f"^{self.path.replace(WILDCARD, '[^/?]+')}(?:[/?]|$)"

    @property
    def specificity(self) -> tuple[int, int]:
        """Orders routes: more segments win, then fewer wildcards."""
        return self.path.count("/"), -self.path.count(WILDCARD)


class RouteError(ValueError):
    """A routing table that cannot be meant: the message names the route and what is wrong with it."""


@dataclass(frozen=True)
class RouteTable:
    """All routes. Raises RouteError for a path outside `/api/`, a path named twice, or two limits of one name."""

    routes: tuple[Route, ...]

    def __post_init__(self) -> None:
        for route in self.routes:
            if not route.path.startswith(ROUTED_ROOT):
                raise RouteError(f"route {route.path!r} is not below {ROUTED_ROOT!r}: nothing else is routed")
            if not all(_SEGMENT.match(segment) for segment in route.path[1:].split("/")):
                raise RouteError(f"route {route.path!r}: segments are [a-z0-9-] or {{}}, without a slash at the end")
        for path, count in Counter(route.path for route in self.routes).items():
            if count > 1:
                raise RouteError(f"route {path!r} stands in the table {count} times")
        for name, count in Counter(limits.name for limits in {route.limits for route in self.routes}).items():
            if count > 1:
                raise RouteError(f"{count} different limits are called {name!r}")

    @cached_property
    def ordered(self) -> tuple[Route, ...]:
        """The routes, the most specific first; the first that matches a path is the path's route."""
        return tuple(sorted(self.routes, key=lambda r: (-r.specificity[0], -r.specificity[1], r.path)))

    @property
    def services(self) -> tuple[str, ...]:
        """The services that can be reached from outside, in the table's order."""
        return tuple(dict.fromkeys(route.service for route in self.routes))

    @property
    def limits(self) -> tuple[Limits, ...]:
        """The classes of limits in use, in the table's order."""
        return tuple(dict.fromkeys(route.limits for route in self.routes))

    def find(self, path: str) -> Route | None:
        """The route of a decoded path without its query; None when it is not routed. Costs a scan of the table."""
        return next((route for route in self.ordered if re.search(route.pattern, path)), None)


STANDARD = Limits("standard", body_max_bytes=1_000_000, rate_per_s=200, burst=400, connections_max=200)

# Guessing passwords is slowed here for an address; the user service counts per account. The burst lets a school class
# or an office behind one address log in at nine o'clock.
CREDENTIALS = Limits("credentials", body_max_bytes=16_000, rate_per_s=10, burst=200, connections_max=100)

UPLOADS = Limits(
    "uploads",
    body_max_bytes=10_000_000,
    rate_per_s=10,
    burst=40,
    connections_max=10,
    send_timeout_s=60,
    read_timeout_s=60,
)

# Silent for an hour at most: the service sends a comment line much more often.
STREAM = Limits(
    "stream", body_max_bytes=1_000, rate_per_s=5, burst=20, connections_max=20, read_timeout_s=3600, streaming=True
)

ROUTES = RouteTable(
    (
        Route("/api/users", "user", STANDARD),
        Route("/api/users/login", "user", CREDENTIALS),
        Route("/api/users/token/refresh", "user", CREDENTIALS),
        Route("/api/users/me/password", "user", CREDENTIALS),
        Route("/api/pets", "pet", STANDARD),
        Route("/api/pets/{}/photos", "pet", UPLOADS),
        Route("/api/boarding", "boarding", STANDARD),
        Route("/api/boarding/services/{}/photos", "boarding", UPLOADS),
        Route("/api/orders", "order", STANDARD),
        Route("/api/orders/{}/care-logs/{}/photos", "order", UPLOADS),
        Route("/api/payments", "payment", STANDARD),
        Route("/api/capacity", "capacity", STANDARD),
        Route("/api/reviews", "review", STANDARD),
        Route("/api/notifications", "notification", STANDARD),
        Route("/api/notifications/stream", "notification", STREAM),
        Route("/api/admin", "admin", STANDARD),
    )
)
"""The table of the marketplace."""


def as_markdown(table: RouteTable) -> str:
    """The two tables of `docs/reference/routes.md`: routes, and limits by class."""
    lines = ["| path | service | limits |", "|---|---|---|"]
    lines += [f"| `{r.path}` | {r.service} | {r.limits.name} |" for r in table.routes]
    lines += [
        "",
        "| limits | body, bytes | requests a second | burst | at once | silent for, s | streamed |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {c.name} | {c.body_max_bytes} | {c.rate_per_s} | {c.burst} | {c.connections_max} | {c.read_timeout_s} "
        f"| {'yes' if c.streaming else 'no'} |"
        for c in table.limits
    ]
    return "\n".join(lines) + "\n"
