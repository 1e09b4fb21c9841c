"""A resource database in memory: accounts, and schema `at` with the contract of docs/reference/resource-sql.md.

Local transactions are READ COMMITTED: writes are private until COMMIT, rows are locked until the end, a writer that has
waited sees what was committed meanwhile. The capture trigger's work is `Session._capture`.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

from coordinator.protocol.statuses import BranchState
from tests.simulation.connections import postgres_error
from tests.simulation.locks import Locks

if TYPE_CHECKING:
    from tests.simulation.world import World

NIL = UUID(int=0)
UNDO_WAIT_S = 5.0
Key = str
BranchKey = tuple[UUID, UUID]
DONE = (BranchState.FORGOTTEN, BranchState.UNDONE, BranchState.TOMBSTONE)


@dataclass
class Undo:
    """One row of the undo table: the global lock and the undo record of one key."""

    xid: UUID
    branch: UUID | None
    before: int
    after: int


@dataclass
class BranchRow:
    """One row of at.branch."""

    state: BranchState
    deadline: datetime
    created: float
    result: str | None = None


@dataclass(eq=False)
class Local:
    """A local transaction: what it has written, and what it would add to the tables of `at`."""

    writes: dict[Key, int] = field(default_factory=dict)
    deltas: list[tuple[Key, int]] = field(default_factory=list)
    undo: dict[Key, Undo] = field(default_factory=dict)
    branch: BranchKey | None = None
    row: BranchRow | None = None
    failed: bool = False
    over: bool = False


class Database:
    """The committed state, and what was done to it for the checks."""

    def __init__(self, world: World, name: str, accounts: dict[Key, int]) -> None:
        self.world = world
        self.name = name
        self.rows = dict(accounts)
        self.undo: dict[Key, Undo] = {}
        self.branches: dict[BranchKey, BranchRow] = {}
        self.lease: tuple[str, float] | None = None
        self.locks = Locks(world.loop)
        self.up = True
        self.skew_s = world.dice.uniform(-0.05, 0.05)
        self.written: dict[BranchKey, list[tuple[Key, int]]] = {}
        self.plain: list[tuple[Key, int]] = []
        self.sessions: list[Session] = []

    def now(self) -> datetime:
        """clock_timestamp()."""
        return datetime.fromtimestamp(self.world.wall_s() + self.skew_s, UTC)

    def open_session(self, client: str) -> Session:
        """See Server."""
        if not self.up:
            raise ConnectionRefusedError(f"{self.name} is down")
        session = Session(self)
        self.sessions.append(session)
        return session

    def restart(self) -> None:
        """All local transactions are lost; what was committed is there."""
        for session in list(self.sessions):
            session.abort()
        for connection in [one for one in self.world.connections if one.server is self]:
            connection.cut("the server restarts")

    def publish(self, local: Local) -> None:
        """COMMIT."""
        local.over = True
        for key in local.writes:
            holder = self.undo.get(key)
            if holder is not None and (local.branch is None or holder.xid != local.branch[0]):
                self.world.violation(f"dirty write on {self.name}/{key}, locked by {self.world.short(holder.xid)}")
        self.rows.update(local.writes)
        self.undo.update(local.undo)
        if local.branch is not None and local.row is not None:
            self.branches[local.branch] = local.row
            self.written[local.branch] = local.deltas
        else:
            self.plain += local.deltas
        who = "plain" if local.branch is None else self.world.short(local.branch[0])
        self.world.trace("local commit", self.name, who, sorted(local.writes.items()))
        self.locks.release(local)
        self.world.check_step()


class Session:
    """The server's side of one connection."""

    def __init__(self, database: Database) -> None:
        self._db = database
        self._local: Local | None = None
        self._ended = False

    def abort(self) -> None:
        """The client is gone: what it had open is rolled back."""
        self._ended = True
        if self in self._db.sessions:
            self._db.sessions.remove(self)
        if self._local is not None:
            self._local.over = True
            self._db.locks.release(self._local)
            self._local = None

    async def run(self, query: str, arguments: tuple[Any, ...]) -> Any:
        """See connections.Session."""
        result: Any = None
        for statement in filter(None, (part.strip() for part in query.split(";"))):
            if self._ended:
                raise ConnectionResetError("the session is over")
            try:
                result = await self._one(statement, arguments)
            except Exception:
                if self._local is not None:
                    self._local.failed = True
                raise
        return result

    async def _one(self, statement: str, arguments: tuple[Any, ...]) -> Any:
        local, db = self._local, self._db
        if statement == "BEGIN":
            self._local = Local()
            return None
        if statement == "ROLLBACK" or (statement == "COMMIT" and local is not None and local.failed):
            if local is not None:
                db.locks.release(local)
            self._local = None
            if statement == "COMMIT":
                raise postgres_error("25P02", "the transaction had failed before")
            return None
        if statement == "COMMIT":
            self._local = None
            if local is not None:
                db.publish(local)
            return None
        if local is not None and local.failed:
            raise postgres_error("25P02", "current transaction is aborted")
        if found := re.match(r"ADD (\S+) (-?\d+)$", statement):
            assert local is not None
            await self._add(local, found[1], int(found[2]))
            return None
        if found := re.match(r"READ (\S+)$", statement):
            return (local.writes if local is not None else {}).get(found[1], db.rows[found[1]])
        if "current_setting('at.xid'" in statement:
            return local is not None and local.branch is not None
        if "LATERAL at.states" in statement:
            return [dict(xid=xid, **row) for xid in arguments[0] for row in self._states(xid)]
        found = re.match(r"SELECT (?:\* FROM )?at\.(\w+)\((.*)", statement, re.DOTALL)
        assert found is not None, statement
        if found[1] in ("enter", "keep") and "'" in found[2]:
            arguments = tuple(re.findall(r"'([^']*)'", found[2]))
        done = getattr(self, f"_at_{found[1]}")(*arguments)
        return await done if hasattr(done, "__await__") else done

    # Phase one

    async def _add(self, local: Local, key: Key, delta: int) -> None:
        db = self._db
        await db.locks.take(local, ("row", key))
        if local.over:
            raise ConnectionResetError("the session is over")
        old = local.writes.get(key, db.rows[key])
        self._capture(local, key, old, old + delta)
        local.writes[key] = old + delta
        local.deltas.append((key, delta))

    def _capture(self, local: Local, key: Key, old: int, new: int) -> None:
        holder = local.undo.get(key, self._db.undo.get(key))
        if holder is not None and (local.branch is None or holder.xid != local.branch[0]):
            self._refuse(local, holder.xid)
        if local.branch is not None:
            xid, branch = local.branch
            before = old if holder is None else holder.before
            same = holder is None or holder.branch == branch
            local.undo[key] = Undo(xid, branch if same else None, before, new)

    def _refuse(self, local: Local, holder: UUID) -> None:
        if local.branch is None:
            raise postgres_error("40001", f"row locked by global transaction {holder}", str(holder))
        raise postgres_error("AT001", f"row is locked by global transaction {holder}", str(holder))

    async def _at_enter(self, xid_text: str, branch_text: str, deadline_text: str) -> None:
        db, local = self._db, self._local
        assert local is not None
        xid, branch, deadline = UUID(xid_text), UUID(branch_text), datetime.fromisoformat(deadline_text)
        if deadline <= db.now():
            raise postgres_error("AT002", "the deadline has passed")
        await db.locks.take(local, ("xid", xid), shared=True)
        if (xid, NIL) in db.branches:
            raise postgres_error("AT004", f"global transaction {xid} was rolled back here", str(xid))
        # An insert waits for one of the same key that is not committed yet.
        await db.locks.take(local, ("branch", xid, branch))
        known = db.branches.get((xid, branch))
        if known is not None:
            raise postgres_error(
                "AT003", f"branch {branch} was taken before", str(int(known.state)), known.result or ""
            )
        local.branch = (xid, branch)
        local.row = BranchRow(BranchState.OPEN, deadline, db.world.loop.time())

    def _at_keep(self, result: str) -> None:
        assert self._local is not None and self._local.row is not None
        self._local.row.result = result

    # Phase two: statements of their own

    async def _at_forget(self, xids: list[UUID], branches: list[UUID] | None) -> int:
        db, work = self._db, Local()
        try:
            for key in [key for key, undo in db.undo.items() if undo.xid in xids]:
                # A branch of the same transaction that is writing the row is waited for.
                if any(one.branch and one.branch[0] in xids for one in db.locks.holders(("row", key))):  # type: ignore[attr-defined]
                    await db.locks.take(work, ("row", key))
            return self._forget_now(set(xids), None if branches is None else set(branches))
        finally:
            db.locks.release(work)

    def _forget_now(self, xids: set[UUID], branches: set[UUID] | None) -> int:
        db = self._db
        for key, undo in list(db.undo.items()):
            if undo.xid not in xids:
                continue
            if (
                branches is None
                or undo.branch in branches
                or (
                    undo.branch is None
                    and not any(
                        xid == undo.xid and row.state == BranchState.OPEN and branch not in branches
                        for (xid, branch), row in db.branches.items()
                    )
                )
            ):
                del db.undo[key]
        forgotten = 0
        for (xid, branch), row in db.branches.items():
            if xid in xids and row.state == BranchState.OPEN and (branches is None or branch in branches):
                row.state = BranchState.FORGOTTEN
                forgotten += 1
                db.world.acted(db.name, xid, branch, row.state)
        db.world.trace("forget", db.name, [db.world.short(xid) for xid in sorted(xids)], forgotten)
        db.world.check_step()
        return forgotten

    async def _at_undo(self, xid: UUID, branches: list[UUID] | None) -> str:
        db, work = self._db, Local()
        try:
            await db.locks.take(work, ("xid", xid), wait_s=UNDO_WAIT_S)
            scope = branches
            if scope is not None and not any(x == xid and b not in scope for x, b in db.branches):
                scope = None
            keys = [k for k, u in db.undo.items() if u.xid == xid and (scope is None or u.branch in scope)]
            for key in sorted(keys):
                await db.locks.take(work, ("row", key), wait_s=UNDO_WAIT_S)
            return json.dumps(self._undo_now(xid, branches, scope))
        finally:
            db.locks.release(work)

    def _undo_now(self, xid: UUID, branches: list[UUID] | None, scope: list[UUID] | None) -> dict[str, Any]:
        db = self._db
        for branch in branches if branches is not None else [NIL]:
            fence = BranchRow(BranchState.TOMBSTONE, db.now() + timedelta(hours=1), db.world.loop.time())
            db.branches.setdefault((xid, branch), fence)
        rows = {k: u for k, u in db.undo.items() if u.xid == xid and (scope is None or u.branch in scope)}
        shared = scope is not None and any(u.xid == xid and u.branch is None for u in db.undo.values())
        wrong = [key for key, undo in rows.items() if db.rows[key] != undo.after]
        state = BranchState.QUARANTINED if wrong or shared else BranchState.UNDONE
        if state == BranchState.UNDONE:
            for key, undo in rows.items():
                db.rows[key] = undo.before
                del db.undo[key]
        else:
            db.world.violation(f"quarantine on {db.name} of {db.world.short(xid)}: {wrong or 'shared rows'}")
        for (x, branch), row in db.branches.items():
            open_here = row.state in (BranchState.OPEN, BranchState.QUARANTINED)
            if x == xid and open_here and (branches is None or branch in branches):
                row.state = state
                db.world.acted(db.name, xid, branch, state)
        db.world.trace("undo", db.name, db.world.short(xid), sorted(rows), state.name)
        db.world.check_step()
        return {"state": int(state), "rows": len(rows), "problems": []}

    def _states(self, xid: UUID) -> list[dict[str, Any]]:
        found = [(b, row) for (x, b), row in self._db.branches.items() if x == xid]
        return [{"branch_id": b, "state": int(row.state)} for b, row in sorted(found, key=lambda one: one[0])]

    def _at_states(self, xid: UUID) -> list[dict[str, Any]]:
        return self._states(xid)

    def _at_unsettled(self, limit: int) -> list[dict[str, Any]]:
        found: dict[UUID, list[tuple[float, UUID, datetime]]] = {}
        for (xid, branch), row in self._db.branches.items():
            if row.state == BranchState.OPEN:
                found.setdefault(xid, []).append((row.created, branch, row.deadline))
        oldest = sorted(found.items(), key=lambda one: (min(one[1]), one[0]))[:limit]
        return [
            {"xid": xid, "branches": [b for _, b, _ in rows], "deadline": max(d for _, _, d in rows)}
            for xid, rows in oldest
        ]

    def _at_purge(self, grace: timedelta) -> int:
        db = self._db
        open_xids = {xid for (xid, _), row in db.branches.items() if row.state == BranchState.OPEN}
        old = [k for k, r in db.branches.items() if r.state in DONE and r.deadline < db.now() - grace]
        gone = [key for key in old if key[0] not in open_xids]
        for key in gone:
            del db.branches[key]
        return len(gone)

    def _at_claim(self, owner: str, ttl: timedelta) -> bool:
        db, now = self._db, self._db.world.loop.time()
        if db.lease is not None and db.lease[0] != owner and db.lease[1] > now:
            return False
        db.lease = (owner, now + ttl.total_seconds())
        return True

    def _at_quarantines(self, limit: int) -> list[dict[str, Any]]:
        return []

    def _at_pulse(self, beat: bool) -> list[dict[str, Any]]:
        one = {"incarnation": NIL, "beats": 1, "mark": NIL, "previous": NIL, "before": self._db.now()}
        return [one]

    def _at_heard(self, mark: UUID) -> None:
        """Nobody restores a database here."""
