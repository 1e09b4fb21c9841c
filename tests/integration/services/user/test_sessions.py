"""Logging in, staying logged in, and accounts as their owners see them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from services.kit.auth import AccountStatus, Role
from services.kit.problems import Problem
from services.user.config import LOGIN_FAILURES_MAX, SPEC
from services.user.schemas import LogIn
from services.user.use_cases import Passwords, Users
from tests.support.services import redis_of, replica
from tests.support.system import Answer, Api, System

pytestmark = pytest.mark.asyncio(loop_scope="module")

PASSWORD = "a-long-password"
numbers: Iterator[int] = count(1)


@dataclass
class Account:
    """Somebody who is registered."""

    id: UUID
    username: str
    email: str
    phone: str


async def registered(system: System) -> Account:
    number = next(numbers)
    made = Account(uuid4(), f"person{number}", f"Person{number}@Example.org", f"+8613{number:09d}")
    body = {"username": made.username, "password": PASSWORD, "email": made.email, "phone": made.phone}
    answer = await system.client("user").post("/api/users", body)
    assert answer.status == 201, answer
    made.id = UUID(answer.body["user_id"])
    return made


async def log_in(system: System, login: str, password: str = PASSWORD) -> Answer:
    return await system.client("user").post("/api/users/login", {"login": login, "password": password})


async def refresh(system: System, token: str) -> Answer:
    return await system.client("user").post("/api/users/token/refresh", {"refresh_token": token})


def as_self(system: System, account: Account) -> Api:
    return system.client("user", system.access_token(account.id, status=AccountStatus.PENDING))


async def test_somebody_logs_in_by_username_email_or_phone(system: System) -> None:
    """All three find the account, in any case and spacing; the tokens work."""
    account = await registered(system)
    spaced = f"{account.phone[:3]} {account.phone[3:]}"
    for login in (account.username.upper(), account.email.lower(), spaced):
        answer = await log_in(system, login)
        assert answer.status == 200, answer
        assert UUID(answer.body["user_id"]) == account.id
        me = await system.client("user", answer.body["token"]).get("/api/users/me")
        assert me.body["username"] == account.username


async def test_the_seeds_login_body_still_works(system: System) -> None:
    """`username` stands for `login`, and the answer has `token` and `user_id`."""
    account = await registered(system)
    body = {"username": account.username, "password": PASSWORD}
    answer = await system.client("user").post("/api/users/login/", body)
    assert answer.status == 200
    assert {"token", "user_id"} <= answer.body.keys()


async def test_a_wrong_password_and_an_unknown_login_are_told_apart_by_nobody(system: System) -> None:
    """Both are the same 401, but for the trace id."""
    account = await registered(system)
    answers = [await log_in(system, account.username, "wrong"), await log_in(system, "nobody-at-all", "wrong")]
    answers.append(await log_in(system, "not a login!", "wrong"))
    bodies = [{**answer.body, "trace_id": None} for answer in answers]
    assert [answer.status for answer in answers] == [401] * 3
    assert bodies[0] == bodies[1] == bodies[2]


async def test_guessing_has_to_wait_and_only_for_that_login(system: System) -> None:
    """After LOGIN_FAILURES_MAX wrong passwords even the right one is a 429 with Retry-After."""
    account, other = await registered(system), await registered(system)
    assert (await log_in(system, account.username, "wrong")).status == 401
    async with redis_of(system.redis_url) as redis:
        key = f"login_failures:username:{account.username}"
        assert int(await redis.get(key)) == 1
        assert await redis.ttl(key) > 0
        await redis.set(key, LOGIN_FAILURES_MAX)
    answer = await log_in(system, account.username)
    assert (answer.status, answer.body["code"]) == (429, "too-many-attempts")
    assert int(answer.headers["retry-after"]) > 0
    assert (await log_in(system, other.username)).status == 200


async def test_whoever_stole_a_token_cannot_guess_the_password_with_it(system: System) -> None:
    """A change of the password counts wrong old ones too, for the account."""
    account = await registered(system)
    body = {"old_password": "wrong", "new_password": "another-password"}
    answers = [await as_self(system, account).put("/api/users/me/password", body) for _ in range(LOGIN_FAILURES_MAX)]
    assert {answer.status for answer in answers} == {401}
    answer = await as_self(system, account).put("/api/users/me/password", {**body, "old_password": PASSWORD})
    assert (answer.status, answer.body["code"]) == (429, "too-many-attempts")
    assert (await log_in(system, account.username)).status == 200


async def test_a_refresh_token_works_once_and_its_reuse_ends_the_family(system: System) -> None:
    """Whoever brings a used token again ends all tokens that came of it, but not other sessions."""
    account = await registered(system)
    elsewhere = (await log_in(system, account.username)).body["refresh_token"]
    first = (await log_in(system, account.username)).body["refresh_token"]
    second = await refresh(system, first)
    assert second.status == 200
    assert second.body["refresh_token"] != first
    third = await refresh(system, second.body["refresh_token"])
    assert third.status == 200
    assert (await refresh(system, first)).status == 401
    assert (await refresh(system, third.body["refresh_token"])).status == 401
    assert (await refresh(system, elsewhere)).status == 200


async def test_of_two_uses_of_one_refresh_token_at_once_at_most_one_succeeds(system: System) -> None:
    """A copied token and its owner cannot both go on."""
    account = await registered(system)
    token = (await log_in(system, account.username)).body["refresh_token"]
    answers = await asyncio.gather(*(refresh(system, token) for _ in range(4)))
    assert sorted(answer.status for answer in answers) == [200, 401, 401, 401]
    kept = next(answer for answer in answers if answer.status == 200)
    assert (await refresh(system, kept.body["refresh_token"])).status == 401


async def test_refresh_tokens_that_have_ended_are_forgotten_at_the_next_login(system: System) -> None:
    """Somebody who logs in for years leaves no rows for years."""
    account = await registered(system)
    for _ in range(2):
        await log_in(system, account.username)
    past = "UPDATE user_sessions SET expires_at = now() - interval '1 s' WHERE user_id = $1"
    await system.fetch_all("user", past, account.id)
    assert (await log_in(system, account.username)).status == 200
    kept = await system.fetch_all(
        "user", "SELECT expires_at > now() AS lives FROM user_sessions WHERE user_id = $1", account.id
    )
    assert [row["lives"] for row in kept] == [True]


@pytest.mark.parametrize("token", ["x" * 64, "A" * 64, "中文中文中文中文中文"])
async def test_a_made_up_refresh_token_is_a_401(system: System, token: str) -> None:
    """Also one that decodes to an id of nobody."""
    assert (await refresh(system, token)).status == 401


async def test_a_new_password_ends_every_session(system: System) -> None:
    """The old password proves who asks; afterwards only the new one works."""
    account = await registered(system)
    token = (await log_in(system, account.username)).body["refresh_token"]
    me = as_self(system, account)
    body = {"old_password": "wrong", "new_password": "another-password"}
    assert (await me.put("/api/users/me/password", body)).status == 401
    body["old_password"] = PASSWORD
    assert (await me.put("/api/users/me/password", body)).status == 200
    assert (await refresh(system, token)).status == 401
    assert (await log_in(system, account.username)).status == 401
    assert (await log_in(system, account.username, "another-password")).status == 200


class Slow(Passwords):
    """Says what it has found only when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.found, self.go_on = asyncio.Event(), asyncio.Event()

    async def fits(self, stored: str | None, password: str) -> bool:
        fits = await super().fits(stored, password)
        self.found.set()
        await self.go_on.wait()
        return fits


