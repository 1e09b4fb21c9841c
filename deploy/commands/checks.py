"""`test`: the whole suite, or one of its longer checks by name."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence

from deploy.embedded.topology import CHECKOUT, inherited_environment

CHECKS: Mapping[str, str] = {"crash-points": "tests.faults.crash"}
"""Checks that say what they saw in a form of their own: name, and the module that is run. They have a `--help`."""


def run(arguments: Sequence[str]) -> int:
    """Runs the check that the first argument names, else pytest with all of them; returns its exit code."""
    module = CHECKS.get(arguments[0]) if arguments else None
    if module is None:
        return subprocess.run([sys.executable, "-m", "pytest", *arguments], cwd=CHECKOUT, check=False).returncode
    command = [sys.executable, "-P", "-m", module, *arguments[1:]]
    return subprocess.run(command, cwd=CHECKOUT, env=inherited_environment(), check=False).returncode
