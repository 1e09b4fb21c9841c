"""Money under orders: the payment service over HTTP, with a real coordinator and a real PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
import pytest_asyncio
from sqlalchemy.ext.asyncio import AsyncSession

from services.kit.auth import AccountStatus, Role
from services.kit.problems import Problem
from services.payment import repository
from tests.integration.services.capacity.callers import Caller, Undone, apart, caller_of
from tests.support.servers import TestPostgres
from tests.support.system import Answer, System, running_system

pytestmark = pytest.mark.asyncio(loop_scope="module")

RACERS = 30


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def system(
    postgres: TestPostgres, valkey: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[System]:
    """A coordinator and the payment service."""
    folder = tmp_path_factory.mktemp("payment")
    async with running_system(postgres, valkey, folder, services=["payment"]) as system:
        yield system


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def order(system: System) -> AsyncIterator[Caller]:
    """Whoever books."""
    async with caller_of(system, "payment") as caller:
        yield caller


async def top_up(system: System, person: UUID, amount_cents: int, key: str | None = None) -> Answer:
    """A person fills their wallet."""
    api = system.as_person("payment", person)
    return await api.post("/api/payments/wallet/top-ups", {"amount_cents": amount_cents}, key=key or str(uuid4()))


async def rich(system: System, amount_cents: int = 10_000) -> UUID:
    """A new person with money."""
    person = uuid4()
    answer = await top_up(system, person, amount_cents)
    assert answer.status == 201, answer.body
    return person


async def balance(system: System, person: UUID) -> int:
    """What a person's wallet holds."""
    answer = await system.as_person("payment", person).get("/api/payments/wallet")
    assert (answer.status, answer.body["currency"]) == (200, "CNY")
    return int(answer.body["balance_cents"])


def charge(owner: UUID, amount_cents: int = 1_000, order_id: UUID | None = None) -> dict[str, Any]:
    """The body of a charge for a new order."""
    return {"order_id": str(order_id or uuid4()), "owner_id": str(owner), "amount_cents": amount_cents}


async def audit(system: System) -> dict[str, int]:
    """The service's own audit, which must be clean."""
    answer = await system.as_service("payment", "admin").get("/internal/consistency")
    assert answer.status == 200, answer.body
    body = dict(answer.body)
    assert (body["ledger_sum_cents"], body["wallets_wrong"], body["escrows_wrong"]) == (0, 0, 0)
    return body


async def test_a_top_up_is_in_the_wallet_and_in_the_ledger(system: System) -> None:
    """The answer, the wallet and the ledger agree."""
    person = uuid4()
    answer = await top_up(system, person, 2_500)
    assert (answer.status, answer.body["balance_cents"], answer.body["amount_cents"]) == (201, 2_500, 2_500)
    assert await balance(system, person) == 2_500
    entries = (await system.as_person("payment", person).get("/api/payments/ledger")).body["items"]
    assert [(entry["kind"], entry["amount_cents"]) for entry in entries] == [("top_up", 2_500)]


async def test_the_same_top_up_sent_many_times_at_once_fills_the_wallet_once(system: System) -> None:
    """One key is one effect: the others get the kept answer, or hear that it is running."""
    person, key = uuid4(), str(uuid4())
    answers = await asyncio.gather(*(top_up(system, person, 700, key) for _ in range(8)))
    assert {answer.status for answer in answers} <= {201, 409}
    again = await top_up(system, person, 700, key)
    assert (again.status, again.headers["idempotency-replayed"]) == (201, "true")
    assert again.body == next(answer.body for answer in answers if answer.status == 201)
    assert await balance(system, person) == 700


async def test_a_key_belongs_to_one_request(system: System) -> None:
    """Another amount under the same key is refused, and so is a top-up without a key."""
    person, key = uuid4(), str(uuid4())
    await top_up(system, person, 700, key)
    answer = await top_up(system, person, 800, key)
    assert (answer.status, answer.body["code"]) == (422, "idempotency-conflict")
    answer = await system.as_person("payment", person).post("/api/payments/wallet/top-ups", {"amount_cents": 1})
    assert (answer.status, answer.body["code"]) == (400, "idempotency-key-missing")
    assert await balance(system, person) == 700


