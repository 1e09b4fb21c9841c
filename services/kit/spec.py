"""What a service is, as the runtime, the gateway and the documents see it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class ServiceSpec:
    """One service.

    `storage` is ``own`` (a database of its own) or ``sharded`` (a database on every shard). `managed` tables take part
    in global transactions, `exempt` ones may be written inside a branch without being undone, `guarded` ones carry a
    bucket and are refused on a shard that does not own it, `monthly` ones are partitioned by month.
    """

    name: str
    port: int
    purpose: str
    storage: Literal["own", "sharded"] = "own"
    managed: tuple[str, ...] = ()
    exempt: tuple[str, ...] = ()
    guarded: tuple[str, ...] = ()
    monthly: tuple[str, ...] = ()
    calls: tuple[str, ...] = ()
    has_worker: bool = False

    @property
    def migrations(self) -> Path:
        """The folder of the service's migrations."""
        return Path(__file__).resolve().parent.parent / self.name / "migrations"
