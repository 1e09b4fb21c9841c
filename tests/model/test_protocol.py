"""The protocol of global transactions keeps its promises in every state of its model, and the model notices faults.

The model is docs/spec/GlobalTransaction.tla; TLC looks at every state that it can reach.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.model.tlc import MODEL, NO_JAVA, ROOT, SPEC, Verdict, check, find_java

PAGE = (SPEC / "README.md").read_text(encoding="utf-8")
TEXT = MODEL.read_text(encoding="utf-8")

SINGLE = {"Plan": "<- Single", "PlainWrites": "= 0", "StoreFaults": "= 2"}
SINGLE_AND_PLAIN = {"Plan": "<- Single", "PlainWrites": "= 1", "StoreFaults": "= 0"}
CROSSING = {"Plan": "<- Crossing", "PlainWrites": "= 0", "StoreFaults": "= 0"}

MUTANTS = {
    "no lock check": ("NoDirtyWrite", CROSSING),
    "plain writers unguarded": ("UndoNeverFails", SINGLE_AND_PLAIN),
    "plain writers unguarded and undo blind": ("PlainWritesStay", SINGLE_AND_PLAIN),
    "lock let go before the decision": ("UndoNeverFails", SINGLE_AND_PLAIN),
    "undecided holder is taken over": ("Atomicity", CROSSING),
    "resource aborts on its own": ("Atomicity", SINGLE),
    "resource follows a wish": ("Atomicity", SINGLE),
    "repeated call taken twice": ("EffectsOnce", SINGLE),
    "call forgotten too soon": ("EffectsOnce", SINGLE),
    "no fence and no settle loop": ("NothingIsStuck", SINGLE),
    "nobody presumes abort": ("NothingIsStuck", SINGLE),
    "commit answered before durable": ("DecisionsStand", SINGLE),
    "rollback answered before durable": ("DecisionsStand", SINGLE),
    "no barrier": ("DecisionsStand", SINGLE),
    "presumed abort without recording": ("DecisionsStand", SINGLE),
    "late commit overrules": ("DecisionsStand", SINGLE),
    "commit with a call unanswered": ("AcknowledgementsStand", SINGLE),
    "no answer taken for a rollback": ("AcknowledgementsStand", SINGLE),
}
"""What is built wrong, the promise that breaks, and the smallest world in which it does."""

REACHED = {
    "NeverBothCommit": CROSSING,
    "NeverCommitsAfterFaults": SINGLE,
    "NeverLate": SINGLE,
    "NeverTakenOver": CROSSING,
}
"""States that the model must reach, each by the operator that denies it."""


@pytest.fixture(scope="module")
def java() -> str:
    """A Java to run TLC with; without one the test is skipped."""
    found = find_java()
    if found is None:
        pytest.skip(NO_JAVA)
    return found


def small(folder: Path, invariant: str, **constants: str) -> Path:
    """A configuration that checks one invariant, with some constants other than those of crossing.cfg."""
    text = (SPEC / "crossing.cfg").read_text(encoding="utf-8").split("SYMMETRY")[0]
    for name, value in constants.items():
        text, replaced = re.subn(rf"^    {name} .*$", f"    {name} {value}", text, flags=re.MULTILINE)
        assert replaced == 1, name
    config = folder / "small.cfg"
    config.write_text(f"{text}INVARIANTS\n    {invariant}\n", encoding="utf-8")
    return config


def assert_holds(verdict: Verdict, name: str) -> None:
    assert verdict.broken is None, verdict.output
    described = re.search(rf"^\| `{name}` \|.*?\| ([\d,]+) \|", PAGE, re.MULTILINE)
    assert described, f"{name} is not among the runs of the page"
    assert int(described[1].replace(",", "")) == verdict.states, "the page tells another number of states"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["crossing", "fair"])
def test_the_protocol_keeps_every_promise_in_every_state(java: str, name: str, tmp_path: Path) -> None:
    """No state that the model reaches breaks a promise, and the page says how many there are."""
    assert_holds(check(java, SPEC / f"{name}.cfg", tmp_path), name)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_protocol_that_is_built_wrong_breaks_the_promise_that_it_should(
    java: str, mutant: str, tmp_path: Path
) -> None:
    """TLC finds a way into the harm that each fault of construction does."""
    promise, world = MUTANTS[mutant]
    verdict = check(java, small(tmp_path, promise, Mutant=f'= "{mutant}"', **world), tmp_path, quick=True)
    assert verdict.broken == promise


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("denial", REACHED)
def test_the_model_reaches_what_it_makes_promises_about(java: str, denial: str, tmp_path: Path) -> None:
    """Promises about states that never come would always hold."""
    verdict = check(java, small(tmp_path, denial, **REACHED[denial]), tmp_path, quick=True)
    assert verdict.broken == denial


def test_every_mutant_of_the_model_is_tried_and_described() -> None:
    """The model, this test and the page have the same mutants, with the same broken promises."""
    named = re.search(r"^Mutants == \{(.*?)\}", TEXT, re.MULTILINE | re.DOTALL)
    assert named
    assert set(re.findall(r'"([^"]+)"', named[1])) == set(MUTANTS)
    described = dict(re.findall(r"^\| ([a-z ]+) \|[^|]*\| `(\w+)` \|$", PAGE, re.MULTILINE))
    assert described == {mutant: promise for mutant, (promise, _) in MUTANTS.items()}


def test_every_promise_is_broken_by_some_mutant() -> None:
    """No invariant of the model is one that cannot fail."""
    config = (SPEC / "crossing.cfg").read_text(encoding="utf-8")
    promises = set(config.split("INVARIANTS")[1].split()) - {"TypeOK"}
    assert promises == {promise for promise, _ in MUTANTS.values()}


def test_every_action_of_the_model_is_a_function_of_the_code() -> None:
    """The page maps each action to functions, and these are there."""
    steps = re.sub(r"\\\*.*", "", TEXT.split("\nProgress ==")[1].split("\nNext ==")[0])
    actions = set(re.findall(r"\b[A-Z][a-z]\w+", steps)) - {"Chance", "Xids", "Resources", "Misdeed"}
    rows = dict(re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|(.*)$", PAGE.split("## Actions and code")[1], re.MULTILINE))
    mapped = {action for names in rows for action in re.findall(r"`(\w+)`", names)}
    assert mapped == actions
    places = re.findall(r"`(coordinator/[\w/.]+): ([\w.]+)`", " ".join(rows.values()))
    assert places
    missing = [
        f"{path}: {name}"
        for path, name in places
        if not re.search(rf"(def|class|FUNCTION) {re.escape(name)}\b", (ROOT / path).read_text(encoding="utf-8"))
    ]
    assert missing == []
