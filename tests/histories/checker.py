"""Finds the anomalies of a list-append history, named as by Adya (1999) and found as by Elle (VLDB 2020).

What a key holds after quiet is its version order. From it follow three dependencies: write-write (the next append),
write-read (who read a list saw the append at its end) and read-write (who read a list missed the append after it). A
cycle of them is an anomaly, named by the strongest dependencies that it needs. A transaction with an unknown outcome
counts as committed as soon as a key holds one of its values after quiet.
"""

from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from enum import StrEnum
from itertools import pairwise
from typing import NamedTuple

from tests.histories.history import Append, Outcome, Read, Transaction


class Anomaly(StrEnum):
    """What went wrong, in Adya's names."""

    G0 = "G0, a cycle of writes"
    G1A = "G1a, an aborted read"
    G1B = "G1b, an intermediate read"
    G1C = "G1c, a cycle of information"
    G_SINGLE = "G-single, a lost update or a skewed read"
    G2 = "G2, a write skew"
    LOST = "an append that committed is missing"
    TWICE = "an append was taken twice"
    DIRTY = "an aborted append stayed"
    FORKED = "two readers saw different orders"


class Finding(NamedTuple):
    """An anomaly and its smallest witness, in words."""

    anomaly: Anomaly
    words: str


class Edge(NamedTuple):
    """One dependency: `later` comes after `earlier`, for the reason in `words`."""

    earlier: str
    later: str
    kind: str
    words: str


def check(history: Sequence[Transaction], final: dict[str, Sequence[int]]) -> list[Finding]:
    """All anomalies of a history whose keys held `final` after quiet; of each kind of cycle, the smallest one.

    Raises ValueError when the history appends one value to one key twice: such a history cannot be judged.
    """
    writers = _writers(history)
    findings = [*_audit(history, final, writers), *_reads(history, writers)]
    committed = [t for t in history if t.outcome is Outcome.COMMITTED or _took_effect(t, final)]
    findings += _forks(committed, final)
    return findings + _cycles(_edges(committed, final, writers))


def _writers(history: Iterable[Transaction]) -> dict[Append, Transaction]:
    writers: dict[Append, Transaction] = {}
    for transaction in history:
        for operation in transaction.operations:
            if isinstance(operation, Append):
                if operation in writers:
                    raise ValueError(f"{operation} is in the history twice; values must be unique")
                writers[operation] = transaction
    return writers


def _took_effect(transaction: Transaction, final: dict[str, Sequence[int]]) -> bool:
    return transaction.outcome is Outcome.UNKNOWN and any(
        isinstance(o, Append) and o.value in final.get(o.key, ()) for o in transaction.operations
    )


def _audit(
    history: Iterable[Transaction], final: dict[str, Sequence[int]], writers: dict[Append, Transaction]
) -> list[Finding]:
    findings = []
    for key, values in final.items():
        for value in sorted({v for v in values if list(values).count(v) > 1}):
            findings.append(Finding(Anomaly.TWICE, f"{key} holds {value} more than once: {list(values)}"))
    for append, writer in writers.items():
        present = append.value in final.get(append.key, ())
        words = f"{writer.name} ({writer.outcome}) appended {append.value} to {append.key}"
        if writer.outcome is Outcome.COMMITTED and not present:
            findings.append(Finding(Anomaly.LOST, f"{words}, which holds {list(final.get(append.key, ()))}"))
        if writer.outcome is Outcome.ABORTED and present:
            findings.append(Finding(Anomaly.DIRTY, f"{words}, which still holds it"))
    for transaction in history:
        if _took_effect(transaction, final):
            for append in (o for o in transaction.operations if isinstance(o, Append)):
                if append.value not in final.get(append.key, ()):
                    words = f"{transaction.name} took effect in part: {append.value} is missing from {append.key}"
                    findings.append(Finding(Anomaly.LOST, words))
    return findings


