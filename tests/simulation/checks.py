"""What must hold: at every step, and when everything is quiet."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

from coordinator.protocol.statuses import BranchState, Decision, Settlement

if TYPE_CHECKING:
    from tests.simulation.store import Row
    from tests.simulation.world import World

NIL = UUID(int=0)


class Checks:
    """Of one world. `truth` holds every decision that was ever shown by the store, with the branches it names."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.truth: dict[UUID, Decision] = {}
        self.named: dict[UUID, set[UUID]] = {}
        self._answered: dict[UUID, Decision] = {}
        self._total = sum(sum(database.rows.values()) for database in world.databases.values())
        self._initial = {key: value for database in world.databases.values() for key, value in database.rows.items()}
        self._said: dict[UUID, str] = {}

    def decided(self, xid: UUID, row: Row) -> None:
        """The store shows a decision: it never changes."""
        known = self.truth.setdefault(xid, row.decision)
        if known is not row.decision:
            self._world.violation(f"{self._world.short(xid)} was {known.name} and became {row.decision.name}")
        if row.decision is Decision.COMMITTED and xid not in self.named:
            self.named[xid] = {branch for (_, branch), (_, committed) in row.branches.items() if committed}
            self._world.trace("decided", self._world.short(xid), row.decision.name)
            self.step()

    def answered(self, xid: UUID, decision: Decision) -> None:
        """A replica answered: every other answer is the same."""
        known = self._answered.setdefault(xid, decision)
        if known is not decision:
            self._world.violation(f"{self._world.short(xid)} was answered {known.name} and then {decision.name}")

    def acted(self, database: str, xid: UUID, branch: UUID, state: BranchState) -> None:
        """A resource forgets only what is committed, and undoes only what is not."""
        decision, named = self.truth.get(xid), branch in self.named.get(xid, ())
        if state is BranchState.FORGOTTEN and not (decision is Decision.COMMITTED and named):
            self._world.violation(f"{database} forgot a branch of {self._world.short(xid)}, which is {decision}")
        if state is BranchState.UNDONE and (decision is None or (decision is Decision.COMMITTED and named)):
            self._world.violation(f"{database} undid a branch of {self._world.short(xid)}, which is {decision}")

    def said(self, xid: UUID, outcome: str) -> None:
        """What an application was told about its transaction."""
        self._said[xid] = outcome

    def step(self) -> None:
        """The sum of what is decided is always the same: money is on its way in transactions that count as a whole."""
        total = 0
        for database in self._world.databases.values():
            for key, value in database.rows.items():
                undo = database.undo.get(key)
                if undo is not None and not self._counts(undo.xid, undo.branch):
                    value = undo.before
                total += value
        if total != self._total:
            self._world.violation(f"the decided sum is {total}, not {self._total}")

    def _counts(self, xid: UUID, branch: UUID | None) -> bool:
        if self.truth.get(xid) is not Decision.COMMITTED:
            return False
        return branch is None or branch in self.named[xid]

    def unquiet(self) -> list[str]:
        """What is still going on."""
        world = self._world
        found = []
        for database in world.databases.values():
            found += [f"{database.name}/{key} is locked by {world.short(u.xid)}" for key, u in database.undo.items()]
            found += [
                f"{database.name} has an open branch of {world.short(xid)}"
                for (xid, _), row in database.branches.items()
                if row.state is BranchState.OPEN
            ]
        for xid, row in world.store.rows.items():
            if row.settlement is not Settlement.SETTLED:
                found.append(f"the store has {world.short(xid)} {row.decision.name} {row.settlement.name}")
        return found

    def quiet(self) -> None:
        """When nothing goes on any more: every transaction happened as a whole or not at all."""
        world = self._world
        expected = dict(self._initial)
        for database in world.databases.values():
            counted = list(database.plain)
            for (xid, branch), row in database.branches.items():
                if branch == NIL:
                    continue
                named = branch in self.named.get(xid, ())
                if named and row.state is not BranchState.FORGOTTEN:
                    world.violation(f"{database.name}: a branch of committed {world.short(xid)} is {row.state.name}")
                if not named and row.state is BranchState.FORGOTTEN:
                    world.violation(f"{database.name}: a branch of {world.short(xid)} is kept, and nobody named it")
                if named:
                    counted += database.written[xid, branch]
            for key, delta in counted:
                expected[key] += delta
            for key, value in database.rows.items():
                if value != expected[key]:
                    world.violation(f"{database.name}/{key} is {value}, and {expected[key]} by what was committed")
        seen = {branch for database in world.databases.values() for _, branch in database.branches}
        for xid, named_branches in self.named.items():
            if named_branches - seen:
                world.violation(f"{world.short(xid)} committed with a branch that never was")
        for xid, outcome in self._said.items():
            committed = self.truth.get(xid) is Decision.COMMITTED
            if committed != (outcome == "committed") and outcome != "unknown":
                world.violation(f"{world.short(xid)} was said to be {outcome}, and is {self.truth.get(xid)}")