async def test_money_goes_from_wallet_to_escrow_to_provider_less_the_commission(system: System, order: Caller) -> None:
    """Of 1,005 cents the provider gets 905 and we get 100; the escrow is empty afterwards."""
    owner, provider = await rich(system), uuid4()
    body = charge(owner, 1_005)
    before = await audit(system)
    assert await order.once("/internal/charges", body) == {"charged_cents": 1_005}
    assert await balance(system, owner) == 8_995
    assert (await audit(system))["escrow_cents"] == before["escrow_cents"] + 1_005
    settle = {"order_id": body["order_id"], "provider_id": str(provider), "amount_cents": 1_005}
    answer = await order.once("/internal/settlements", settle)
    assert answer == {"provider_cents": 905, "commission_cents": 100}
    assert await balance(system, provider) == 905
    after = await audit(system)
    assert after["escrow_cents"] == before["escrow_cents"]
    assert after["commission_cents"] == before["commission_cents"] + 100


async def test_a_refund_by_policy_divides_the_escrow(system: System, order: Caller) -> None:
    """The owner gets what the policy gives, the provider the rest."""
    owner, provider = await rich(system), uuid4()
    body = charge(owner)
    await order.once("/internal/charges", body)
    refund = {**charge(owner, 600, UUID(body["order_id"])), "provider_id": str(provider), "provider_cents": 400}
    assert await order.once("/internal/refunds", refund) == {"refunded_cents": 600, "provider_cents": 400}
    assert (await balance(system, owner), await balance(system, provider)) == (9_600, 400)
    await audit(system)


async def test_each_transfer_of_an_order_is_made_once(system: System, order: Caller) -> None:
    """The same charge, refund and settlement again change nothing; a different one of that kind is refused."""
    owner, provider = await rich(system), uuid4()
    body = charge(owner)
    order_id = UUID(body["order_id"])
    refund = charge(owner, 300, order_id)
    settle = {"order_id": str(order_id), "provider_id": str(provider), "amount_cents": 700}
    for path, request in (
        ("/internal/charges", body),
        ("/internal/refunds", refund),
        ("/internal/settlements", settle),
    ):
        first = await order.once(path, request)
        assert await order.once(path, request) == first
        with pytest.raises(Problem) as refused:
            await order.once(path, {**request, "amount_cents": 10})
        assert (refused.value.status, refused.value.code.split("-")[1]) == (409, "exists")
    assert (await balance(system, owner), await balance(system, provider)) == (9_300, 630)
    await audit(system)


async def test_nobody_gets_more_out_of_an_escrow_than_was_paid_in(system: System, order: Caller) -> None:
    """Refund and settlement together never exceed the charge; an order that was never paid has nothing."""
    owner, provider = await rich(system), uuid4()
    body = charge(owner, 1_000)
    order_id = UUID(body["order_id"])
    await order.once("/internal/charges", body)
    for path, request in (
        ("/internal/refunds", charge(owner, 1_001, order_id)),
        (
            "/internal/refunds",
            {**charge(owner, 600, order_id), "provider_id": str(provider), "provider_cents": 401},
        ),
        ("/internal/settlements", {"order_id": str(order_id), "provider_id": str(provider), "amount_cents": 1_001}),
        ("/internal/refunds", charge(owner, 1)),
    ):
        with pytest.raises(Problem) as refused:
            await order.once(path, request)
        assert (refused.value.status, refused.value.code) == (409, "exceeds-escrow")
    await order.once("/internal/refunds", charge(owner, 400, order_id))
    settle = {"order_id": str(order_id), "provider_id": str(provider), "amount_cents": 601}
    with pytest.raises(Problem) as refused:
        await order.once("/internal/settlements", settle)
    assert refused.value.extra["escrow_cents"] == 600
    await audit(system)


async def test_refunding_nothing_is_done_already(system: System, order: Caller) -> None:
    """An unpaid order that is cancelled moves no money, whoever asks how often."""
    request = charge(uuid4(), 0)
    for _ in range(2):
        assert await order.once("/internal/refunds", request) == {"refunded_cents": 0, "provider_cents": 0}
    await audit(system)


async def test_only_the_one_who_paid_is_refunded(system: System, order: Caller) -> None:
    """A refund to somebody else finds no payment."""
    body = charge(await rich(system))
    await order.once("/internal/charges", body)
    with pytest.raises(Problem) as refused:
        await order.once("/internal/refunds", {**body, "owner_id": str(uuid4())})
    assert refused.value.status == 404


