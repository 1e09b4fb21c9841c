"""The architecture page tells the truth: its diagram and its reasons are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gateway.routes import ROUTES
from services.catalog import COORDINATOR_PORT, SERVICES

PAGE = Path(__file__).resolve().parents[2] / "docs" / "explanation" / "architecture.md"
SHARDS = ("shard_0", "shard_1")
REASON_WORDS_MIN = 40
NAMES = {spec.name for spec in SERVICES}


@pytest.fixture(scope="module")
def page() -> str:
    """The page."""
    return PAGE.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def diagram(page: str) -> str:
    """The page's one Mermaid diagram."""
    (found,) = re.findall(r"```mermaid\n(.*?)```", page, re.DOTALL)
    return str(found)


def _edges(diagram: str, arrow: str) -> set[tuple[str, str]]:
    """The pairs that `arrow` joins, with or without a label; a node may be declared at its end."""
    label = r'(?:\|"[^"]*"\|)?'
    found = re.findall(rf"^\s*(\w+) {re.escape(arrow)}{label} (\w+)", diagram, re.MULTILINE)
    assert found, f"no {arrow} in the diagram"
    return set(found)


def test_the_diagram_has_each_service_with_its_port_and_no_other(diagram: str) -> None:
    """Boxes with a port are the catalog's services, the gateway and the coordinator."""
    boxes = {name: int(port) for name, port in re.findall(r'^\s*(\w+)\["\w+ :(\d+)', diagram, re.MULTILINE)}
    assert boxes == {spec.name: spec.port for spec in SERVICES} | {"gateway": 8080, "coordinator": COORDINATOR_PORT}


def test_the_diagram_routes_as_the_gateway_does(diagram: str) -> None:
    """Arrows from the gateway are the table's prefixes, each to its service."""
    drawn = re.findall(r'^\s*gateway -->\|"([^"]+)"\| (\w+)', diagram, re.MULTILINE)
    assert sorted(drawn) == sorted((r.path, r.service) for r in ROUTES.routes if r.path.count("/") == 2)


def test_the_diagram_shows_the_calls_that_services_make(diagram: str) -> None:
    """Thin arrows between services are the calls that the catalog names."""
    drawn = {(a, b) for a, b in _edges(diagram, "-->") if a in NAMES}
    assert drawn == {(spec.name, callee) for spec in SERVICES for callee in spec.calls}


def test_the_diagram_shows_who_takes_part_in_global_transactions(diagram: str) -> None:
    """Every service with managed tables has a thick arrow to the coordinator, and only services have one."""
    drawn = _edges(diagram, "==>")
    assert {b for _, b in drawn} == {"coordinator"}
    assert {spec.name for spec in SERVICES if spec.managed} == {a for a, _ in drawn}


def test_the_diagram_shows_where_data_lies(diagram: str) -> None:
    """A service has a database of its own or lies on every shard, as the catalog says; nobody opens another's."""
    expected = {("coordinator", "coordinator_db")}
    for spec in SERVICES:
        homes = (*SHARDS, "shard_map_db") if spec.storage == "sharded" else (f"{spec.name}_db",)
        expected |= {(spec.name, home) for home in homes}
    assert _edges(diagram, "---") == expected


def test_the_diagram_shows_whose_messages_the_worker_processes(diagram: str) -> None:
    """Dotted arrows from the worker lead to the services that have actors."""
    drawn = {b for a, b in _edges(diagram, "-.->") if a == "worker"}
    assert drawn == {spec.name for spec in SERVICES if spec.has_worker}


def test_each_service_has_a_written_reason(page: str) -> None:
    """One heading and one paragraph of substance for each service, and for nothing else."""
    part = page.split("## Why each service is one", 1)[1].split("\n## ", 1)[0]
    reasons = dict(re.findall(r"^### (\w+)\n\n(.+?)(?=\n### |\Z)", part, re.DOTALL | re.MULTILINE))
    assert set(reasons) == NAMES
    for name, reason in reasons.items():
        assert len(reason.split()) >= REASON_WORDS_MIN, name


def test_links_of_the_page_lead_somewhere(page: str) -> None:
    """Every relative link of the page names a file that exists."""
    for target in re.findall(r"\]\((?!http)([^)#]+)", page):
        assert (PAGE.parent / target).exists(), target
