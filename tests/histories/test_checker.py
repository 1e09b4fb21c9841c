"""The checker proves itself on histories written by hand: one for each anomaly, and some that must pass."""

import pytest

from tests.histories.checker import Anomaly, check
from tests.histories.history import Append, Outcome, Read, Transaction


def done(name: str, *operations: Append | Read, outcome: Outcome = Outcome.COMMITTED) -> Transaction:
    return Transaction(name, list(operations), outcome)


def aborted(name: str, *operations: Append | Read) -> Transaction:
    return done(name, *operations, outcome=Outcome.ABORTED)


HISTORIES = {
    Anomaly.G0: (
        [done("T1", Append("x", 1), Append("y", 1)), done("T2", Append("x", 2), Append("y", 2))],
        {"x": [1, 2], "y": [2, 1]},
    ),
    Anomaly.G1A: ([aborted("T1", Append("x", 1)), done("T2", Read("x", (1,)))], {"x": []}),
    Anomaly.G1B: ([done("T1", Append("x", 1), Append("x", 2)), done("T2", Read("x", (1,)))], {"x": [1, 2]}),
    Anomaly.G1C: (
        [done("T1", Append("x", 1), Read("y", (1,))), done("T2", Append("y", 1), Read("x", (1,)))],
        {"x": [1], "y": [1]},
    ),
    Anomaly.G_SINGLE: (
        [done("T1", Read("x", ()), Append("x", 1)), done("T2", Read("x", ()), Append("x", 2))],
        {"x": [1, 2]},
    ),
    Anomaly.G2: (
        [done("T1", Read("x", ()), Append("y", 1)), done("T2", Read("y", ()), Append("x", 1))],
        {"x": [1], "y": [1]},
    ),
    Anomaly.LOST: ([done("T1", Append("x", 1))], {"x": []}),
    Anomaly.TWICE: ([done("T1", Append("x", 1))], {"x": [1, 1]}),
    Anomaly.DIRTY: ([aborted("T1", Append("x", 1))], {"x": [1]}),
    Anomaly.FORKED: (
        [done("T1", Append("x", 1)), done("T2", Append("x", 2)), done("T3", Read("x", (2,)))],
        {"x": [1, 2]},
    ),
}


@pytest.mark.parametrize("anomaly", Anomaly)
def test_each_anomaly_is_found_in_its_smallest_history(anomaly: Anomaly) -> None:
    history, final = HISTORIES[anomaly]
    assert anomaly in {finding.anomaly for finding in check(history, final)}


@pytest.mark.parametrize("anomaly", [Anomaly.G1A, Anomaly.G2, Anomaly.LOST, Anomaly.TWICE, Anomaly.DIRTY])
def test_nothing_else_is_found_beside_it(anomaly: Anomaly) -> None:
    history, final = HISTORIES[anomaly]
    assert {finding.anomaly for finding in check(history, final)} == {anomaly}


def test_a_serial_history_is_clean() -> None:
    one = done("T1", Read("x", ()), Append("x", 1), Read("x", (1,)), Append("y", 1))
    two = done("T2", Read("x", (1,)), Append("x", 2), Read("y", (1,)))
    assert check([one, two, aborted("T3", Append("x", 3))], {"x": [1, 2], "y": [1]}) == []


def test_an_unknown_outcome_may_be_either_but_never_a_half() -> None:
    unknown = done("T1", Append("x", 1), Append("y", 1), outcome=Outcome.UNKNOWN)
    assert check([unknown], {"x": [1], "y": [1]}) == []
    assert check([unknown], {"x": [], "y": []}) == []
    assert [finding.anomaly for finding in check([unknown], {"x": [1], "y": []})] == [Anomaly.LOST]


def test_a_cycle_is_told_in_words() -> None:
    history, final = HISTORIES[Anomaly.G2]
    (finding,) = check(history, final)
    assert finding.words == ("T1 read x without 1, which T2 appended; T2 read y without 1, which T1 appended")


def test_a_value_appended_twice_by_the_history_itself_is_refused() -> None:
    with pytest.raises(ValueError, match="must be unique"):
        check([done("T1", Append("x", 1)), done("T2", Append("x", 1))], {"x": [1]})
