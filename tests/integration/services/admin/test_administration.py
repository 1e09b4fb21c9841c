"""Decisions of administrators: the effect in another service and the audit entry here, or neither."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from services.admin.clients import Others
from services.admin.config import SPEC
from services.admin.use_cases import Administration
from services.kit.auth import AccountStatus, Role
from services.kit.problems import Problem
from tests.support.services import eventually, queued, replica
from tests.support.system import Answer, Api, System

pytestmark = pytest.mark.asyncio(loop_scope="module")

PASSWORD = "a-long-password"
numbers = count(1)


def administrator(system: System) -> Api:
    return system.as_person("admin", UUID(int=7), Role.ADMIN)


async def registered(system: System) -> UUID:
    body = {"username": f"waiting{next(numbers)}", "password": PASSWORD}
    answer = await system.client("user").post("/api/users", body)
    assert answer.status == 201, answer
    return UUID(answer.body["user_id"])


async def applied(system: System) -> UUID:
    user_id = await registered(system)
    person = system.client("user", system.access_token(user_id, status=AccountStatus.PENDING))
    answer = await person.post("/api/users/me/provider-application", {"text": "我家有院子。"})
    assert answer.status == 202, answer
    return user_id


async def account(system: System, user_id: UUID) -> dict[str, Any]:
    answer = await system.as_service("user", "admin").get(f"/internal/users/{user_id}")
    assert answer.status == 200
    return dict(answer.body)


async def entries_about(system: System, subject: UUID) -> list[Any]:
    await system.quiet()
    return await system.fetch("admin", "SELECT * FROM audit_log WHERE subject = $1 ORDER BY number", str(subject))


@asynccontextmanager
async def database(system: System, *, bypassing: bool = False) -> AsyncIterator[asyncpg.Connection]:
    """The audit database as the superuser sees it; `bypassing` its triggers."""
    await system.quiet()
    connection = await asyncpg.connect(system.dsns["admin"])
    try:
        if bypassing:
            await connection.execute("SET session_replication_role = replica")
        yield connection
    finally:
        await connection.close()


async def check(system: System) -> Answer:
    return await administrator(system).get("/api/admin/audit-log/check")


async def test_an_approval_makes_the_account_active_and_leaves_an_entry_with_its_xid(system: System) -> None:
    """One global transaction: status, audit entry and the message to the person."""
    user_id = await registered(system)
    path = f"/api/admin/approvals/user/{user_id}/approve"
    answer = await administrator(system).post(path, {"reason": "身份已核实"})
    assert answer.status == 200, answer
    assert answer.body["subject"]["status"] == AccountStatus.ACTIVE
    assert (await account(system, user_id))["status"] == AccountStatus.ACTIVE
    [entry] = await entries_about(system, user_id)
    assert (entry["action"], entry["actor"], entry["reason"]) == ("user.approve", UUID(int=7), "身份已核实")
    assert str(entry["xid"]) == answer.body["xid"]
    assert entry["number"] == answer.body["audit_number"]

    async def told() -> bool:
        messages = await queued(system.redis_url, "notification")
        return any(m["kwargs"]["recipient"] == str(user_id) for m in messages)

    await eventually(told)


async def test_an_approved_application_makes_a_provider(system: System) -> None:
    """The role comes from the administrator's decision and shows at the next login."""
    user_id = await applied(system)
    answer = await administrator(system).post(f"/api/admin/approvals/provider/{user_id}/approve", {})
    assert answer.status == 200, answer
    changed = await account(system, user_id)
    assert (changed["role"], changed["applied_at"]) == (Role.PROVIDER, None)
    [entry] = await entries_about(system, user_id)
    assert entry["action"] == "user.approve-provider"


async def test_who_is_rejected_waits_no_longer_and_may_do_nothing(system: System) -> None:
    """An account that is not let in leaves the list of those who wait; nobody is rejected twice."""
    user_id = await registered(system)
    path = f"/api/admin/approvals/user/{user_id}/reject"
    answer = await administrator(system).post(path, {"reason": "资料不实"})
    assert answer.status == 200, answer
    assert (await account(system, user_id))["status"] == AccountStatus.SUSPENDED
    waiting = (await administrator(system).get("/api/admin/approvals", kind="user", limit="100")).body
    assert str(user_id) not in [item["id"] for item in waiting["items"]]
    again = await administrator(system).post(path, {})
    assert (again.status, again.body["code"]) == (409, "illegal-status")


