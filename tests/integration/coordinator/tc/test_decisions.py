"""What is decided, and that it stays so."""

from __future__ import annotations

import asyncio
import random
from uuid import UUID

import asyncpg
import pytest

from coordinator.protocol.messages import Ask, Begin, BranchRef, Confirm, Decide, Noted, Outcome, Register, Request
from coordinator.protocol.statuses import BranchState, Decision
from tests.integration.coordinator.tc.harness import (
    NOTED,
    Caller,
    begin,
    branch_of,
    commit,
    new_xid,
    now_ms,
    refused,
    register,
    rollback,
    running,
    settings_for,
)

COMMITTED = (Decision.COMMITTED, "asked")
ROLLED_BACK = (Decision.ROLLED_BACK, "asked")
TIMED_OUT = (Decision.ROLLED_BACK, "timed_out")
UNDECIDED = (Decision.UNDECIDED, None)


async def test_a_transaction_is_begun_registered_committed_and_confirmed(tc: Caller) -> None:
    """The whole life of a transaction can be said and is shown."""
    xid, branch = new_xid(), branch_of("order@shard-0")
    assert await tc.say(begin(xid), register(xid, branch)) == [NOTED, NOTED]
    assert await tc.decide(commit(xid, branch)) == COMMITTED
    assert await tc.settlement(xid) == "SETTLING"
    assert await tc.say(Confirm(xid, branch.resource, [(branch.branch, BranchState.FORGOTTEN)])) == [NOTED]
    assert await tc.settlement(xid) == "SETTLED"
    assert await tc.states(xid) == {branch.branch: "FORGOTTEN"}


async def test_every_message_may_come_twice_and_in_one_list(tc: Caller) -> None:
    """A repeated message gets the first answer and changes nothing."""
    xid, branch = new_xid(), branch_of("capacity")
    confirm = Confirm(xid, branch.resource, [(branch.branch, BranchState.FORGOTTEN)])
    said: list[Request] = [
        begin(xid),
        register(xid, branch),
        commit(xid, branch),
        Ask(xid, now_ms(30), "capacity"),
        confirm,
    ]
    twice = [message for message in said for _ in range(2)]
    committed = Outcome(xid, Decision.COMMITTED, "asked")
    asked = Outcome(xid, Decision.COMMITTED, "asked", [branch.branch])
    for _ in range(2):
        assert await tc.say(*twice) == [NOTED] * 4 + [committed] * 2 + [asked] * 2 + [NOTED] * 2
    assert await tc.settlement(xid) == "SETTLED"


async def test_the_first_decision_in_a_list_wins(tc: Caller) -> None:
    """Two opposite decisions that travel together are one decision, in the order of the list."""
    first, second = new_xid(), new_xid()
    answers = await tc.say(commit(first), rollback(first), rollback(second), commit(second))
    assert [answer.decision for answer in answers if isinstance(answer, Outcome)] == [1, 1, 2, 2]


async def test_a_commit_needs_no_begin_and_no_register(tc: Caller) -> None:
    """Hints may be lost: the commit alone carries all that the decision needs."""
    xid, branch = new_xid(), branch_of("capacity")
    assert await tc.decide(commit(xid, branch)) == COMMITTED
    (answer,) = await tc.say(Ask(xid, now_ms(30), "capacity"))
    assert answer == Outcome(xid, Decision.COMMITTED, "asked", [branch.branch])


async def test_hints_that_come_after_the_decision_change_nothing(tc: Caller) -> None:
    """A Begin or Register that was overtaken names the transaction and never reopens it."""
    xid, branch, orphan = new_xid(), branch_of("capacity"), branch_of("capacity")
    await tc.say(commit(xid, branch, name=""))
    await tc.say(Confirm(xid, "capacity", [(branch.branch, BranchState.FORGOTTEN)]))
    await tc.say(begin(xid, name="book late"), register(xid, branch), register(xid, orphan))
    _, body = await tc.get(f"/v1/transactions/{xid}")
    assert (body["name"], body["decision"], body["settlement"]) == ("book late", "COMMITTED", "SETTLED")
    (answer,) = await tc.say(Ask(xid, now_ms(30), "capacity"))
    assert isinstance(answer, Outcome)
    assert answer.branches == [branch.branch]


async def test_a_commit_past_its_deadline_is_a_rollback(tc: Caller) -> None:
    """Who is late does not commit, whatever the store knew of the transaction before."""
    unknown, known = new_xid(), new_xid()
    assert await tc.decide(commit(unknown, branch_of("capacity"), deadline_ms=now_ms(-1))) == TIMED_OUT
    await tc.say(Begin(known, "book", now_ms(-1)))
    assert await tc.decide(commit(known, deadline_ms=now_ms(30))) == TIMED_OUT


