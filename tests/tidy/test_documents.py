"""The documents hold together: links lead somewhere, commands exist, and every decision is listed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.main import get_command

from deploy.cli import app
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
