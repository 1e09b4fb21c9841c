"""Steps: what is done is undone whatever happens, what is committed is told, at least once and with one key."""

# ruff: noqa: PT012 - what a block does when it is left by an error is what is tested here

from __future__ import annotations

import asyncio
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import pytest
import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from coordinator.client import Coordinator, DeadlinePassed, Step, StepCall, TransactionRolledBack
from coordinator.client import steps as steps_module
from coordinator.client.context import bound, format_branches, required
from coordinator.resource import OpenStep, add_step_sql, retry_steps, steps
from tests.integration.coordinator.client.world import ROOT, Bank, TcProcess, add_east, open_bank, until
from tests.support.servers import TestPostgres


class Planned(Exception):
    """The failure that a test makes."""


@dataclass
class Shop:
    """The other side: writes down which handler was called with what, and fails as often as it is told."""

    heard: list[tuple[str, StepCall]] = field(default_factory=list)
    failures: dict[str, int] = field(default_factory=dict)

    def handler(self, what: str) -> Any:
        """A handler that notes its call."""

        async def handle(call: StepCall) -> str:
            self.heard.append((what, call))
            if self.failures.get(what, 0) > 0:
                self.failures[what] -= 1
                raise Planned(what)
            return f"{what} {call.arguments}"

        return handle

    @property
    def order(self) -> list[str]:
        """The handlers that were called."""
        return [what for what, _ in self.heard]

    @property
    def keys(self) -> set[UUID]:
        """The keys that they were given."""
        return {call.key for _, call in self.heard}


@pytest.fixture
def shop() -> Shop:
    """A shop that has heard nothing."""
    return Shop()


def charging(bank: Bank, shop: Shop, resource: str = "west") -> Step[str]:
    """A step with all three handlers."""
    return bank.coordinator.step(
        "charge",
        getattr(bank, resource),
        do=shop.handler("do"),
        undo=shop.handler("undo"),
        commit=shop.handler("commit"),
    )


async def left(dsn: str) -> list[OpenStep]:
    """The steps that are not over."""
    connection = await asyncpg.connect(dsn)
    try:
        return await steps(connection)
    finally:
        await connection.close()


async def over(bank: Bank) -> None:
    """Waits until no step, branch or lock is left."""

    async def none_left() -> bool:
        return not await left(bank.west_dsn) and not await left(bank.east_dsn)

    await until(none_left, "a step is left")
    await bank.quiet()


@pytest.mark.parametrize("resource", ["east", "west"])
async def test_a_step_of_a_committed_transaction_is_done_and_then_told(bank: Bank, shop: Shop, resource: str) -> None:
    """Do at once, with its answer; commit after the decision, never undo; one key, the branch's id."""
    charge = charging(bank, shop, resource)
    async with bank.coordinator.global_transaction("buy") as tx:
        assert await charge({"it's": ["%s", ":x", 1.5, None]}) == "do {\"it's\": ['%s', ':x', 1.5, None]}"
        await bank.coordinator.run_branch(bank.east, add_east(-1))
        assert shop.order == ["do"]
        assert {ref.branch for ref in tx.branches} > shop.keys
        assert [step.state for step in await left(getattr(bank, f"{resource}_dsn"))] == ["UNDECIDED"]
    await over(bank)
    assert shop.order == ["do", "commit"]
    assert len(shop.keys) == 1
    assert shop.heard[0][1].arguments == shop.heard[1][1].arguments == {"it's": ["%s", ":x", 1.5, None]}
    assert {call.xid for _, call in shop.heard} == {tx.xid}


async def test_a_step_of_a_failed_transaction_is_undone(bank: Bank, shop: Shop) -> None:
    """With the key and the arguments that do had."""
    charge = charging(bank, shop)
    with pytest.raises(Planned):
        async with bank.coordinator.global_transaction("buy"):
            await bank.coordinator.run_branch(bank.east, add_east(-1))
            await charge(7)
            raise Planned
    await over(bank)
    assert shop.order == ["do", "undo"]
    assert len(shop.keys) == 1
    assert [call.arguments for _, call in shop.heard] == [7, 7]
    assert await bank.balance(bank.east_dsn) == 100


async def test_a_step_whose_effect_failed_is_undone_even_if_the_failure_is_caught(bank: Bank, shop: Shop) -> None:
    """Nobody knows how far it came, so the transaction cannot commit."""
    charge = charging(bank, shop)
    shop.failures["do"] = 1
    with pytest.raises(TransactionRolledBack, match="step charge failed"):
        async with bank.coordinator.global_transaction("buy"):
            with pytest.raises(Planned):
                await charge()
    await over(bank)
    assert shop.order == ["do", "undo"]


async def test_undo_and_commit_are_repeated_until_they_succeed(bank: Bank, shop: Shop) -> None:
    """The attempts are counted, the key stays."""
    charge = charging(bank, shop)
    shop.failures = {"undo": 2, "commit": 1}
    with pytest.raises(Planned):
        async with bank.coordinator.global_transaction("buy"):
            await charge()
            raise Planned
    async with bank.coordinator.global_transaction("buy"):
        await charge()
    await over(bank)
    assert sorted(shop.order) == ["commit"] * 2 + ["do"] * 2 + ["undo"] * 3
    assert sorted(call.attempt for what, call in shop.heard if what == "undo") == [1, 2, 3]
    assert len(shop.keys) == 2


