"""Steps inside a resource: what is due, for whom, and for how long it is kept from others."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID, uuid4

import asyncpg
import pytest

from coordinator.resource import (
    DueStep,
    InstallationError,
    add_step_sql,
    end_step,
    fail_step,
    finish_steps,
    forget,
    install,
    purge,
    retry_steps,
    states,
    steps,
    take_steps,
    undo,
    uninstall,
    unserved_steps,
)
from tests.integration.coordinator.resource.branches import branch, run_branch

MINUTE = timedelta(minutes=1)
NOTHING = timedelta(0)


@pytest.fixture
async def resource(connection: asyncpg.Connection) -> asyncpg.Connection:
    """A database with the protocol and one managed table."""
    await connection.execute("CREATE TABLE account (id int PRIMARY KEY, balance bigint)")
    await connection.execute("INSERT INTO account VALUES (1, 100)")
    await install(connection, managed=["account"])
    return connection


async def add(connection: asyncpg.Connection, xid: UUID, name: str = "mail", *, doing: bool = False) -> UUID:
    async with branch(connection, xid):
        return UUID(await connection.fetchval(add_step_sql(name, '{"a": "it\'s"}', doing=doing)))


async def take(connection: asyncpg.Connection, *names: str, lease: timedelta = MINUTE) -> list[DueStep]:
    return await take_steps(connection, names or ["mail"], 10, lease=lease, grace=NOTHING)


async def test_a_step_is_due_when_its_branch_is_settled_and_not_before(resource: asyncpg.Connection) -> None:
    """Committed, undone and quarantined; only for those who know its name."""
    committed, undone, stuck, open_ = (uuid4() for _ in range(4))
    keys = [await add(resource, xid) for xid in (committed, undone, stuck, open_)]
    await run_branch(resource, stuck, "UPDATE account SET balance = 5 WHERE id = 1")
    await resource.execute("SET session_replication_role = replica; UPDATE account SET balance = 7")
    await resource.execute("SET session_replication_role = origin")
    assert await take(resource) == []
    await forget(resource, [committed])
    await undo(resource, undone)
    await undo(resource, stuck)
    assert await take(resource, "other") == []
    assert await unserved_steps(resource, ["mail"], NOTHING) == {}
    assert await unserved_steps(resource, ["other"], MINUTE) == {}
    assert await unserved_steps(resource, ["other"], NOTHING) == {"mail": 3}
    taken = {step.key: step.committed for step in await take(resource)}
    assert taken == {keys[0]: True, keys[1]: False, keys[2]: False}
    assert [step.state for step in await steps(resource)] == ["COMMITTING", "UNDOING", "UNDOING", "UNDECIDED"]


async def test_a_taken_step_is_nobody_elses_until_its_lease_ends(resource: asyncpg.Connection) -> None:
    """Then it is the next try; what the first one says afterwards does not count against that."""
    xid = uuid4()
    key = await add(resource, xid)
    await forget(resource, [xid])
    first = await take(resource)
    assert first == [DueStep(key, xid, "mail", {"a": "it's"}, True, 1)]
    assert await take(resource) == []
    await resource.execute("UPDATE at.step SET due_at = now()")
    assert [step.attempt for step in await take(resource)] == [2]
    await fail_step(resource, key, 1, "late", None)
    assert (await steps(resource))[0].state == "COMMITTING"
    await fail_step(resource, key, 2, "broken", None)
    assert (await steps(resource))[0].state == "GIVEN_UP"
    assert await take(resource, lease=NOTHING) == []
    assert await retry_steps(resource, [key]) == 1
    assert [step.attempt for step in await take(resource)] == [1]
    assert await finish_steps(resource, [key, uuid4()]) == 1
    assert await steps(resource) == []


async def test_the_undo_of_an_effect_waits_for_its_end_or_for_the_deadline(resource: asyncpg.Connection) -> None:
    """The key of a step with an effect is its branch's id."""
    ended, silent = uuid4(), uuid4()
    keys = [await add(resource, xid, doing=True) for xid in (ended, silent)]
    for xid, key in zip((ended, silent), keys, strict=True):
        assert key in await states(resource, xid)
        await undo(resource, xid)
    assert await take(resource) == []
    await end_step(resource, keys[0])
    assert [step.key for step in await take(resource)] == [keys[0]]
    await resource.execute("UPDATE at.step SET deadline = now()")
    assert [step.key for step in await take(resource)] == [keys[1]]


async def test_a_branch_with_a_step_is_not_purged_before_the_step_is_over(resource: asyncpg.Connection) -> None:
    """Its row says what was decided, however long nobody carries the step out. Nor is the protocol taken away."""
    xid = uuid4()
    key = await add(resource, xid)
    await forget(resource, [xid])
    await resource.execute("UPDATE at.branch SET deadline = now() - interval '1 day'")
    assert await purge(resource, NOTHING) == 0
    with pytest.raises(InstallationError, match="steps"):
        await uninstall(resource)
    assert [step.committed for step in await take(resource)] == [True]
    await finish_steps(resource, [key])
    assert await purge(resource, NOTHING) == 1
    await uninstall(resource)


async def test_a_step_outside_a_branch_is_refused(resource: asyncpg.Connection) -> None:
    """Nothing would ever decide about it."""
    with pytest.raises(asyncpg.ActiveSQLTransactionError, match="outside a branch"):
        await resource.execute(add_step_sql("mail", "{}", doing=False))


async def test_an_application_role_may_work_with_steps(resource: asyncpg.Connection, database: str) -> None:
    """Through the functions, not in the table."""
    name = f"app_{uuid4().hex[:8]}"
    await resource.execute(f"CREATE ROLE {name} LOGIN")
    app = None
    try:
        await install(resource, managed=["account"], roles=[name])
        app = await asyncpg.connect(database, user=name)
        xid = uuid4()
        key = await add(app, xid, doing=True)
        await end_step(app, key)
        await undo(app, xid)
        assert [step.key for step in await take(app)] == [key]
        await fail_step(app, key, 1, "no", NOTHING)
        assert await retry_steps(app, [key]) == 1
        assert len(await steps(app)) == 1
        assert await unserved_steps(app, [], MINUTE) == {}
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await app.execute("DELETE FROM at.step")
        assert await finish_steps(app, [key]) == 1
    finally:
        if app is not None:
            await app.close()
        await resource.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")