async def test_money_for_a_provider_needs_one(order: Caller) -> None:
    """provider_cents without provider_id is a 422, before anything moves."""
    with pytest.raises(Problem) as refused:
        await order.once("/internal/refunds", {**charge(uuid4(), 0), "provider_cents": 5})
    assert (refused.value.status, refused.value.code) == (422, "provider-missing")


async def test_too_little_money_says_how_much_is_missing(system: System, order: Caller) -> None:
    """The problem names what is there and what is missing, and nothing is taken."""
    owner = await rich(system, 900)
    with pytest.raises(Problem) as refused:
        await order.once("/internal/charges", charge(owner))
    assert (refused.value.status, refused.value.code) == (409, "insufficient-funds")
    assert (refused.value.extra["balance_cents"], refused.value.extra["missing_cents"]) == (900, 100)
    assert await balance(system, owner) == 900
    with pytest.raises(Problem) as refused:
        await order.once("/internal/charges", charge(uuid4()))
    assert refused.value.extra["balance_cents"] == 0


async def test_a_transaction_that_is_rolled_back_moved_nothing(system: System, order: Caller) -> None:
    """Wallet, escrow and ledger are as before, append-only or not."""
    owner = await rich(system)
    body = charge(owner)
    before = await audit(system)
    async with order.undone():
        await order.call("/internal/charges", body)
        assert await balance(system, owner) == 9_000
    assert await balance(system, owner) == 10_000
    assert await audit(system) == before
    assert not await system.fetch("payment", "SELECT FROM escrows WHERE order_id = $1", UUID(body["order_id"]))


async def test_who_meets_an_undecided_wallet_waits_for_its_money(system: System, order: Caller) -> None:
    """Insufficient funds are only said once they are decided: a charge that fails gives the money to the next."""
    owner = await rich(system, 1_000)
    async with order.undone():
        await order.call("/internal/charges", charge(owner))
        second = apart(order.once("/internal/charges", charge(owner)))
        await order.somebody_waits()
    assert await second == {"charged_cents": 1_000}
    assert await balance(system, owner) == 0


