"""The house holds its own rules: style, types, who may import whom, and the shape of files and functions."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("coordinator", "sharding", "services", "gateway", "deploy")
FUNCTION_LINES_MAX = 70


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
    )


def sources() -> Iterator[Path]:
    for package in PACKAGES:
        yield from sorted((ROOT / package).rglob("*.py"))


def test_ruff_finds_nothing() -> None:
    """Style and the linter's bug patterns are clean, over code and tests."""
    done = run("ruff", "check", ".")
    assert done.returncode == 0, done.stdout + done.stderr


def test_ruff_would_format_nothing() -> None:
    """All files are formatted."""
    done = run("ruff", "format", "--check", ".")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.timeout(600)
def test_mypy_strict_finds_nothing() -> None:
    """Every package is fully typed under mypy --strict."""
    done = run("mypy", *PACKAGES)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr


def lint_imports(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    return subprocess.run(
        [sys.executable, "-c", program, "--no-cache", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_imports_go_one_way() -> None:
    """import-linter keeps every contract, and the contracts name no exceptions."""
    assert "ignore_imports" not in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    done = lint_imports()
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr


def test_every_public_name_says_what_it_promises() -> None:
    """Modules, public classes and public functions have docstrings."""
    missing = []
    for path in sources():
        if "migrations" in path.parts and path.name != "__init__.py":
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        name = path.relative_to(ROOT)
        if ast.get_docstring(tree) is None and tree.body:
            missing.append(str(name))
        for node in ast.walk(tree):
            if not isinstance(node, ast.ClassDef):
                continue
            if not node.name.startswith("_") and ast.get_docstring(node) is None:
                missing.append(f"{name}:{node.lineno} {node.name}")
            if not node.name.startswith("_"):
                missing += [
                    f"{name}:{item.lineno} {node.name}.{item.name}"
                    for item in node.body
                    if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef)
                    and not item.name.startswith("_")
                    and ast.get_docstring(item) is None
                    and not any(ast.unparse(d) in ("overload", "typing.overload") for d in item.decorator_list)
                ]
        missing += [
            f"{name}:{node.lineno} {node.name}"
            for node in tree.body
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            and not node.name.startswith("_")
            and ast.get_docstring(node) is None
        ]
    assert not missing, "\n".join(missing)


def test_functions_fit_on_a_screen() -> None:
    """No function is longer than FUNCTION_LINES_MAX lines."""
    long = []
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > FUNCTION_LINES_MAX:
                    long.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {lines} lines")
    assert not long, "\n".join(long)


def test_nothing_is_left_unfinished() -> None:
    """No marker of unfinished work stands in the tree."""
    marker = re.compile(r"\b(TO" r"DO|FIX" r"ME|XX" r"X|NotImplemented" r"Error)\b")
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in sources()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if marker.search(line)
    ]
    assert not found, "\n".join(found)