async def test_a_rejected_application_leaves_the_account_as_it_was(system: System) -> None:
    """Whoever may not be a provider may still be an owner, and may apply again; without an application it is a 409."""
    user_id = await applied(system)
    await administrator(system).post(f"/api/admin/approvals/user/{user_id}/approve", {})
    path = f"/api/admin/approvals/provider/{user_id}/reject"
    assert (await administrator(system).post(path, {"reason": "没有院子"})).status == 200
    changed = await account(system, user_id)
    assert (changed["status"], changed["role"], changed["applied_at"]) == (AccountStatus.ACTIVE, Role.OWNER, None)
    assert (await administrator(system).post(path, {})).body["code"] == "illegal-status"


async def test_a_restoration_is_no_way_around_an_approval(system: System) -> None:
    """Only who was suspended is restored."""
    user_id = await registered(system)
    answer = await administrator(system).post(f"/api/admin/users/{user_id}/restore", {})
    assert (answer.status, answer.body["code"]) == (409, "illegal-status")
    assert (await account(system, user_id))["status"] == AccountStatus.PENDING


async def test_a_refused_branch_leaves_no_audit_entry(system: System) -> None:
    """What the user service refuses is passed on as it is, and nothing is written here."""
    user_id = await registered(system)
    answer = await administrator(system).post(f"/api/admin/approvals/provider/{user_id}/approve", {})
    assert (answer.status, answer.body["code"]) == (409, "illegal-status")
    nobody = system.new_id()
    assert (await administrator(system).post(f"/api/admin/approvals/user/{nobody}/approve", {})).status == 404
    assert await entries_about(system, user_id) == await entries_about(system, nobody) == []
    assert (await check(system)).body["holds"]


async def test_when_the_audit_entry_cannot_be_written_the_account_is_as_before(system: System) -> None:
    """The user service's branch is undone, its message never leaves."""
    user_id = await registered(system)
    async with database(system) as connection:
        await connection.execute("ALTER TABLE audit_log ADD CONSTRAINT closed CHECK (false) NOT VALID")
    try:
        answer = await administrator(system).post(f"/api/admin/approvals/user/{user_id}/approve", {})
        assert answer.status >= 500
    finally:
        async with database(system) as connection:
            await connection.execute("ALTER TABLE audit_log DROP CONSTRAINT closed")
    assert (await account(system, user_id))["status"] == AccountStatus.PENDING
    assert await entries_about(system, user_id) == []
    assert await system.fetch_all("user", "SELECT 1 FROM outbox WHERE args->>'recipient' = $1", str(user_id)) == []
    messages = await queued(system.redis_url, "notification")
    assert all(m["kwargs"]["recipient"] != str(user_id) for m in messages)


async def test_decisions_at_once_make_one_chain_without_gaps(system: System) -> None:
    """Every entry follows from the one before, whoever came first."""
    people = [await registered(system) for _ in range(6)]
    answers = await asyncio.gather(
        *(administrator(system).post(f"/api/admin/approvals/user/{who}/approve", {}) for who in people)
    )
    assert [answer.status for answer in answers] == [200] * len(people)
    made = sorted(answer.body["audit_number"] for answer in answers)
    assert made == list(range(made[0], made[0] + len(people)))
    answer = await check(system)
    assert (answer.body["holds"], answer.body["entries"]) == (True, made[-1])


@pytest.mark.parametrize(
    "change",
    [
        "actor = gen_random_uuid()",
        "action = 'user.restore'",
        "subject = 'somebody'",
        "reason = reason || '.'",
        "at = at + interval '1 ms'",
        "xid = gen_random_uuid()",
        "hash = sha256('')",
    ],
)
async def test_the_check_finds_a_planted_change(system: System, change: str) -> None:
    """Whichever column was changed behind the service's back, the check names the entry."""
    user_id = await registered(system)
    done = await administrator(system).post(f"/api/admin/approvals/user/{user_id}/approve", {"reason": "好"})
    number = done.body["audit_number"]
    async with database(system, bypassing=True) as connection:
        [before] = await connection.fetch("SELECT * FROM audit_log WHERE number = $1", number)
        await connection.execute(f"UPDATE audit_log SET {change} WHERE number = $1", number)
        answer = await check(system)
        await connection.execute("DELETE FROM audit_log WHERE number = $1", number)
        await connection.execute("INSERT INTO audit_log VALUES ($1, $2, $3, $4, $5, $6, $7, $8)", *before.values())
    assert (answer.body["holds"], answer.body["first_broken"]) == (False, number)
    assert (await check(system)).body["holds"]


