"""What a person sees of a quarantined transaction in its resource, and what becomes of each decision."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from uuid import UUID, uuid4

import asyncpg
import pytest

from coordinator.protocol.statuses import BranchState
from coordinator.resource import (
    doubt,
    forget,
    heard,
    images,
    install,
    pulse,
    purge,
    quarantines,
    resolve,
    states,
    told,
    undo,
    unsettled,
)
from tests.integration.coordinator.resource.branches import branch, rows_of, run_branch, undo_rows

MEDDLE = "SET session_replication_role = replica; {} RESET session_replication_role"


@pytest.fixture
async def bank(connection: asyncpg.Connection) -> asyncpg.Connection:
    """Three accounts and their notes."""
    await connection.execute(
        "CREATE TABLE account (id int PRIMARY KEY, name text UNIQUE, balance int NOT NULL);"
        "INSERT INTO account VALUES (1, 'ann', 10), (2, 'bob', 20), (3, 'cyd', 30)"
    )
    await install(connection, managed=["account"])
    return connection


async def quarantined(bank: asyncpg.Connection) -> UUID:
    """A transaction that wrote three accounts, two of which were changed behind the triggers since."""
    xid = uuid4()
    await run_branch(bank, xid, "UPDATE account SET balance = balance + 1")
    await bank.execute(MEDDLE.format("UPDATE account SET balance = 99 WHERE id = 2; DELETE FROM account WHERE id = 3;"))
    assert (await undo(bank, xid)).state is BranchState.QUARANTINED
    return xid


async def decide(bank: asyncpg.Connection, xid: UUID, action: str, **kept: object) -> dict[str, object]:
    shown = await images(bank, xid)
    return await resolve(bank, xid, uuid4(), action, shown.digest, **kept)  # type: ignore[arg-type]


async def test_before_after_and_now_are_shown_the_changed_rows_first(bank: asyncpg.Connection) -> None:
    """One row for each key, with who wrote it; a short page still counts all and stands for all."""
    xid = await quarantined(bank)
    shown = await images(bank, xid)
    assert (shown.total, [row["key"]["id"] for row in shown.rows]) == (3, [2, 3, 1])
    changed, gone, fine = shown.rows
    assert [changed[image]["balance"] for image in ("before", "after", "now")] == [20, 21, 99]
    assert (gone["now"], gone["changed"], fine["changed"]) == (None, True, False)
    assert (await states(bank, xid))[UUID(fine["branch"])] is BranchState.QUARANTINED
    page = await images(bank, xid, 1)
    assert (page.rows, page.total, page.digest) == ([changed], 3, shown.digest)


@pytest.mark.parametrize(
    ("action", "left", "outcome"),
    [
        ("keep", ["(1,ann,10)", "(2,bob,99)"], {"state": 2, "kept": 2, "restored": 1}),
        ("restore", ["(1,ann,10)", "(2,bob,20)", "(3,cyd,30)"], {"state": 2, "kept": 0, "restored": 3}),
        ("keep_all", ["(1,ann,11)", "(2,bob,99)"], {"state": 2, "kept": 3, "restored": 0}),
    ],
)
async def test_a_decision_ends_the_quarantine_as_it_says(
    bank: asyncpg.Connection, action: str, left: list[str], outcome: dict[str, object]
) -> None:
    """The rows are as decided, nothing is locked, and the branch is settled."""
    xid = await quarantined(bank)
    assert await decide(bank, xid, action) == outcome
    assert await rows_of(bank, "account") == left
    assert await undo_rows(bank) == 0
    assert BranchState.QUARANTINED not in (await states(bank, xid)).values()
    await bank.execute("UPDATE account SET balance = 0")


async def test_rows_can_be_decided_one_by_one(bank: asyncpg.Connection) -> None:
    """The named rows stay as they are now, all others get their before images, also the other changed ones."""
    xid = await quarantined(bank)
    row = {"table": "public.account", "key": {"id": 2}}
    fine = {"table": "public.account", "key": {"id": 1}}
    assert "only 1 were changed" in str((await decide(bank, xid, "keep", kept=[row, fine]))["error"])
    assert await undo_rows(bank) == 3
    assert await decide(bank, xid, "keep", kept=[row]) == {"state": 2, "kept": 1, "restored": 2}
    assert await rows_of(bank, "account") == ["(1,ann,10)", "(2,bob,99)", "(3,cyd,30)"]


async def test_retry_undoes_what_was_put_right_and_nothing_else(bank: asyncpg.Connection) -> None:
    """While a row is not as it was left the answer says so; once it is, the transaction is undone."""
    xid = await quarantined(bank)
    assert "still cannot be undone" in str((await decide(bank, xid, "retry"))["error"])
    await bank.execute(
        MEDDLE.format("UPDATE account SET balance = 21 WHERE id = 2; INSERT INTO account VALUES (3, 'cyd', 31);")
    )
    assert await decide(bank, xid, "retry") == {"state": 2, "kept": 0, "restored": 3}
    assert await rows_of(bank, "account") == ["(1,ann,10)", "(2,bob,20)", "(3,cyd,30)"]


@pytest.mark.parametrize("action", ["keep", "restore", "keep_all"])
async def test_a_row_that_changed_again_since_it_was_shown_is_not_decided(
    bank: asyncpg.Connection, action: str
) -> None:
    """The person decided on something else: nothing changes, and the answer says what to do."""
    xid = await quarantined(bank)
    shown = await images(bank, xid)
    await bank.execute(MEDDLE.format("UPDATE account SET balance = 100 WHERE id = 2;"))
    before = await rows_of(bank, "account")
    answer = await resolve(bank, xid, uuid4(), action, shown.digest)
    assert "changed again since it was shown" in answer["error"]
    assert (await rows_of(bank, "account"), await undo_rows(bank)) == (before, 3)
    assert BranchState.QUARANTINED in (await states(bank, xid)).values()


async def test_names_and_values_of_any_kind_are_shown_and_decided(connection: asyncpg.Connection) -> None:
    """Quoted names, columns called as ours are, a key of two columns, JSON, and an image too long to show."""
    await connection.execute(
        'CREATE TABLE "Odd.Näme" ("before" text, "now" int, xid json, long text, PRIMARY KEY ("before", "now"));'
        """INSERT INTO "Odd.Näme" VALUES ('a''b', 1, '{"x": [1]}', 'short')"""
    )
    await install(connection, managed=['"Odd.Näme"'])
    xid = uuid4()
    await run_branch(connection, xid, """UPDATE "Odd.Näme" SET xid = 'null', long = repeat('x', 20000)""")
    await connection.execute(MEDDLE.format('UPDATE "Odd.Näme" SET xid = NULL;'))
    assert (await undo(connection, xid)).state is BranchState.QUARANTINED
    [row] = (await images(connection, xid)).rows
    assert (row["table"], row["key"]) == ('public."Odd.Näme"', {"before": "a'b", "now": 1})
    assert (row["before"]["xid"], list(row["after"]), row["changed"]) == ({"x": [1]}, ["at__bytes"], True)
    kept = [{"table": row["table"], "key": row["key"]}]
    assert (await decide(connection, xid, "keep", kept=kept))["kept"] == 1
    assert await connection.fetchval('SELECT xid IS NULL AND length(long) = 20000 FROM "Odd.Näme"')


async def test_what_is_not_quarantined_cannot_be_decided(bank: asyncpg.Connection) -> None:
    """An open, an undone and an unknown transaction are left alone."""
    open_, undone = uuid4(), uuid4()
    await run_branch(bank, undone, "UPDATE account SET balance = 0 WHERE id = 1")
    await undo(bank, undone)
    await run_branch(bank, open_, "UPDATE account SET balance = 0 WHERE id = 2")
    for xid in (open_, undone, uuid4()):
        assert "nothing of it is quarantined" in str((await decide(bank, xid, "restore"))["error"])
    assert (await rows_of(bank, "account"))[:2] == ["(1,ann,10)", "(2,bob,0)"]


async def test_the_same_decision_takes_effect_once(bank: asyncpg.Connection, second: asyncpg.Connection) -> None:
    """Brought twice at once and again later it gets one answer; a refusal is repeated, too."""
    xid, one, refused = await quarantined(bank), uuid4(), uuid4()
    digest = (await images(bank, xid)).digest
    wrong = await resolve(bank, xid, refused, "keep", "another digest")
    answers = await asyncio.gather(*(resolve(c, xid, one, "restore", digest) for c in (bank, second)))
    assert answers == [{"state": 2, "kept": 0, "restored": 3}] * 2
    await bank.execute("UPDATE account SET balance = 77 WHERE id = 1")
    assert await resolve(bank, xid, one, "restore", digest) == answers[0]
    assert await resolve(bank, xid, refused, "keep", digest) == wrong
    assert (await rows_of(bank, "account"))[0] == "(1,ann,77)"


async def test_two_decisions_at_once_end_in_one_of_them(bank: asyncpg.Connection, second: asyncpg.Connection) -> None:
    """The second finds nothing quarantined any more."""
    xid = await quarantined(bank)
    digest = (await images(bank, xid)).digest
    first, other = await asyncio.gather(
        resolve(bank, xid, uuid4(), "restore", digest), resolve(second, xid, uuid4(), "keep", digest)
    )
    assert sorted(["error" in first, "error" in other]) == [False, True]
    expected = ["(1,ann,10)", "(2,bob,20)", "(3,cyd,30)"] if "error" in other else ["(1,ann,10)", "(2,bob,99)"]
    assert await rows_of(bank, "account") == expected


async def test_a_restore_that_breaks_a_constraint_changes_nothing(bank: asyncpg.Connection) -> None:
    """The database's own error is the answer; leaving everything as it is stays possible."""
    xid = uuid4()
    await run_branch(bank, xid, "DELETE FROM account WHERE id = 1")
    await bank.execute(MEDDLE.format("INSERT INTO account VALUES (9, 'ann', 1);"))
    assert (await undo(bank, xid)).state is BranchState.QUARANTINED
    before = await rows_of(bank, "account")
    assert "unique constraint" in str((await decide(bank, xid, "restore"))["error"])
    assert "no row was changed" in str((await decide(bank, xid, "keep"))["error"])
    assert (await rows_of(bank, "account"), await undo_rows(bank)) == (before, 1)
    assert (await decide(bank, xid, "keep_all"))["state"] == 2
    assert (await rows_of(bank, "account"), await undo_rows(bank)) == (before, 0)


