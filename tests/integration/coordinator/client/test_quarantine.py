"""A quarantine from the undo that finds it to the person's decision carried out, whoever dies on the way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

import aiohttp
import asyncpg
import pytest

from coordinator.client import Coordinator, CoordinatorUnavailable, TransactionRolledBack
from coordinator.client.context import bound
from coordinator.protocol.messages import BranchRef, Decide, Nudge, Report
from tests.integration.coordinator.client.test_settling import participant
from tests.integration.coordinator.client.world import Bank, TcProcess, add_west, open_bank, until
from tests.support.servers import TestPostgres


async def meddle(dsn: str, statement: str) -> None:
    """Writes behind the triggers."""
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(f"SET session_replication_role = replica; {statement}")
    finally:
        await connection.close()


async def quarantined(bank: Bank, account: int = 1) -> UUID:
    """A transaction that could not be undone in west: the row was changed behind the triggers."""
    with pytest.raises(TransactionRolledBack):  # noqa: PT012 - how the block ends is not what is tested
        async with bank.coordinator.global_transaction("dirty") as tx:
            await bank.coordinator.run_branch(bank.west, add_west(10, account))
            await meddle(bank.west_dsn, f"UPDATE account SET balance = 777 WHERE id = {account}")
            tx.mark_rollback_only("test")
    return UUID(int=tx.xid.int)


@asynccontextmanager
async def operator(tc: TcProcess) -> AsyncIterator[Operator]:
    """A person at the coordinator."""
    headers = {"Authorization": f"Bearer {tc.tokens('operator').token_for('coordinator')}"}
    async with aiohttp.ClientSession(headers=headers) as http:
        yield Operator(http, tc.url)


class Operator:
    """Looks and decides."""

    def __init__(self, http: aiohttp.ClientSession, url: str) -> None:
        self._http = http
        self._url = url

    async def show(self, xid: UUID) -> dict[str, Any]:
        """All that is known."""
        async with self._http.get(f"{self._url}/v1/transactions/{xid}") as response:
            return dict(await response.json(content_type=None))

    async def shown(self, xid: UUID) -> dict[str, Any]:
        """The one quarantine of a transaction, once its resource has reported it."""
        await until(lambda: self._reported(xid), "the quarantine was never reported")
        [found] = (await self.show(xid))["quarantine"]
        return dict(found)

    async def _reported(self, xid: UUID) -> bool:
        return bool((await self.show(xid)).get("quarantine"))

    async def decide(self, xid: UUID, action: str, found: dict[str, Any], **more: Any) -> tuple[int, dict[str, Any]]:
        """Status and body of a decision about what was found."""
        body = {"resolution_id": str(uuid4()), "resource": found["resource"], "action": action, "by": "ada"}
        body |= {"shown": found["shown"], **more}
        async with self._http.post(f"{self._url}/v1/transactions/{xid}/resolve", json=body) as response:
            return response.status, dict(await response.json(content_type=None))

    async def settled(self, xid: UUID) -> None:
        """Waits until nothing is left to do, and all that was decided has its outcome."""

        async def is_settled() -> bool:
            found = await self.show(xid)
            return found["settlement"] == "SETTLED" and all(one["outcome"] for one in found["resolutions"])

        await until(is_settled, "it never became settled")


@pytest.mark.parametrize(("action", "balance"), [("keep", 777), ("restore", 100), ("keep_all", 777)])
async def test_a_decision_reaches_the_row_and_is_audited(bank: Bank, action: str, balance: int) -> None:
    """Shown with before, after and now; decided; carried out by the settle loop; readable with who, when and what."""
    xid = await quarantined(bank)
    async with operator(bank.tc) as ada:
        found = await ada.shown(xid)
        [image] = found["images"]
        assert [image[when]["balance"] for when in ("before", "after", "now")] == [100, 110, 777]
        assert (await ada.show(xid))["settlement"] == "QUARANTINED"
        assert await bank.coordinator.nudged(Nudge(bank.west.name, [])) == []
        status, taken = await ada.decide(xid, action, found)
        assert status == 200, taken
        await ada.settled(xid)
        shown = await ada.show(xid)
    [audited] = shown["resolutions"]
    assert (audited["by"], audited["action"], audited["resource"]) == ("ada", action, bank.west.name)
    assert audited["images"] == found["images"]
    assert audited["decided_ms"] <= audited["done_ms"]
    assert audited["outcome"]["state"] == 2
    assert (shown["quarantine"], [branch["state"] for branch in shown["branches"]]) == ([], ["UNDONE"])
    assert (await bank.balance(bank.west_dsn), await bank.locks(bank.west_dsn)) == (balance, 0)


async def test_a_decision_about_a_row_that_changed_again_is_refused_and_changes_nothing(bank: Bank) -> None:
    """The coordinator had not heard of the change yet: the resource refuses, and reports what is there now."""
    xid = await quarantined(bank)
    async with operator(bank.tc) as ada:
        found = await ada.shown(xid)
        await meddle(bank.west_dsn, "UPDATE account SET balance = 778 WHERE id = 1")
        status, _ = await ada.decide(xid, "restore", found)
        assert status == 200
        await bank.coordinator.nudged(Nudge(bank.west.name, []))

        async def refused() -> bool:
            [one] = (await ada.show(xid))["resolutions"]
            return one["done_ms"] is not None

        await until(refused, "the decision was never answered")
        shown = await ada.show(xid)
        assert "changed again" in shown["resolutions"][0]["outcome"]["error"]
        assert (shown["settlement"], shown["quarantine"][0]["images"][0]["now"]["balance"]) == ("QUARANTINED", 778)
        assert (await bank.balance(bank.west_dsn), await bank.locks(bank.west_dsn)) == (778, 1)
        status, _ = await ada.decide(xid, "restore", shown["quarantine"][0])
        assert status == 200
        await bank.coordinator.nudged(Nudge(bank.west.name, []))
        await ada.settled(xid)
    assert await bank.balance(bank.west_dsn) == 100


async def test_a_decision_survives_the_death_of_every_party(postgres: TestPostgres, own_tc: TcProcess) -> None:
    """The resource's process ends after it carried the decision out, before it could say so; then the coordinator.

    Others go on: the effect is there once, and the answer is the first one.
    """
    own_tc.start()
    async with open_bank(postgres, own_tc) as bank, operator(own_tc) as ada:
        xid = await quarantined(bank)
        found = await ada.shown(xid)
        settler = bank.coordinator._settlers[bank.west.name]
        tell, cut = settler._transport.tell, asyncio.Event()

        async def cut_off(path: str, message: Any) -> bytes:
            if isinstance(message, Report) and message.resolved is not None:
                cut.set()
            if cut.is_set():
                raise CoordinatorUnavailable("cut off")
            return await tell(path, message)

        settler._transport.tell = cut_off  # type: ignore[method-assign]
        status, _ = await ada.decide(xid, "restore", found)
        assert status == 200
        await bank.coordinator.nudged(Nudge(bank.west.name, []))
        await until(lambda: asyncio.sleep(0, cut.is_set()), "the decision never came")
        await bank.coordinator.__aexit__(None, None, None)
        assert (await bank.balance(bank.west_dsn), (await ada.show(xid))["settlement"]) == (100, "QUARANTINED")
        await meddle(bank.west_dsn, "UPDATE account SET balance = 5 WHERE id = 1")
        own_tc.kill()
        own_tc.start()
        heir = Coordinator([own_tc.url], own_tc.tokens())
        heir.resource(bank.west.name, bank.pool)
        async with heir:
            await ada.settled(xid)
        [audited] = (await ada.show(xid))["resolutions"]
        assert audited["outcome"] == {"state": 2, "kept": 0, "restored": 1}
        assert await bank.balance(bank.west_dsn) == 5


async def test_a_row_put_right_by_hand_is_settled_by_a_retry(bank: Bank) -> None:
    """Retry needs no look at the rows; while they are wrong it says so."""
    xid = await quarantined(bank)
    async with operator(bank.tc) as ada:
        found = await ada.shown(xid)
        await meddle(bank.west_dsn, "UPDATE account SET balance = 110 WHERE id = 1")
        status, _ = await ada.decide(xid, "retry", found, shown=None)
        assert status == 200
        await bank.coordinator.nudged(Nudge(bank.west.name, []))
        await ada.settled(xid)
    assert await bank.balance(bank.west_dsn) == 100


async def test_a_decision_that_cannot_be_carried_out_now_holds_up_no_other(bank: Bank) -> None:
    """Somebody holds the row of the first: the second is settled meanwhile, the first once the row is free."""
    blocked, free = await quarantined(bank, 1), await quarantined(bank, 2)
    holder = await asyncpg.connect(bank.west_dsn)
    try:
        async with operator(bank.tc) as ada:
            found = [await ada.shown(xid) for xid in (blocked, free)]
            async with holder.transaction():
                await holder.execute("SELECT FROM account WHERE id = 1 FOR UPDATE")
                for xid, one in zip((blocked, free), found, strict=True):
                    assert (await ada.decide(xid, "restore", one))[0] == 200
                await bank.coordinator.nudged(Nudge(bank.west.name, []))
                await ada.settled(free)
                assert (await ada.show(blocked))["settlement"] == "QUARANTINED"
            await bank.coordinator.nudged(Nudge(bank.west.name, []))
            await ada.settled(blocked)
    finally:
        await holder.close()
    assert [await bank.balance(bank.west_dsn, account) for account in (1, 2)] == [100, 100]


async def test_a_database_restored_from_an_old_backup_undoes_nothing_that_was_committed_and_purged(
    postgres: TestPostgres, own_tc: TcProcess
) -> None:
    """Its branch is open again and nobody remembers the commit: it is left to a person, and an alert says so."""
    own_tc.start()
    async with open_bank(postgres, own_tc, entered=False) as bank, operator(own_tc) as ada:
        store = await asyncpg.connect(own_tc._store)
        async with bank.coordinator:
            scope = participant(bank, timeout_s=3)
            with bound(scope):
                await bank.coordinator.run_branch(bank.west, add_west(10))
            branch = scope.branches[0].branch
            await until(lambda: beaten(store, bank.west.name, 0), "no life sign was heard")
        backup = await dump(bank.west_dsn)
        beats = backup["at.life"][0]["beats"]
        commit = Decide(scope.xid, "old", scope.deadline_ms, True, [BranchRef(bank.west.name, branch)])
        async with bank.coordinator:
            await bank.coordinator._transport.converse([commit])
            await bank.quiet()
            await until(lambda: beaten(store, bank.west.name, beats + 1), "no further life sign was heard")
            await ada.settled(scope.xid)
        purge = "SELECT tc.purge('0 s', 100) > 0"
        await until(lambda: store.fetchval(purge), "nothing was purged")
        await restore(bank.west_dsn, backup)
        assert (await bank.balance(bank.west_dsn), await bank.open_branches(bank.west_dsn)) == (110, 1)
        async with bank.coordinator:
            found = await ada.shown(scope.xid)
            assert "does not remember" in found["reason"]
            shown = await ada.show(scope.xid)
            assert (shown["settlement"], shown["reason"]) == ("QUARANTINED", "forgotten")
            assert await bank.balance(bank.west_dsn) == 110
            detail = await store.fetchval(
                "SELECT detail->>'beats_known' FROM tc.alert WHERE kind = 'resource.went_back'"
            )
            assert int(detail) == beats + 1
            status, _ = await ada.decide(scope.xid, "keep_all", found)
            assert status == 200
            await ada.settled(scope.xid)
            assert [one["state"] for one in (await ada.show(scope.xid))["branches"]] == ["FORGOTTEN"]
            assert await store.fetchval("SELECT count(*) FROM tc.alert WHERE kind = 'transaction.diverged'") == 0
        assert (await bank.balance(bank.west_dsn), await bank.locks(bank.west_dsn)) == (110, 0)
        await store.close()


async def beaten(store: Any, resource: str, least: int) -> bool:
    """Whether the coordinator has heard so many life signs of a resource."""
    return bool(await store.fetchval("SELECT max(beats) >= $2 FROM tc.resource_life WHERE name = $1", resource, least))


TABLES = ("account", "at.branch", 'at."public.account"', "at.life", "at.quarantine")


async def dump(dsn: str) -> dict[str, list[Any]]:
    """A backup of the tables that change."""
    connection = await asyncpg.connect(dsn)
    try:
        return {table: await connection.fetch(f"SELECT * FROM {table}") for table in TABLES}
    finally:
        await connection.close()


async def restore(dsn: str, backup: dict[str, list[Any]]) -> None:
    """Puts a backup in the place of what is there."""
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute("SET session_replication_role = replica")
        for table, rows in backup.items():
            await connection.execute(f"TRUNCATE {table}")
            for row in rows:
                places = ", ".join(f"${number}" for number in range(1, len(row) + 1))
                await connection.execute(f"INSERT INTO {table} VALUES ({places})", *row.values())
    finally:
        await connection.close()