async def test_the_check_finds_entries_that_were_cut_off(system: System) -> None:
    """The head of the chain says how many there must be."""
    user_id = await registered(system)
    done = await administrator(system).post(f"/api/admin/approvals/user/{user_id}/approve", {})
    number = done.body["audit_number"]
    async with database(system, bypassing=True) as connection:
        [before] = await connection.fetch("DELETE FROM audit_log WHERE number = $1 RETURNING *", number)
        answer = await check(system)
        await connection.execute("INSERT INTO audit_log VALUES ($1, $2, $3, $4, $5, $6, $7, $8)", *before.values())
    assert (answer.body["holds"], answer.body["first_broken"]) == (False, number)


@pytest.mark.parametrize("statement", ["UPDATE audit_log SET reason = ''", "DELETE FROM audit_log"])
async def test_not_even_the_service_itself_can_change_its_log(system: System, statement: str) -> None:
    """The role of the service is refused by the database."""
    user_id = await registered(system)
    await administrator(system).post(f"/api/admin/approvals/user/{user_id}/approve", {})
    connection = await asyncpg.connect(str(system.settings["admin"].database_url))
    try:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute(statement)
    finally:
        await connection.close()


async def test_a_suspension_ends_sessions_and_a_restoration_lets_in_again(system: System) -> None:
    """A suspended account can refresh nothing; an administrator cannot be suspended."""
    user_id = await registered(system)
    login = {"username": (await account(system, user_id))["username"], "password": PASSWORD}
    session = (await system.client("user").post("/api/users/login", login)).body
    answer = await administrator(system).post(f"/api/admin/users/{user_id}/suspend", {"reason": "投诉"})
    assert answer.body["subject"]["status"] == AccountStatus.SUSPENDED
    refreshed = await system.client("user").post(
        "/api/users/token/refresh", {"refresh_token": session["refresh_token"]}
    )
    assert refreshed.status == 401
    again = await system.client("user").post("/api/users/login", login)
    assert (await system.client("user", again.body["token"]).get("/api/users/me")).body["code"] == "suspended"
    assert (await administrator(system).post(f"/api/admin/users/{user_id}/restore", {})).status == 200
    assert (await account(system, user_id))["status"] == AccountStatus.ACTIVE
    [head] = await system.fetch_all("user", "SELECT id FROM users WHERE role = 2")
    assert (await administrator(system).post(f"/api/admin/users/{head['id']}/suspend", {})).status == 409


async def test_who_waits_is_shown_oldest_first_over_all_shards_page_by_page(system: System) -> None:
    """Every pending account appears exactly once."""
    new = [await registered(system) for _ in range(5)]
    seen: list[str] = []
    cursor: dict[str, str] = {}
    while True:
        answer = await administrator(system).get("/api/admin/approvals", kind="user", limit="3", **cursor)
        assert answer.status == 200, answer
        seen += [item["id"] for item in answer.body["items"]]
        if answer.body["next_cursor"] is None:
            break
        cursor = {"cursor": answer.body["next_cursor"]}
    assert len(seen) == len(set(seen))
    assert seen[-5:] == [str(who) for who in new]


async def test_the_log_is_shown_newest_first_page_by_page(system: System) -> None:
    """Following the cursors shows every entry once."""
    for _ in range(3):
        await administrator(system).post(f"/api/admin/approvals/user/{await registered(system)}/approve", {})
    first = (await administrator(system).get("/api/admin/audit-log", limit="2")).body
    second = (await administrator(system).get("/api/admin/audit-log", limit="2", cursor=first["next_cursor"])).body
    shown = [item["number"] for item in first["items"] + second["items"]]
    assert shown == list(range(shown[0], shown[0] - 4, -1))