async def test_an_orphan_beside_a_committed_branch_is_decided_alone(bank: asyncpg.Connection) -> None:
    """Only what is quarantined is touched, also by a retry."""
    xid = uuid4()
    named = await run_branch(bank, xid, "UPDATE account SET balance = 11 WHERE id = 1")
    orphan = await run_branch(bank, xid, "UPDATE account SET balance = 21 WHERE id = 2")
    await forget(bank, [xid], [named])
    await bank.execute(MEDDLE.format("UPDATE account SET balance = 99 WHERE id = 2;"))
    assert (await undo(bank, xid, [orphan])).state is BranchState.QUARANTINED
    await bank.execute(MEDDLE.format("UPDATE account SET balance = 21 WHERE id = 2;"))
    assert (await decide(bank, xid, "retry"))["state"] == 2
    assert (await rows_of(bank, "account"))[:2] == ["(1,ann,11)", "(2,bob,20)"]
    assert await states(bank, xid) == {named: BranchState.FORGOTTEN, orphan: BranchState.UNDONE}
    async with branch(bank, xid):
        pass


async def test_a_transaction_in_doubt_is_left_to_a_person(bank: asyncpg.Connection) -> None:
    """It stays as it is, locked, is not asked about again, and can be undone."""
    xid = uuid4()
    await run_branch(bank, xid, "UPDATE account SET balance = 11 WHERE id = 1")
    await doubt(bank, xid, "too old")
    assert (await unsettled(bank), await quarantines(bank, 10)) == ([], [(xid, "too old")])
    assert (await undo_rows(bank), (await rows_of(bank, "account"))[0]) == (1, "(1,ann,11)")
    assert (await decide(bank, xid, "restore"))["state"] == 2
    assert (await rows_of(bank, "account"))[0] == "(1,ann,10)"


