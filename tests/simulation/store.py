"""The coordinator's store in memory: a primary that writes a log, a standby that follows it, and failovers.

What is synchronous waits for the standby before it is shown to anybody; what is not may be the lost tail of a failover.
The rulings are those of coordinator.tc.core.rulings, which a test on PostgreSQL holds to rulings.sql.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

from coordinator.protocol.statuses import BranchState, Decision, Settlement
from coordinator.tc.core.rulings import KnownBranch, Stored, Wish, rule, settled
from tests.simulation.connections import SimPool

if TYPE_CHECKING:
    from tests.simulation.world import World

NIL = UUID(int=0)
STARTUP_S = 0.5
Rows = dict[UUID, "Row"]


@dataclass
class Row:
    """A row of tc.global_transaction with its branches: (resource, branch) to [state, committed]."""

    name: str
    deadline_ms: int
    decision: Decision = Decision.UNDECIDED
    reason: str | None = None
    settlement: Settlement = Settlement.OPEN
    nudges: int = 0
    next_nudge_s: float | None = None
    branches: dict[tuple[str, UUID], list[Any]] = field(default_factory=dict)

    def copy(self) -> Row:
        """One that can be changed by itself."""
        return replace(self, branches={key: list(state) for key, state in self.branches.items()})

    def waits(self) -> bool:
        """Whether a resource has still to follow."""
        rolled_back = self.decision is Decision.ROLLED_BACK
        return any(state == 0 and (committed or rolled_back) for state, committed in self.branches.values())

    def resources(self) -> dict[str, list[UUID]]:
        """Its resources with their committed branches."""
        found: dict[str, list[UUID]] = {}
        for (resource, branch), (_, committed) in self.branches.items():
            found.setdefault(resource, []).extend([branch] if committed else [])
        return found


def rows_of(rows: Rows) -> Rows:
    """The same rows, that can be changed by themselves."""
    return {xid: row.copy() for xid, row in rows.items()}


class StoreServer:
    """One PostgreSQL server of the store."""

    def __init__(self, world: World, name: str, rows: Rows) -> None:
        self.world = world
        self.name = name
        self.rows = rows
        self.log: list[Rows] = []
        self.base = rows_of(rows)
        self.received = 0
        self.standby_up = True
        self.alive = True
        self.replaced = False
        self.locked: set[UUID] = set()
        self.waits: dict[UUID, tuple[UUID, UUID, UUID | None, int | None, float]] = {}
        self.urls: dict[str, dict[str, tuple[str, float]]] = {}
        self._changed: list[asyncio.Future[None]] = []
        self._life = 0

    def open_session(self, client: str) -> StoreSession:
        """See connections.Server."""
        if not self.alive:
            raise ConnectionRefusedError(f"{self.name} is down")
        return StoreSession(self)

    @asynccontextmanager
    async def lock(self, xids: Sequence[UUID]) -> AsyncIterator[None]:
        """FOR UPDATE on these rows, or the places where they would be."""
        wanted, locked = set(xids), self.locked
        while wanted & locked:
            await self._change()
        locked |= wanted
        try:
            yield
        finally:
            locked -= wanted  # after a restart that is nobody's set any more
            self.changed()

    async def commit(self, rows: Rows, *, decides: bool) -> None:
        """Writes the log. What decides is shown only once the standby has it."""
        self.log.append(rows_of(rows))
        place = len(self.log)
        self.world.loop.after(self.world.delay_s(), self._ship, place)
        if self.must_wait(decides):
            while self.received < place:
                await self._change()
        if self.alive:
            self.rows.update(rows)
            for xid, row in rows.items():
                self.world.stored(self, xid, row)

    def must_wait(self, decides: bool) -> bool:
        """synchronous_commit: what decides, and the barrier, is on two servers before it is answered."""
        return decides

    def restart(self) -> None:
        """Recovery plays the whole log: what waited for the standby is shown, though the standby may not have it."""
        for connection in [one for one in self.world.connections if one.server is self]:
            connection.cut("the store restarts")
        for entry in self.log:
            self.rows.update(rows_of(entry))
        self.waits.clear()
        self.locked = set()
        self._life += 1
        self.changed()

    def survivors(self) -> Rows:
        """What the standby has."""
        rows = rows_of(self.base)
        for entry in self.log[: self.received]:
            rows.update(rows_of(entry))
        return rows

    def reconnect(self) -> None:
        """The standby is there again and catches up, unless it has taken over."""
        if self.replaced:
            return
        self.standby_up = True
        self._ship(len(self.log))

    def changed(self) -> None:
        """Wakes who waits for a lock or for the standby."""
        waiting, self._changed = self._changed, []
        for one in waiting:
            if not one.done():
                one.set_result(None)

    def _ship(self, place: int) -> None:
        if self.standby_up and place > self.received:
            shipped, self.received = self.log[self.received : place], place
            for entry in shipped:
                # From now on it outlives a failover, whether its writer lives to say so or not.
                for xid, row in entry.items():
                    self.world.stored(self, xid, row)
            self.changed()

    async def _change(self) -> None:
        waiting, life = self.world.loop.create_future(), self._life
        self._changed.append(waiting)
        await waiting
        if life != self._life:
            raise ConnectionResetError(f"{self.name} was restarted")


class StoreSession:
    """The server's side of a replica's connection."""

    def __init__(self, server: StoreServer) -> None:
        self._server = server
        self._world = server.world

    def abort(self) -> None:
        """A statement that runs goes on: PostgreSQL does not look for its client meanwhile."""

    async def run(self, query: str, arguments: tuple[Any, ...]) -> Any:
        """See connections.Session."""
        if not self._server.alive:
            raise ConnectionResetError(f"{self._server.name} is down")
        if found := re.match(r"SELECT (?:\* FROM )?tc\.(\w+)\(", query):
            return await getattr(self, f"_tc_{found[1]}")(*arguments)
        rows, waits = self._server.rows, self._server.waits
        if query.startswith("SELECT xid FROM tc.global_transaction"):
            return [{"xid": x} for x in arguments[0] if x in rows and rows[x].decision is not Decision.UNDECIDED]
        if query.startswith("DELETE FROM tc.wait WHERE wait_id"):
            waits.pop(arguments[0], None)
        elif query.startswith("UPDATE tc.wait"):
            until_s = self._world.loop.time() + arguments[1].total_seconds()
            for key, wait in waits.items():
                if wait[0] == arguments[0]:
                    waits[key] = (*wait[:4], until_s)
        elif query.startswith("DELETE FROM tc.wait"):
            for key in [key for key, wait in waits.items() if wait[4] < self._world.loop.time()]:
                del waits[key]
        elif query.startswith("SELECT nudge_url"):
            known = self._server.urls.get(arguments[0], {})
            found_urls = sorted(known.items(), key=lambda one: -one[1][1])[: arguments[2]]
            return [{"nudge_url": url, "owner": owner} for url, (owner, _) in found_urls]
        else:
            assert query in ("SELECT 1", "BEGIN;", "COMMIT;", "ROLLBACK;"), query
        return []

    # The functions of rulings.sql, by their names

    async def _tc_pass_barrier(self, replica: UUID) -> None:
        await self._server.commit({}, decides=True)

    async def _tc_apply(self, replica: UUID, renudge: timedelta, *columns: Sequence[Any]) -> list[dict[str, Any]]:
        begins, registers, wishes = columns[0:4], columns[4:9], columns[9:15]
        named, confirms, states = columns[15:19], columns[19:21], columns[21:25]
        xids = [*begins[0], *registers[0], *wishes[0], *confirms[0]]
        async with self._server.lock(xids):
            now_s = self._world.wall_s()
            now_ms = int(now_s * 1000)
            rows = {x: r.copy() for x in xids if (r := self._server.rows.get(x)) is not None}
            before = rows_of(rows)
            for xid, name, _, deadline_ms in zip(*begins, strict=True):
                row = rows.setdefault(xid, Row(name, deadline_ms))
                row.name = row.name or name
            for xid, wish, name, _, deadline_ms, _ in zip(*wishes, strict=True):
                if wish > 0 or deadline_ms < now_ms:
                    rows.setdefault(xid, Row(name, deadline_ms))
            for xid, _, deadline_ms, resource, branch in zip(*registers, strict=True):
                row = rows.setdefault(xid, Row("", deadline_ms))
                row.branches.setdefault((resource, branch), [0, False])
            fresh = self._rule(rows, wishes, named, now_ms)
            diverged = _confirm(rows, confirms, states)
            for row in rows.values():
                _settle(row, now_s + renudge.total_seconds())
            if rows != before:
                await self._server.commit(rows, decides=bool(fresh))
            self._world.notify(self._server, fresh, replica)
            return [*_ruled(rows, [x for x in wishes[0] if x in rows], fresh), *diverged]

    def _rule(self, rows: Rows, wishes: Sequence[Any], named: Sequence[Any], now_ms: int) -> set[UUID]:
        first: dict[UUID, tuple[bool, int, int, str | None]] = {}
        for place, (xid, wish, _, _, _, reason) in enumerate(zip(*wishes, strict=True), 1):
            entry = (wish == 0, place, wish, reason)
            first[xid] = min(first.get(xid, entry), entry, key=lambda one: one[:2])
        fresh: set[UUID] = set()
        commits: set[int] = set()
        for xid, (_, place, wish, reason) in first.items():
            row = rows.get(xid)
            if row is None:
                continue
            stored = Stored(row.decision, row.reason, row.deadline_ms)
            ruling = rule(stored, Wish(wish), row.deadline_ms, now_ms, reason or "asked")
            if ruling.fresh:
                row.decision, row.reason = ruling.decision, ruling.reason
                fresh.add(xid)
                if ruling.decision is Decision.COMMITTED:
                    commits.add(place)
        for place, xid, resource, branch in zip(*named, strict=True):
            known = rows[xid].branches.setdefault((resource, branch), [0, False])
            known[1] = known[1] or place in commits
        return fresh

    async def _tc_commit_unheard(self, replica: UUID, renudge: timedelta, *columns: Sequence[Any]) -> list[UUID]:
        wishes, named = columns[0:4], columns[4:7]
        async with self._server.lock(wishes[0]):
            now_s = self._world.wall_s()
            made: Rows = {}
            for xid, name, _, deadline_ms in zip(*wishes, strict=True):
                if deadline_ms >= now_s * 1000 and xid not in self._server.rows:
                    made[xid] = Row(name, deadline_ms, Decision.COMMITTED, "asked", Settlement.SETTLING)
                    made[xid].next_nudge_s = now_s + renudge.total_seconds()
            for xid, resource, branch in zip(*named, strict=True):
                if xid in made:
                    made[xid].branches[resource, branch] = [0, True]
            if made:
                await self._server.commit(made, decides=True)
            self._world.notify(self._server, set(made), replica)
            return list(made)

    async def _tc_confirm_forgotten(self, *columns: Sequence[Any]) -> list[UUID]:
        async with self._server.lock(columns[0]):
            rows = {x: r.copy() for x in columns[0] if (r := self._server.rows.get(x)) is not None}
            left: list[UUID] = []
            for xid, resource, branch in zip(*columns, strict=True):
                row = rows.get(xid)
                known = None if row is None else row.branches.get((resource, branch))
                if row is None or known is None or not known[1] or known[0] not in (0, 1):
                    left.append(xid)
                    continue
                known[0] = 1
                if row.decision is Decision.COMMITTED:
                    _settle(row, None)
            await self._server.commit(rows, decides=False)
            return left

    async def _tc_expire(self, replica: UUID, renudge: timedelta, limit: int) -> list[dict[str, Any]]:
        now_ms = int(self._world.wall_s() * 1000)
        late = [
            xid
            for xid, row in self._server.rows.items()
            if row.decision is Decision.UNDECIDED and row.deadline_ms < now_ms and xid not in self._server.locked
        ][:limit]
        if not late:
            return []
        count = len(late)
        wishes = [late, [0] * count, [""] * count, [""] * count, [0] * count, [None] * count]
        empty: list[list[Any]] = [[] for _ in range(9)]
        return await self._tc_apply(replica, renudge, *empty, *wishes, *([[] for _ in range(10)]))

    async def _tc_wait_for(
        self, wait_id: UUID, replica: UUID, holder: UUID, waiter: UUID | None, deadline_ms: int | None, _: str,
        lease: timedelta,
    ) -> list[dict[str, Any]]:  # fmt: skip
        server, now_s = self._server, self._world.loop.time()
        server.waits[wait_id] = (replica, holder, waiter, deadline_ms, now_s + lease.total_seconds())
        decided = {xid for xid, row in server.rows.items() if row.decision is not Decision.UNDECIDED}
        live = [
            {"waiter": who, "holder": held, "waiter_deadline_ms": until}
            for _, held, who, until, expires in server.waits.values()
            if who is not None and expires > now_s and who not in decided and held not in decided
        ]
        reached, found = {waiter}, True
        while found:
            more = {one["holder"] for one in live if one["waiter"] in reached} - reached
            reached |= more
            found = bool(more)
        return [] if waiter is None else [one for one in live if one["waiter"] in reached]

    async def _tc_nudges_due(self, limit: int) -> list[dict[str, Any]]:
        now_s = self._world.wall_s()
        found: list[dict[str, Any]] = []
        for xid, row in list(self._server.rows.items()):
            due = row.next_nudge_s is not None and row.next_nudge_s <= now_s
            if due and row.settlement is Settlement.SETTLING and xid not in self._server.locked:
                waiting = {resource for (resource, _), (state, _) in row.branches.items() if state == 0}
                for resource, branches in row.resources().items():
                    if resource in waiting:
                        found.append(
                            {"xid": xid, "decision": int(row.decision), "nudges": row.nudges, "resource": resource,
                             "branches": branches}
                        )  # fmt: skip
        return found[:limit]

    async def _tc_nudge_again(self, xids: list[UUID], delays_s: list[float | None]) -> None:
        async with self._server.lock(xids):
            rows = {x: r.copy() for x in xids if (r := self._server.rows.get(x)) is not None}
            for xid, delay_s in zip(xids, delays_s, strict=True):
                if xid in rows:
                    rows[xid].nudges += 1
                    rows[xid].next_nudge_s = None if delay_s is None else self._world.wall_s() + delay_s
            await self._server.commit(rows, decides=False)

    async def _tc_announce(self, name: str, url: str, owner: str, lapse: timedelta) -> None:
        self._server.urls.setdefault(name, {})[url] = (owner, self._world.loop.time())

    async def _tc_purge(self, keep: timedelta, limit: int) -> int:
        return 0  # no run is as long as history is kept


def _confirm(rows: Rows, confirms: Sequence[Any], states: Sequence[Any]) -> list[dict[str, Any]]:
    """Notes how branches ended; returns those whose resource did the opposite."""
    touched: list[tuple[UUID, str, UUID]] = []
    for xid, resource, branch, state in zip(*states, strict=True):
        row = rows.get(xid)
        if row is None or row.decision is Decision.UNDECIDED or state == 0 or branch == NIL:
            continue
        known = row.branches.setdefault((resource, branch), [0, False])
        if known[0] in (0, 3, 4) and known[0] != state:
            known[0] = state
            touched.append((xid, resource, branch))
    still_open = {(xid, branch) for xid, _, branch, state in zip(*states, strict=True) if state == 0}
    for xid, resource in zip(*confirms, strict=True):
        row = rows.get(xid)
        if row is not None and row.decision is Decision.ROLLED_BACK:
            for (where, branch), known in row.branches.items():
                if where == resource and known[0] == 0 and (xid, branch) not in still_open:
                    known[0] = 4
    diverged = []
    for xid, resource, branch in touched:
        row = rows[xid]
        state, committed = row.branches[resource, branch]
        against = (row.decision is Decision.COMMITTED and committed and state in (2, 4)) or (
            row.decision is Decision.ROLLED_BACK and state == 1
        )
        if against:
            diverged.append(
                {
                    "xid": xid,
                    "decision": int(row.decision),
                    "resource": resource,
                    "branches": [branch],
                    "diverged": True,
                }
            )
    return diverged


def _settle(row: Row, next_nudge_s: float | None) -> None:
    if row.decision is Decision.UNDECIDED:
        return
    branches = [KnownBranch(BranchState(state), committed) for state, committed in row.branches.values()]
    now = settled(row.decision, branches)
    if now is not row.settlement:
        row.settlement = now
        row.next_nudge_s = (row.next_nudge_s or next_nudge_s) if row.waits() else None


def _ruled(rows: Rows, xids: Sequence[UUID], fresh: set[UUID]) -> list[dict[str, Any]]:
    found = []
    for xid in dict.fromkeys(xids):
        row = rows[xid]
        line = {
            "xid": xid,
            "decision": int(row.decision),
            "reason": row.reason,
            "fresh": xid in fresh,
            "diverged": False,
        }
        resources = row.resources()
        found += [{**line, "resource": name, "branches": ids} for name, ids in resources.items()]
        if not resources:
            found.append({**line, "resource": None, "branches": []})
    return found


class SimDriver:
    """Stands for the asyncpg module in coordinator.tc.store."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def create_pool(self, url: str, *, max_size: int, init: Any, **_: Any) -> SimPool:
        """As asyncpg's; `url` is the replica's name, whose way to the store may lag behind a failover."""
        return SimPool(self._world, lambda: self._world.store_of(url), max_size, init)

    async def connect(self, url: str, **_: Any) -> Any:
        """As asyncpg's."""
        from tests.simulation.connections import SimConnection

        await asyncio.sleep(self._world.delay_s())
        return SimConnection(self._world, self._world.store_of(url))