async def test_a_login_that_a_new_password_overtakes_begins_no_session(system: System) -> None:
    """The old password was right when it was looked at, and is not when the session would begin."""
    account, slow = await registered(system), Slow()
    async with replica(system, SPEC) as runtime:
        login = LogIn(password=PASSWORD, login=account.username)
        old = asyncio.create_task(Users(runtime, slow).log_in(login))
        await slow.found.wait()
        changed = {"old_password": PASSWORD, "new_password": "another-password"}
        assert (await as_self(system, account).put("/api/users/me/password", changed)).status == 200
        slow.go_on.set()
        with pytest.raises(Problem, match="wrong password"):
            await old
    assert await system.fetch_all("user", "SELECT 1 FROM user_sessions WHERE user_id = $1", account.id) == []


async def test_a_session_that_is_renewed_while_the_password_changes_ends_too(system: System) -> None:
    """A thief who refreshes at that moment has gained nothing."""
    account = await registered(system)
    token = (await log_in(system, account.username)).body["refresh_token"]
    connection = await asyncpg.connect(system.dsns[f"user@{system.shard_of(account.id)}"])
    try:
        async with connection.transaction():
            await connection.execute("LOCK TABLE user_sessions IN SHARE MODE")  # both are halfway when they meet it
            renewed = asyncio.create_task(refresh(system, token))
            await asyncio.sleep(0.3)
            body = {"old_password": PASSWORD, "new_password": "another-password"}
            changed = asyncio.create_task(as_self(system, account).put("/api/users/me/password", body))
            await asyncio.sleep(0.7)
        assert (await changed).status == 200
        await renewed
    finally:
        await connection.close()
    assert await system.fetch_all("user", "SELECT 1 FROM user_sessions WHERE user_id = $1", account.id) == []