async def test_a_charge_is_made_when_the_one_before_it_is_undone_under_its_eyes(
    system: System, order: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A payment that is tried again sees the escrow of its first try, and then none: it is paid, not refused."""
    met, gone, take = asyncio.Event(), asyncio.Event(), repository.take_escrow

    async def take_late(session: AsyncSession, order_id: UUID) -> Any:
        met.set()
        await gone.wait()
        return await take(session, order_id)

    monkeypatch.setattr(repository, "take_escrow", take_late)
    owner = await rich(system)
    body = charge(owner)
    async with order.undone():
        await order.call("/internal/charges", body)
        again = apart(order.once("/internal/charges", body))
        await met.wait()
    await system.quiet()
    gone.set()
    assert await again == {"charged_cents": 1_000}
    assert await balance(system, owner) == 9_000


async def test_racing_charges_never_overdraw_and_the_ledger_is_zero_at_every_instant(
    system: System, order: Caller
) -> None:
    """Money for seven of thirty: exactly seven are paid, and every committed read on the way adds up."""
    owner = await rich(system, 7_500)
    ended = asyncio.Event()

    async def watch() -> int:
        reads = 0
        while not ended.is_set():
            await audit(system)
            assert await balance(system, owner) >= 0
            reads += 1
        return reads

    async def pay(number: int) -> str:
        async with order.coordinator.global_transaction("pay", timeout_s=30.0):
            await order.call("/internal/charges", charge(owner))
            if number % 6 == 0:
                raise Undone
        return "paid"

    watching = asyncio.create_task(watch())
    results = await asyncio.gather(*(order.until_answered(partial(pay, number)) for number in range(RACERS)))
    ended.set()
    assert await watching > 0
    assert results.count("paid") == 7, results
    assert set(results) <= {"paid", "undone", "insufficient-funds"}
    assert await balance(system, owner) == 500


async def test_two_who_settle_the_same_order_at_once_pay_it_once(system: System, order: Caller) -> None:
    """A refund and a settlement of everything cannot both happen."""
    owner, provider = await rich(system), uuid4()
    body = charge(owner)
    await order.once("/internal/charges", body)
    settle = {"order_id": body["order_id"], "provider_id": str(provider), "amount_cents": 1_000}

    async def move(path: str, request: dict[str, Any]) -> str:
        await order.once(path, request)
        return "moved"

    done = await asyncio.gather(
        order.until_answered(partial(move, "/internal/refunds", body)),
        order.until_answered(partial(move, "/internal/settlements", settle)),
    )
    assert sorted(done) == ["exceeds-escrow", "moved"]
    assert await balance(system, owner) + await balance(system, provider) in (10_000, 9_900)
    await audit(system)


async def test_the_ledger_cannot_be_changed_or_unbalanced(system: System, order: Caller) -> None:
    """The database refuses changed, removed and one-sided entries, whoever writes them."""
    person = await rich(system)
    for sql in (
        "UPDATE ledger_entries SET amount_cents = 1 WHERE account_id = $1",
        "DELETE FROM ledger_entries WHERE account_id = $1",
    ):
        with pytest.raises(asyncpg.RestrictViolationError):
            await order.plain(sql, person)
    one_sided = "INSERT INTO ledger_entries VALUES (gen_random_uuid(), 1, 'top_up', NULL, 'wallet', $1, 5)"
    with pytest.raises(asyncpg.CheckViolationError, match="add up to zero"):
        await order.plain(one_sided, person)
    with pytest.raises(asyncpg.CheckViolationError, match="wallets_never_negative"):
        await order.plain("UPDATE wallets SET balance_cents = -1 WHERE user_id = $1", person)


async def test_the_audit_finds_a_planted_fault(system: System, order: Caller) -> None:
    """A wallet that is filled behind the ledger's back is counted until it is put right."""
    person = await rich(system)
    change = "UPDATE wallets SET balance_cents = balance_cents + $1 WHERE user_id = $2"
    await order.plain(change, 1, person)
    found = (await system.as_service("payment", "admin").get("/internal/consistency")).body
    assert found["wallets_wrong"] == 1
    await order.plain(change, -1, person)
    await audit(system)


async def test_the_ledger_comes_in_pages_newest_first_and_only_ones_own(system: System) -> None:
    """Every line comes exactly once over all pages; a forged cursor is refused."""
    person = await rich(system, 1)
    await rich(system, 999)
    for amount in (2, 3, 4, 5):
        await top_up(system, person, amount)
    api = system.as_person("payment", person)
    seen: list[int] = []
    cursor: dict[str, str] = {}
    while True:
        page = (await api.get("/api/payments/ledger", limit="2", **cursor)).body
        seen += [entry["amount_cents"] for entry in page["items"]]
        if page["next_cursor"] is None:
            break
        cursor = {"cursor": page["next_cursor"]}
    assert seen == [5, 4, 3, 2, 1]
    assert (await api.get("/api/payments/ledger", cursor="AAAA")).body["code"] == "bad-cursor"


async def test_guards(system: System) -> None:
    """Who is not logged in, not approved, or not the named service is refused."""
    path, body = "/api/payments/wallet/top-ups", {"amount_cents": 1}
    pending = system.access_token(uuid4(), Role.OWNER, AccountStatus.PENDING)
    assert (await system.client("payment").get("/api/payments/wallet")).status == 401
    assert (await system.client("payment", pending).get("/api/payments/wallet")).status == 200
    assert (await system.client("payment", pending).post(path, body, key="k")).body["code"] == "not-approved"
    assert (await system.as_person("payment", uuid4()).post("/internal/charges", charge(uuid4()))).status == 401
    assert (await system.as_service("payment", "boarding").post("/internal/charges", charge(uuid4()))).status == 403
    answer = await system.as_service("payment", "order").post("/internal/charges", charge(uuid4()))
    assert (answer.status, answer.body["code"]) == (400, "transaction-missing")


@pytest.mark.parametrize("amount", [0, -5, 10_000_001, 1.5, "much"])
async def test_a_bad_amount_is_refused(system: System, amount: Any) -> None:
    """Whole cents above zero, up to the limit, and nothing else."""
    api = system.as_person("payment", uuid4())
    answer = await api.post("/api/payments/wallet/top-ups", {"amount_cents": amount}, key=str(uuid4()))
    assert (answer.status, answer.body["code"]) == (400, "invalid-request")
    assert answer.body["errors"][0]["pointer"] == "/amount_cents"