def _reads(history: Iterable[Transaction], writers: dict[Append, Transaction]) -> list[Finding]:
    findings = []
    for reader in history:
        if reader.outcome is Outcome.ABORTED:
            continue
        for read in (o for o in reader.operations if isinstance(o, Read)):
            for value in read.values:
                writer = writers.get(Append(read.key, value))
                if writer is not None and writer.outcome is Outcome.ABORTED and writer is not reader:
                    words = f"{reader.name} read {value} in {read.key}, which {writer.name} appended and rolled back"
                    findings.append(Finding(Anomaly.G1A, words))
            last = writers.get(Append(read.key, read.values[-1])) if read.values else None
            if last is not None and last is not reader and last.appends(read.key)[-1] != read.values[-1]:
                missed = last.appends(read.key)[-1]
                words = f"{reader.name} read {read.key} up to {read.values[-1]}, before {last.name} appended {missed}"
                findings.append(Finding(Anomaly.G1B, words))
    return findings


def _forks(committed: Iterable[Transaction], final: dict[str, Sequence[int]]) -> list[Finding]:
    findings = []
    for transaction in committed:
        for read in (o for o in transaction.operations if isinstance(o, Read)):
            kept = [v for v in read.values if v in final.get(read.key, ())]
            if kept != list(final.get(read.key, ()))[: len(kept)]:
                words = f"{transaction.name} read {read.key} as {list(read.values)}, which is {list(final[read.key])}"
                findings.append(Finding(Anomaly.FORKED, words))
    return findings


def _edges(
    committed: Sequence[Transaction], final: dict[str, Sequence[int]], writers: dict[Append, Transaction]
) -> list[Edge]:
    names = {t.name for t in committed}
    edges = []

    def add(earlier: str, later: str, kind: str, words: str) -> None:
        if earlier != later and {earlier, later} <= names:
            edges.append(Edge(earlier, later, kind, words))

    def writer(key: str, value: int) -> str:
        found = writers.get(Append(key, value))
        return found.name if found else ""

    for key, values in final.items():
        for one, two in pairwise(values):
            a, b = writer(key, one), writer(key, two)
            add(a, b, "ww", f"{b} appended {two} to {key} behind {one} of {a}")
    for reader in committed:
        for read in (o for o in reader.operations if isinstance(o, Read)):
            order = list(final.get(read.key, ()))
            kept = [v for v in read.values if v in order and writer(read.key, v) != reader.name]
            if kept:
                a = writer(read.key, kept[-1])
                add(a, reader.name, "wr", f"{reader.name} read {kept[-1]} in {read.key}, which {a} appended")
            unseen = [v for v in order if v not in read.values and writer(read.key, v) != reader.name]
            if unseen:
                b = writer(read.key, unseen[0])
                add(reader.name, b, "rw", f"{reader.name} read {read.key} without {unseen[0]}, which {b} appended")
    return edges


def _cycles(edges: list[Edge]) -> list[Finding]:
    """The smallest cycle of each kind, the strongest kind first; a kind counts only what no stronger kind explains."""
    plain = [e for e in edges if e.kind != "rw"]
    missed = [e for e in edges if e.kind == "rw"]
    writes = [e for e in edges if e.kind == "ww"]
    kinds = [
        (Anomaly.G0, [_closed(e, writes) for e in writes]),
        (Anomaly.G1C, [_closed(e, plain) for e in plain if e.kind == "wr"]),
        (Anomaly.G_SINGLE, [_closed(e, plain) for e in missed]),
    ]
    findings = []
    for anomaly, cycles in kinds:
        found = [c for c in cycles if c]
        if found:
            findings.append(Finding(anomaly, _in_words(min(found, key=len))))
    if not findings:
        skews = [c for c in (_closed(e, edges) for e in missed) if c]
        if skews:
            findings.append(Finding(Anomaly.G2, _in_words(min(skews, key=len))))
    return findings


def _closed(first: Edge, edges: list[Edge]) -> list[Edge]:
    """The shortest cycle that starts with `first` and goes back over `edges`; empty if there is none."""
    onward: dict[str, list[Edge]] = defaultdict(list)
    for edge in edges:
        onward[edge.earlier].append(edge)
    paths: dict[str, list[Edge]] = {first.later: [first]}
    queue = deque([first.later])
    while queue:
        here = queue.popleft()
        for edge in onward[here]:
            if edge.later == first.earlier:
                return [*paths[here], edge]
            if edge.later not in paths:
                paths[edge.later] = [*paths[here], edge]
                queue.append(edge.later)
    return []


def _in_words(cycle: list[Edge]) -> str:
    return "; ".join(edge.words for edge in cycle)