async def test_to_ask_past_the_deadline_decides_and_a_late_commit_is_refused(tc: Caller) -> None:
    """Presumed abort: the question about an unknown transaction is its rollback, for ever."""
    xid = new_xid()
    assert await tc.decide(Ask(xid, now_ms(-1), "capacity")) == TIMED_OUT
    assert await tc.decide(commit(xid, deadline_ms=now_ms(30))) == TIMED_OUT


async def test_to_ask_before_the_deadline_decides_nothing_and_leaves_no_trace(tc: Caller) -> None:
    """An unknown transaction may still commit until its deadline."""
    xid = new_xid()
    assert await tc.decide(Ask(xid, now_ms(30), "capacity")) == UNDECIDED
    assert (await tc.get(f"/v1/transactions/{xid}"))[0] == 404
    assert await tc.decide(commit(xid)) == COMMITTED


async def test_only_the_branches_of_the_call_that_committed_are_committed(tc: Caller) -> None:
    """A branch named by a repeat, by a refused rollback or by a hint alone is an orphan."""
    xid, named, other, hinted = new_xid(), branch_of("capacity"), branch_of("capacity"), branch_of("capacity")
    await tc.say(register(xid, hinted), commit(xid, named))
    await tc.say(commit(xid, other), rollback(xid, other))
    (answer,) = await tc.say(Ask(xid, now_ms(30), "capacity"))
    assert isinstance(answer, Outcome)
    assert answer.branches == [named.branch]


async def test_a_hundred_racing_deciders_hear_one_answer(tcs: tuple[Caller, Caller]) -> None:
    """First decision wins over two replicas: all commits and rollbacks of a race are answered alike."""
    for round_number in range(3):
        xid = new_xid()
        wishes = [commit(xid) if place % 2 else rollback(xid) for place in range(100)]
        random.Random(round_number).shuffle(wishes)
        heard = await asyncio.gather(*(tcs[place % 2].decide(wish) for place, wish in enumerate(wishes)))
        assert len(set(heard)) == 1


async def test_replicas_that_decide_many_transactions_in_opposite_order_never_get_stuck(
    tcs: tuple[Caller, Caller],
) -> None:
    """Batches of two replicas over the same transactions, in any order, all end and agree."""
    xids = [new_xid() for _ in range(200)]
    branches = {xid: branch_of("capacity") for xid in xids}

    async def decide(caller: Caller, order: list[UUID], committing: bool) -> dict[UUID, Decision]:
        heard: dict[UUID, Decision] = {}
        for start in range(0, len(order), 20):
            part = order[start : start + 20]
            wishes = [commit(x, branches[x]) if committing else rollback(x, branches[x]) for x in part]
            said = await caller.say(*(register(x, branches[x]) for x in part), *wishes)
            heard |= {answer.xid: Decision(answer.decision) for answer in said if isinstance(answer, Outcome)}
        return heard

    one, two = await asyncio.gather(decide(tcs[0], xids, True), decide(tcs[1], xids[::-1], False))
    assert one == two


@pytest.mark.parametrize("told", ["off", "local"])
async def test_a_store_that_was_told_not_to_flush_flushes_decisions_all_the_same(
    tc: Caller, database: str, told: str
) -> None:
    """A decision waits for the disk, and for a standby where there is one; a hint does not."""
    connection = await asyncpg.connect(database)
    try:
        await connection.execute(f"SET synchronous_commit = {told}")
        async with connection.transaction():
            await connection.fetchval(
                "SELECT tc.commit_unheard(gen_random_uuid(), '2 s', $1, '{a}', '{a}', $2, $1, '{r}', $3)",
                [new_xid()],
                [now_ms(30)],
                [branch_of("r").branch],
            )
            assert await connection.fetchval("SHOW synchronous_commit") == "on"
        states = []
        for wish in (0, 1):
            async with connection.transaction():
                await connection.fetch(
                    "SELECT * FROM tc.apply(gen_random_uuid(), '2 s', p_wish_xid => $1, p_wish => ARRAY[$2::smallint],"
                    " p_wish_name => '{a}', p_wish_caller => '{a}', p_wish_deadline_ms => $3,"
                    " p_wish_reason => '{asked}')",
                    [new_xid()],
                    wish,
                    [now_ms(30)],
                )
                states.append(await connection.fetchval("SHOW synchronous_commit"))
        assert states == ["off", "on"]
    finally:
        await connection.close()


async def test_confirmations_move_a_branch_forward_only(tc: Caller) -> None:
    """What was forgotten stays so; a quarantined branch may still be resolved by a person."""
    xid, first, second = new_xid(), branch_of("capacity"), branch_of("capacity")
    await tc.say(rollback(xid, first, second))
    quarantined: list[tuple[UUID, int]] = [(first.branch, BranchState.UNDONE), (second.branch, BranchState.QUARANTINED)]
    await tc.say(Confirm(xid, "capacity", quarantined))
    assert await tc.settlement(xid) == "QUARANTINED"
    await tc.say(Confirm(xid, "capacity", [(first.branch, BranchState.QUARANTINED), (second.branch, BranchState.OPEN)]))
    assert await tc.states(xid) == {first.branch: "UNDONE", second.branch: "QUARANTINED"}
    await tc.say(Confirm(xid, "capacity", [(second.branch, BranchState.UNDONE)]))
    assert await tc.settlement(xid) == "SETTLED"