@pytest.mark.parametrize(("role", "status"), [(Role.OWNER, 403), (Role.PROVIDER, 403), (None, 401)])
async def test_only_administrators_come_in(system: System, role: Role | None, status: int) -> None:
    """Owners and providers are refused, strangers asked to log in."""
    token = None if role is None else system.access_token(system.new_id(), role)
    for path in ("/api/admin/audit-log", "/api/admin/system/health", "/api/admin/transactions"):
        assert (await system.client("admin", token).get(path)).status == status


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (f"/api/admin/approvals/nonsense/{UUID(int=1)}/approve", {}),
        (f"/api/admin/approvals/user/{UUID(int=1)}/approve", {"by": "me"}),
        (f"/api/admin/approvals/user/{UUID(int=1)}/approve", {"reason": "x" * 1001}),
        (f"/api/admin/users/{UUID(int=1)}/promote", {}),
    ],
)
async def test_a_decision_that_does_not_fit_is_a_400(system: System, path: str, body: dict[str, Any]) -> None:
    """Unknown kinds, verbs and members are refused before anything is begun."""
    assert (await administrator(system).post(path, body)).status == 400


async def test_transactions_are_shown_as_the_coordinator_knows_them(system: System) -> None:
    """A decision's xid leads to its branches; an unknown one is a 404."""
    user_id = await registered(system)
    xid = (await administrator(system).post(f"/api/admin/approvals/user/{user_id}/approve", {})).body["xid"]
    shown = (await administrator(system).get(f"/api/admin/transactions/{xid}")).body
    assert shown["name"] == "approve"
    assert {branch["resource"].split("@")[0] for branch in shown["branches"]} == {"user", "admin"}
    listed = await administrator(system).get("/api/admin/transactions", name="approve", decision="committed")
    assert xid in [item["xid"] for item in listed.body["items"]]
    assert (await administrator(system).get(f"/api/admin/transactions/{uuid4()}")).status == 404
    assert (await administrator(system).get("/api/admin/transactions", decision="maybe")).status == 400


async def test_what_the_coordinator_cannot_answer_is_no_success(system: System) -> None:
    """A coordinator that refuses us or fails is a 503 here, and never a list."""
    async with replica(system, SPEC, coordinator_urls=[system.urls["payment"]]) as runtime:
        with pytest.raises(Problem, match="coordinator-failed"):
            await Administration(runtime, Others(runtime)).transactions({})


async def test_health_names_every_part(system: System, answers: dict[str, Any]) -> None:
    """All that runs is ok; a part that is down is named, and the whole is degraded."""
    answer = await administrator(system).get("/api/admin/system/health")
    assert answer.body["status"] == "ok", answer
    assert {"user", "admin", "payment", "coordinator-1"} <= answer.body["parts"].keys()
    answers["payment"], before = None, answers["payment"]
    answer = await administrator(system).get("/api/admin/system/health")
    answers["payment"] = before
    assert (answer.body["status"], answer.body["parts"]["payment"]["status"]) == ("degraded", "down")


@pytest.mark.parametrize(
    ("service", "told"),
    [
        ("capacity", {"nights_over_total": 1, "drift": 0}),
        ("payment", {"ledger_sum_cents": -1, "wallets_wrong": 0}),
        ("payment", {"escrows_wrong": 1}),
        ("order", {"orders_without_index": 2}),
        ("order", {"index_status_differs": 1}),
        ("order", {"index_without_order": 1}),
        ("order", {"unpaid_past_window": 1}),
        ("payment", None),
    ],
)
async def test_the_consistency_report_holds_only_while_every_service_finds_nothing(
    system: System, answers: dict[str, Any], service: str, told: dict[str, int] | None
) -> None:
    """One wrong row anywhere, or a service that does not answer, and nothing is claimed."""
    assert (await administrator(system).get("/api/admin/consistency-report")).body["holds"]
    before, answers[service] = answers[service], told
    report = (await administrator(system).get("/api/admin/consistency-report")).body
    answers[service] = before
    assert not report["holds"]
    assert report["parts"][service] == told or "error" in report["parts"][service]