async def test_a_step_that_fails_too_often_is_given_up_until_a_person_retries_it(
    bank: Bank, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is kept with its error; other steps go on."""
    monkeypatch.setattr(steps_module, "STEP_TRIES_MAX", 2)
    mail = bank.coordinator.step("mail", bank.west, commit=shop.handler("mail"))
    shop.failures["mail"] = 2
    async with bank.coordinator.global_transaction("write"):
        await mail("first")

    async def given_up() -> bool:
        return [step.state for step in await left(bank.west_dsn)] == ["GIVEN_UP"]

    await until(given_up, "the step was not given up")
    step = (await left(bank.west_dsn))[0]
    assert step.error is not None
    assert step.error.startswith("Planned: mail")
    async with bank.coordinator.global_transaction("write"):
        await mail("second")
    await until(lambda: _said(shop, "second"), "the second message did not leave")
    connection = await asyncpg.connect(bank.west_dsn)
    assert await retry_steps(connection, [step.key]) == 1
    await connection.close()
    await over(bank)
    assert [call.arguments for _, call in shop.heard].count("first") == 3


async def _said(shop: Shop, arguments: object) -> bool:
    return arguments in [call.arguments for _, call in shop.heard]


async def test_a_message_within_a_branch_leaves_after_the_commit_and_only_then(bank: Bank, shop: Shop) -> None:
    """Recorded beside the change, through SQLAlchemy and asyncpg; of a transaction or branch that fails, never."""
    mail = bank.coordinator.step("mail", bank.east, commit=shop.handler("mail"))
    fax = bank.coordinator.step("fax", bank.west, commit=shop.handler("fax"))

    async def tell(session: AsyncSession, fail: bool = False) -> None:
        await add_east(-1)(session)
        await mail.within(session, "told")
        await mail.within(session, "told twice")
        if fail:
            raise Planned

    async with bank.coordinator.global_transaction("write"):
        await bank.coordinator.run_branch(bank.east, tell)
        await bank.coordinator.run_branch(bank.west, lambda connection: fax.within(connection, "faxed"))
        with pytest.raises(Planned):
            await bank.coordinator.run_branch(bank.east, lambda session: tell(session, fail=True))
        assert shop.order == []
    with pytest.raises(Planned):
        async with bank.coordinator.global_transaction("write"):
            await bank.coordinator.run_branch(bank.east, tell)
            raise Planned
    await over(bank)
    assert sorted(call.arguments for _, call in shop.heard) == ["faxed", "told", "told twice"]
    assert len(shop.keys) == 3


async def test_an_effect_is_cut_off_at_the_deadline_and_undone_after_it_is_over(bank: Bank, shop: Shop) -> None:
    """Undo never runs beside do: it waits for the word that it is over, also when the decision is long there."""
    order: list[str] = []

    async def do(call: StepCall) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.2)  # it is still busy when the deadline has passed
            order.append("over")

    async def undo(call: StepCall) -> None:
        order.append("undo")

    slow = bank.coordinator.step("slow", bank.west, do=do, undo=undo)
    with pytest.raises(TimeoutError):
        async with bank.coordinator.global_transaction("buy", timeout_s=0.3):
            await slow()
    # One that is left running by its block, and rolled back over its head.
    with pytest.raises(Planned):
        async with bank.coordinator.global_transaction("buy", timeout_s=0.6):
            task = asyncio.create_task(slow())
            await asyncio.sleep(0.2)
            raise Planned
    with pytest.raises(TimeoutError):
        await task
    await over(bank)
    assert order == ["over", "undo", "over", "undo"]


async def test_an_effect_is_not_begun_after_the_deadline(postgres: TestPostgres, tc: TcProcess, shop: Shop) -> None:
    """A process that slept between the record and the effect does nothing: undo may have been there already."""
    asleep_s = 0.0
    async with open_bank(postgres, tc, entered=False) as bank:
        bank.coordinator = Coordinator([tc.url], tc.tokens(), clock=lambda: time.time() + asleep_s)
        bank.west = bank.coordinator.resource(bank.west.name, bank.pool)
        charge = charging(bank, shop)
        original = bank.coordinator._runner.run_branch

        async def run_and_sleep(*arguments: Any) -> Any:
            nonlocal asleep_s
            recorded = await original(*arguments)
            asleep_s = 60.0
            return recorded

        bank.coordinator._runner.run_branch = run_and_sleep  # type: ignore[method-assign]
        async with bank.coordinator:
            with pytest.raises(DeadlinePassed, match="was not done"):
                async with bank.coordinator.global_transaction("buy", timeout_s=30):
                    await charge()
            asleep_s = 0.0
            await over(bank)
    assert shop.order == ["undo"]


async def test_a_repeated_call_of_a_participant_repeats_the_effect_with_the_same_key(bank: Bank, shop: Shop) -> None:
    """It is one step: one record, one undo."""
    charge = charging(bank, shop)
    with pytest.raises(Planned):
        async with bank.coordinator.global_transaction("buy") as tx:
            caller = required()
            with caller.calling() as call:
                for _ in range(2):
                    with bank.coordinator.participant(tx.xid, call, tx.deadline_ms) as participant:
                        await charge("once")
            assert len(participant.branches) == 1
            caller.absorb(format_branches(participant.branches))
            raise Planned
    await over(bank)
    assert shop.order == ["do", "do", "undo"]
    assert len(shop.keys) == 1


async def test_a_step_whose_name_nobody_knows_is_reported(
    bank: Bank, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is kept, and the log says its name, until a process registers it."""
    monkeypatch.setattr(steps_module, "UNSERVED_AGE_S", 0.0)
    async with bank.coordinator.global_transaction("write"):
        await bank.coordinator.run_branch(bank.west, lambda c: c.fetchval(add_step_sql("lost", "1", doing=False)))
    with structlog.testing.capture_logs() as logs:
        bank.coordinator.step("known", bank.west, commit=shop.handler("known"))

        async def reported() -> bool:
            return ("step.unserved", "lost") in [(line["event"], line.get("step")) for line in logs]

        await until(reported, "nothing was said about the step")
    bank.coordinator.step("lost", bank.west, commit=shop.handler("lost"))
    await over(bank)
    assert shop.order == ["lost"]


async def test_a_step_that_makes_no_sense_is_refused(bank: Bank, shop: Shop) -> None:
    """When it is registered, or when it is used in the wrong place."""
    handle = shop.handler("x")
    for arguments, reason in (
        ({}, "no handler"),
        ({"do": handle}, "needs undo"),
        ({"name": "", "commit": handle}, "printable"),
    ):
        with pytest.raises(ValueError, match=reason):
            bank.coordinator.step(**{"name": "odd", "resource": bank.west, **arguments})  # type: ignore[arg-type]
    charge = charging(bank, shop)
    with pytest.raises(ValueError, match="named already"):
        charging(bank, shop)
    async with bank.coordinator.global_transaction("buy"):
        with pytest.raises(TypeError, match="branch of its own"):
            await bank.coordinator.run_branch(bank.west, charge.within)
        mail = bank.coordinator.step("mail", bank.west, commit=handle)
        with pytest.raises(ValueError, match="another database"):
            await bank.coordinator.run_branch(bank.east, mail.within)
        with pytest.raises(TypeError):
            await charge(object())
    assert shop.order == []
    with bound(None), pytest.raises(Exception, match="no global transaction"):
        await charge()


CRASHING = """
import asyncio, os, sys
import asyncpg
from coordinator.client import BranchConnection, Coordinator, SigningKey, TokenMaker

async def main(url, key, dsn, resource, where):
    coordinator = Coordinator([url], TokenMaker("bank", SigningKey.from_jwk(key)))
    pool = await asyncpg.create_pool(dsn, connection_class=BranchConnection)
    west = coordinator.resource(resource, pool)
    async def do(call):
        await pool.execute("INSERT INTO secret VALUES (1)")
        if where == "in do":
            os._exit(9)
    async def never(call):
        pass
    async def dies(call):
        os._exit(9)
    charge = coordinator.step("charge", west, do=do, undo=never, commit=dies if where == "in commit" else never)
    if where == "before do":
        coordinator._steps._do = dies_before
    async with coordinator:
        async with coordinator.global_transaction("buy", timeout_s=1.0 if where != "in commit" else 30.0):
            await charge("crash")
            await coordinator.run_branch(west, lambda c: c.execute("UPDATE account SET balance = 99 WHERE id = 1"))
            if where == "before the decision":
                os._exit(9)
        await asyncio.sleep(60)

async def dies_before(do, call):
    os._exit(9)

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.parametrize("where", ["before do", "in do", "before the decision", "in commit"])
async def test_a_step_outlives_the_process_that_made_it(
    bank: Bank, shop: Shop, tc: TcProcess, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at each point, somebody else carries out what is due: undo, or commit where that was decided."""
    monkeypatch.setattr(steps_module, "UNDO_GRACE_S", 0.5)
    arguments = [tc.url, tc.keys["bank"].private_jwk(), bank.west_dsn, bank.west.name, where]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CRASHING, *arguments, env=environment, cwd=Path(ROOT)
    )
    assert await process.wait() == 9
    if where == "in commit":
        # The dead process holds the step until its lease ends.
        connection = await asyncpg.connect(bank.west_dsn)
        assert await retry_steps(connection, [(await left(bank.west_dsn))[0].key]) == 1
        await connection.close()
    charging(bank, shop)
    await over(bank)
    assert shop.order == ["commit" if where == "in commit" else "undo"]
    assert shop.heard[0][1].arguments == "crash"
    assert await bank.balance(bank.west_dsn) == (99 if where == "in commit" else 100)