async def test_a_rolled_back_branch_that_never_came_is_settled_by_its_resource(tc: Caller) -> None:
    """An undo speaks for its whole resource: registered branches that it does not list are tombstones."""
    xid, came, never = new_xid(), branch_of("capacity"), branch_of("capacity")
    elsewhere = branch_of("order")
    await tc.say(register(xid, came), register(xid, never), register(xid, elsewhere), rollback(xid))
    await tc.say(Confirm(xid, "capacity", [(came.branch, BranchState.UNDONE), (UUID(int=0), BranchState.TOMBSTONE)]))
    assert await tc.states(xid) == {came.branch: "UNDONE", never.branch: "TOMBSTONE", elsewhere.branch: "OPEN"}
    assert await tc.settlement(xid) == "SETTLING"
    await tc.say(Confirm(xid, "order", []))
    assert await tc.settlement(xid) == "SETTLED"


async def test_an_orphan_of_a_committed_transaction_holds_nothing_up(tc: Caller) -> None:
    """Only what the commit named has to be confirmed; an orphan that is reported undone is shown as such."""
    xid, named, orphan = new_xid(), branch_of("capacity"), branch_of("capacity")
    await tc.say(register(xid, orphan), commit(xid, named))
    await tc.say(Confirm(xid, "capacity", [(named.branch, BranchState.FORGOTTEN)]))
    assert await tc.settlement(xid) == "SETTLED"
    await tc.say(Confirm(xid, "capacity", [(orphan.branch, BranchState.UNDONE)]))
    assert await tc.states(xid) == {named.branch: "FORGOTTEN", orphan.branch: "UNDONE"}


async def test_a_confirmation_before_the_decision_is_not_believed(tc: Caller) -> None:
    """Nobody can have followed a decision that was not made."""
    xid, branch = new_xid(), branch_of("capacity")
    await tc.say(begin(xid), register(xid, branch))
    await tc.say(Confirm(xid, "capacity", [(branch.branch, BranchState.FORGOTTEN)]))
    assert await tc.states(xid) == {branch.branch: "OPEN"}


XID, BRANCH = UUID(int=7), UUID(int=8)
WRONG: list[tuple[Request, str]] = [
    (Begin(UUID(int=0), "book", 1), "all zeros"),
    (Begin(XID, "nul\x00", now_ms(9)), "printable"),
    (Begin(XID, "n" * 201, now_ms(9)), "at most 200"),
    (Begin(XID, "book", 2**62), "no instant"),
    (Ask(XID, -1, "capacity"), "no instant"),
    (Register(XID, now_ms(9), BranchRef("", BRANCH)), "no name"),
    (Decide(XID, "book", now_ms(9), True, [BranchRef("capacity", UUID(int=0))]), "tombstones"),
    (Decide(XID, "book", now_ms(9), True, [BranchRef("capacity", BRANCH)] * 1001), "1001 branches"),
    (Confirm(XID, "capacity", [(BRANCH, 99)]), "99 is no branch state"),
]


async def test_a_message_that_cannot_be_taken_is_refused_alone(tc: Caller) -> None:
    """What is wrong with one message is said for that message, and its companions are answered as ever."""
    for wrong, says in WRONG:
        xid = new_xid()
        noted, refusal, outcome = await tc.say(begin(xid), wrong, commit(xid))
        assert isinstance(noted, Noted)
        assert says in refused(refusal)
        assert isinstance(outcome, Outcome)
        assert outcome.decision == Decision.COMMITTED


async def test_an_operators_rollback_is_recorded_as_a_persons(tc: Caller) -> None:
    """The reason tells a person's decision from the application's."""
    assert await tc.named("operator").decide(rollback(new_xid())) == (Decision.ROLLED_BACK, "operator")


async def test_what_a_replica_decided_another_answers_and_so_does_the_next_life(database: str) -> None:
    """No replica keeps anything to itself."""
    xid, branch = new_xid(), branch_of("capacity")
    async with running(settings_for(database)) as one, running(settings_for(database)) as two:
        assert await one.decide(commit(xid, branch)) == COMMITTED
        assert await two.decide(rollback(xid, branch)) == COMMITTED
    async with running(settings_for(database)) as again:
        (answer,) = await again.say(Ask(xid, now_ms(30), "capacity"))
        assert answer == Outcome(xid, Decision.COMMITTED, "asked", [branch.branch])