@pytest.mark.parametrize(("action", "committed"), [("keep_all", True), ("restore", False)])
async def test_the_steps_of_a_transaction_in_doubt_follow_the_person(
    bank: asyncpg.Connection, action: str, committed: bool
) -> None:
    """Nobody undoes them before; then they are as the person said: all kept is committed, all restored is not."""
    xid = uuid4()
    await run_branch(
        bank, xid, "UPDATE account SET balance = 11 WHERE id = 1", "SELECT at.add_step('mail', '{}', false)"
    )
    await doubt(bank, xid, "too old")
    take = "SELECT committed FROM at.take_steps('{mail}', 10, '1 min', '0 s')"
    assert await bank.fetch(take) == []
    assert await bank.fetchval("SELECT state FROM at.steps()") == "UNDECIDED"
    assert "error" not in await decide(bank, xid, action)
    assert [row["committed"] for row in await bank.fetch(take)] == [committed]


async def test_the_coordinator_is_told_until_it_has_heard_the_end(bank: asyncpg.Connection) -> None:
    """A quarantine stands in the list until it is resolved and told; answers are kept for a while."""
    xid, resolution = await quarantined(bank), uuid4()
    await told(bank, xid)
    assert await quarantines(bank, 10) == [(xid, None)]
    await resolve(bank, xid, resolution, "restore", (await images(bank, xid)).digest)
    assert await quarantines(bank, 10) == [(xid, None)]
    await told(bank, xid)
    assert await quarantines(bank, 10) == []
    await bank.execute("UPDATE at.resolution SET applied_at = applied_at - interval '8 days'")
    await purge(bank, timedelta(0))
    assert await bank.fetchval("SELECT count(*) FROM at.resolution") == 0


async def test_a_mark_follows_the_one_that_was_heard(bank: asyncpg.Connection) -> None:
    """No new one before the last was heard; reading makes none; installing again keeps the chain."""
    first = await pulse(bank, beat=True)
    assert (await pulse(bank, beat=True)).mark == first.mark
    await heard(bank, first.mark)
    assert (await pulse(bank, beat=False)).mark == first.mark
    second = await pulse(bank, beat=True)
    assert (second.previous, second.beats, second.incarnation) == (first.mark, first.beats + 1, first.incarnation)
    await heard(bank, first.mark)
    await install(bank, managed=["account"])
    assert (await pulse(bank, beat=True)).mark == second.mark
