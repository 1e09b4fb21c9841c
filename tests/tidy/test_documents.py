"""The documents hold together: links lead somewhere, commands exist, and every decision is listed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from deploy.cli import app
from deploy.embedded.problems import ExitCode
from services.kit.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"\]\((?!https?://|#|mailto:)([^)#\s]+)")
COMMAND = re.compile(r"^\s*(?:\$ )?\./pawstay ([a-z-]+)", re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file_of_the_project(page: Path) -> None:
    """Relative links of a page are there."""
    targets = LINK.findall(page.read_text(encoding="utf-8"))
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_in_a_page_exists(page: Path) -> None:
    """What follows ./pawstay in a page is a command."""
    known = set(getattr(get_command(app), "commands"))  # noqa: B009 - a group, which Typer does not say
    assert set(COMMAND.findall(page.read_text(encoding="utf-8"))) <= known


def test_every_decision_is_in_the_index() -> None:
    """The index lists each page, and each page has the four parts and names what enforces it."""
    folder = ROOT / "docs" / "decisions"
    index = (folder / "README.md").read_text(encoding="utf-8")
    for page in sorted(folder.glob("0*.md")):
        text = page.read_text(encoding="utf-8")
        assert page.name in index
        for part in ("**Context.**", "**Decision.**", "**Consequences.**", "**Alternatives.**", "**Enforced by**"):
            assert part in text, f"{page.name} lacks {part}"
        enforced = text.split("**Enforced by**")[1]
        missing = [path for path in re.findall(r"`(tests/[^`]+)`", enforced) if not (ROOT / path).exists()]
        assert missing == [], page.name


def test_every_setting_of_a_service_is_in_the_reference() -> None:
    """What a service reads from its environment stands in the settings page."""
    page = (ROOT / "docs" / "reference" / "settings.md").read_text(encoding="utf-8")
    assert [name for name in Settings.model_fields if f"`PAWSTAY_{name.upper()}`" not in page] == []


def test_every_setting_of_the_coordinator_is_in_the_reference() -> None:
    """What the coordinator reads from its environment stands in the settings page and in that of its API."""
    source = (ROOT / "coordinator" / "tc" / "config.py").read_text(encoding="utf-8")
    names = set(re.findall(r'environ, "([A-Z_]+)"', source)) | set(re.findall(r'f"{PREFIX}([A-Z_]+)"', source))
    assert {"DATABASE_URL", "HOST", "ALERT_WEBHOOK_URL"} <= names
    for page in ("settings.md", "coordinator-api.md"):
        text = (ROOT / "docs" / "reference" / page).read_text(encoding="utf-8")
        assert [name for name in sorted(names) if f"`PAWSTAY_{name}`" not in text] == [], page


def commands() -> dict[str, set[str]]:
    """Every command that a person may give, with its flags."""

    def below(group: Any, path: tuple[str, ...]) -> Iterator[tuple[str, set[str]]]:
        for name, command in group.commands.items():
            if hasattr(command, "commands"):
                yield from below(command, (*path, name))
            elif not command.hidden:
                flags = {
                    flag for option in command.params if option.param_type_name == "option" for flag in option.opts
                }
                yield " ".join((*path, name)), flags

    return dict(below(get_command(app), ()))


def test_the_command_line_page_names_every_command_and_flag_and_no_other() -> None:
    """Sections are the commands, the first column of their tables is the flags, the codes are those that are used."""
    page = (ROOT / "docs" / "reference" / "command-line.md").read_text(encoding="utf-8")
    described = {}
    for section in page.split("\n## ")[1:]:
        heading, _, text = section.partition("\n")
        if heading.startswith("`pawstay "):
            cells = re.findall(r"^\| (`-[^|]+) \|", text, re.MULTILINE)
            described[heading.strip("`").removeprefix("pawstay ")] = set(re.findall(r"`(-[^`]+)`", " ".join(cells)))
    assert described == commands()
    codes = re.findall(r"^\| (\d+) \|", page.split("## Exit codes")[1].split("\n## ")[0], re.MULTILINE)
    assert [int(code) for code in codes] == [int(code) for code in ExitCode]


def test_every_promise_names_tests_that_exist() -> None:
    """No row of the guarantees, and none of the comparison, is without a test, and each named test is there."""
    page = (ROOT / "docs" / "reference" / "guarantees.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| ") and not line.startswith(("| promise", "| | "))]
    assert len(rows) > 30
    named = {row: re.findall(r"`([\w/]+\.py)::(test_\w+)`", row) for row in rows}
    assert [row[:60] for row, tests in named.items() if not tests] == []
    missing = {
        f"{file}::{test}"
        for tests in named.values()
        for file, test in tests
        if not (ROOT / "tests" / file).exists()
        or not re.search(rf"^(async )?def {test}\b", (ROOT / "tests" / file).read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert missing == set()
