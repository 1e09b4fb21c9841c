"""What the clients of a workload did: their transactions, in the words that the checker reads.

A key holds a list, and every value is appended to it at most once, so that a list read tells which appends came
before it and in which order (Kingsbury and Alvaro, Elle, VLDB 2020).
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple


class Outcome(StrEnum):
    """How a transaction ended, as its client knows it."""

    COMMITTED = "committed"
    ABORTED = "aborted"
    UNKNOWN = "unknown"


class Append(NamedTuple):
    """The value was put behind the list of the key."""

    key: str
    value: int


class Read(NamedTuple):
    """The whole list of the key, as it was seen."""

    key: str
    values: tuple[int, ...]


@dataclass
class Transaction:
    """One transaction: its name, its operations in the order in which they were done, and its outcome."""

    name: str
    operations: list[Append | Read] = field(default_factory=list)
    outcome: Outcome = Outcome.UNKNOWN

    def appends(self, key: str) -> list[int]:
        """The values that it appended to the key, in order."""
        return [o.value for o in self.operations if isinstance(o, Append) and o.key == key]