async def test_logging_out_ends_every_session(system: System) -> None:
    """No refresh token survives it."""
    account = await registered(system)
    token = (await log_in(system, account.username)).body["refresh_token"]
    assert (await as_self(system, account).post("/api/users/logout")).status == 200
    assert (await refresh(system, token)).status == 401


async def test_somebody_changes_what_is_theirs_to_change(system: System) -> None:
    """Name, address and bio; what the body leaves out stays; null takes away."""
    account = await registered(system)
    me = as_self(system, account)
    changed = await me.patch("/api/users/me", {"name": "安娜", "bio": "两只猫"})
    assert (changed.status, changed.body["name"], changed.body["bio"]) == (200, "安娜", "两只猫")
    changed = await me.patch(f"/api/users/{account.id}", {"bio": None, "address": "上海"})
    assert (changed.body["name"], changed.body["bio"], changed.body["address"]) == ("安娜", None, "上海")


@pytest.mark.parametrize("change", [{"role": 2}, {"status": 1}, {"name": ""}, {"username": "other"}, {"bio": 5}])
async def test_nobody_changes_what_is_not_theirs_to_change(system: System, change: dict[str, Any]) -> None:
    """A role or a status in the body is a 400 and changes nothing."""
    account = await registered(system)
    me = as_self(system, account)
    before = (await me.get("/api/users/me")).body
    assert (await me.patch("/api/users/me", change)).status == 400
    assert (await me.get("/api/users/me")).body == before


async def test_somebody_elses_account_is_not_there(system: System) -> None:
    """Reading or changing it is the same 404 as for an id of nobody; an administrator may read it."""
    account, stranger = await registered(system), await registered(system)
    for asked in (account.id, system.new_id(), uuid4()):
        assert (await as_self(system, stranger).get(f"/api/users/{asked}")).status == 404
        assert (await as_self(system, stranger).patch(f"/api/users/{asked}", {"name": "x"})).status == 404
    admin = system.as_person("user", system.new_id(), Role.ADMIN)
    assert (await admin.get(f"/api/users/{account.id}")).body["email"] == account.email.lower()
    assert (await admin.get(f"/api/users/{uuid4()}")).status == 404


async def test_the_public_profile_shows_no_address(system: System) -> None:
    """Everybody sees name, role and bio, nothing more."""
    account = await registered(system)
    answer = await system.client("user").get(f"/api/users/{account.id}/public-profile")
    assert answer.status == 200
    assert answer.body.keys() == {"id", "name", "role", "bio", "since"}


async def test_internal_addresses_are_for_services_only(system: System) -> None:
    """People are not let in, nor services that have no business there; those that have are."""
    account = await registered(system)
    path = f"/internal/users/{account.id}"
    assert (await system.as_person("user", account.id, Role.ADMIN).get(path)).status == 401
    assert (await system.as_service("user", "capacity").get(path)).status == 403
    assert (await system.as_service("user", "order").get(path)).body["phone"] == account.phone


async def test_a_decision_is_only_taken_inside_a_global_transaction(system: System) -> None:
    """Called without the headers of one, a branch endpoint refuses and changes nothing."""
    account = await registered(system)
    answer = await system.as_service("user", "admin").post(f"/internal/users/{account.id}/approve", {})
    assert (answer.status, answer.body["code"]) == (400, "transaction-missing")
    assert (await as_self(system, account).get("/api/users/me")).body["status"] == AccountStatus.PENDING


async def test_a_token_that_does_not_hold_is_a_401_problem_with_a_trace_id(system: System) -> None:
    """Forged, of another kind or garbage: the answer says how to get a good one."""
    for token in ("garbage", system.service_token("order", "capacity")):
        answer = await system.client("user", token).get("/api/users/me")
        assert answer.status == 401
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.body["trace_id"] == answer.headers["x-trace-id"]
