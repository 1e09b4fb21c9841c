"""The routing table decides alone which path goes where."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from gateway.routes import ROUTES, STANDARD, Route, RouteError, RouteTable, as_markdown
from services.catalog import SERVICES

ROOT = Path(__file__).resolve().parents[3]

PREFIXES = {
    "users": "user",
    "pets": "pet",
    "boarding": "boarding",
    "orders": "order",
    "payments": "payment",
    "capacity": "capacity",
    "reviews": "review",
    "notifications": "notification",
    "admin": "admin",
}


@pytest.mark.parametrize(("prefix", "service"), PREFIXES.items())
def test_each_prefix_belongs_to_its_service_in_both_forms_and_below(prefix: str, service: str) -> None:
    """The prefix, with and without a slash, and all that lies below it, has one service."""
    for path in (f"/api/{prefix}", f"/api/{prefix}/", f"/api/{prefix}/a/b"):
        route = ROUTES.find(path)
        assert route is not None
        assert route.service == service


def test_every_service_of_the_catalog_has_a_door_and_no_other() -> None:
    """Table and catalog name the same services."""
    assert set(ROUTES.services) == {spec.name for spec in SERVICES}


@pytest.mark.parametrize("path", ["/", "/api", "/internal/x", "/v1/messages", "/health", "/api/userss", "/x/api/users"])
def test_other_paths_are_not_routed(path: str) -> None:
    """What is not in the table has no route."""
    assert ROUTES.find(path) is None


@pytest.mark.parametrize(
    ("path", "limits"),
    [
        ("/api/users", "standard"),
        ("/api/users/login", "credentials"),
        ("/api/users/login/", "credentials"),
        ("/api/users/loginx", "standard"),
        ("/api/pets/1/photos", "uploads"),
        ("/api/pets/1/2/photos", "standard"),
        ("/api/orders/1/care-logs/2/photos", "uploads"),
        ("/api/orders/1/care-logs", "standard"),
        ("/api/notifications/stream", "stream"),
        ("/api/notifications", "standard"),
    ],
)
def test_the_most_specific_route_wins(path: str, limits: str) -> None:
    """A longer path of the table beats a shorter one, whole segments only."""
    route = ROUTES.find(path)
    assert route is not None
    assert route.limits.name == limits


def test_a_word_beats_a_wildcard_of_the_same_length() -> None:
    """Of two routes with as many segments, the one with fewer wildcards is asked first."""
    word, wild = Route("/api/a/stream", "b", STANDARD), Route("/api/a/{}", "a", STANDARD)
    assert RouteTable((wild, word)).find("/api/a/stream") == word
    assert RouteTable((wild, word)).find("/api/a/other") == wild


@pytest.mark.parametrize(
    "path",
    [
        "/internal/holds",
        "/v1/messages",
        "/api",
        "/api/",
        "/api/a/",
        "/api//a",
        "/api/A",
        "/api/a.b",
        "api/a",
        "/api/../v1",
    ],
)
def test_a_path_that_cannot_be_meant_is_refused(path: str) -> None:
    """Nothing outside /api/, nothing with empty, dotted or capital segments gets into a table."""
    with pytest.raises(RouteError, match="route"):
        RouteTable((Route(path, "a", STANDARD),))


def test_a_path_named_twice_is_refused() -> None:
    """Two owners of one path are a mistake."""
    with pytest.raises(RouteError, match="2 times"):
        RouteTable((Route("/api/a", "a", STANDARD), Route("/api/a", "b", STANDARD)))


def test_two_limits_of_one_name_are_refused() -> None:
    """A class of limits is one thing."""
    other = replace(STANDARD, burst=1)
    with pytest.raises(RouteError, match="standard"):
        RouteTable((Route("/api/a", "a", STANDARD), Route("/api/b", "b", other)))


def test_the_reference_page_shows_the_table() -> None:
    """docs/reference/routes.md contains the two tables exactly as the code has them."""
    page = (ROOT / "docs/reference/routes.md").read_text(encoding="utf-8")
    for block in as_markdown(ROUTES).split("\n\n"):
        assert block.strip() in page, f"docs/reference/routes.md lacks:\n{block}"
