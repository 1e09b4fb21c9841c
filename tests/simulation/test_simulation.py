"""The real client and the real coordinator keep their promises under faults that a seed decides."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.failing_seeds import FAILING_SEEDS
from tests.simulation.mutants import MUTANTS, Mutant, broken
from tests.simulation.run import run_seed
from tests.simulation.world import Result

ROOT = Path(__file__).resolve().parents[2]
ORDINARY_SEEDS = 40
GROUPS = 4


def judged(result: Result) -> str:
    """What is wrong with a run, with the command that shows it again; empty when nothing is."""
    if not result.violations:
        return ""
    shown = "\n".join([*result.violations, "", *result.events[-60:]])
    return f"python -m tests.simulation --seed {result.seed}\n{shown}"


@pytest.mark.parametrize("seed", FAILING_SEEDS)
def test_a_seed_that_once_found_something_keeps_every_promise(seed: int) -> None:
    """See failing_seeds.py."""
    assert not (wrong := judged(run_seed(seed))), wrong


@pytest.mark.parametrize("group", range(GROUPS))
def test_every_seed_keeps_every_promise(group: int) -> None:
    """Money, whole transactions, no dirty write, decisions for ever, and quiet once the faults are over."""
    committed = rolled_back = 0
    for seed in range(group, ORDINARY_SEEDS, GROUPS):
        result = run_seed(seed)
        assert not (wrong := judged(result)), wrong
        committed += result.ended.get("committed", 0)
        rolled_back += result.ended.get("rolled back", 0)
    assert committed > ORDINARY_SEEDS / GROUPS, "a run in which nothing commits shows nothing"
    assert rolled_back > ORDINARY_SEEDS / GROUPS, "a run in which nothing rolls back shows nothing"


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda one: one.__name__)
def test_a_broken_build_is_found(mutant: Mutant) -> None:
    """Each within the ordinary seeds."""
    with broken(mutant):
        assert any(run_seed(seed).violations for seed in range(ORDINARY_SEEDS)), mutant.__doc__


def test_a_seed_is_the_same_run_wherever_it_runs() -> None:
    """Twice here, and in processes that hash differently."""
    seed = 5
    here = run_seed(seed)
    assert run_seed(seed) == here
    for hash_seed in ("0", "4242"):
        done = subprocess.run(
            [sys.executable, "-m", "tests.simulation", "--seed", str(seed)],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert f"digest {here.digest}, {here.steps} steps" in done.stdout, done.stdout[-2000:] + done.stderr


def test_another_seed_is_another_run() -> None:
    """The digest says something about what happened."""
    assert run_seed(5).digest != run_seed(6).digest
