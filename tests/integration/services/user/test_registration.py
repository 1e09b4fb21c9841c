"""Registering: logins are unique over all shards, and nobody gives themselves a role."""

from __future__ import annotations

import asyncio
import time
from typing import Any
from uuid import UUID, uuid4

import pytest

from coordinator.protocol.ids import BranchId, Xid
from services.user.config import SPEC
from services.user.domain import Login, LoginKind
from services.user.repository import add_logins
from services.user.use_cases import Passwords, Users
from sharding import bucket_of
from tests.support.services import replica
from tests.support.system import SHARDS, Answer, System, running_system

pytestmark = pytest.mark.asyncio(loop_scope="module")

CONTENDERS = 8
PASSWORD = "a-long-password"


async def register(system: System, username: str, **more: Any) -> Answer:
    return await system.client("user").post("/api/users", {"username": username, "password": PASSWORD, **more})


def shard_of_login(system: System, kind: LoginKind, value: str) -> str:
    return str(system.map_store.map.shard_of(bucket_of(Login(kind, value).sharding_key)))


def name_on(system: System, shard: str, stem: str) -> str:
    """A username whose look-up row lives on `shard`."""
    names = (f"{stem}{number}" for number in range(1000))
    return next(name for name in names if shard_of_login(system, LoginKind.USERNAME, name) == shard)


async def rows(system: System, sql: str, *args: Any) -> int:
    return sum(row[0] for row in await system.fetch_all("user", sql, *args))


async def test_a_new_account_is_a_pending_owner_with_the_seeds_answer(system: System) -> None:
    """Registration answers 201 with message and user_id; role and status are the server's."""
    answer = await register(system, "newcomer", email="New@Example.org", name="新人")
    assert answer.status == 201
    assert answer.body["message"] == "用户注册成功"
    [row] = await system.fetch_all("user", "SELECT * FROM users WHERE id = $1", UUID(answer.body["user_id"]))
    assert (row["role"], row["status"], row["name"]) == (0, 0, "新人")


async def test_an_account_and_its_logins_may_live_on_different_shards(system: System) -> None:
    """Each row lies where its bucket belongs: the account by its id, a login by itself."""
    for shard in SHARDS:
        name = name_on(system, shard, "spread")
        answer = await register(system, name)
        user_id = UUID(answer.body["user_id"])
        logins = await system.fetch(f"user@{shard}", "SELECT 1 FROM user_logins WHERE value = $1", name)
        home = system.shard_of(user_id)
        accounts = await system.fetch(f"user@{home}", "SELECT 1 FROM users WHERE id = $1", user_id)
        assert len(logins) == len(accounts) == 1


async def test_of_many_who_want_one_username_at_once_exactly_one_gets_it(system: System) -> None:
    """Concurrent registrations of one username leave one account, whichever shards the accounts fall on."""
    answers = await asyncio.gather(
        *(register(system, "wanted", email=f"wanted{number}@example.org") for number in range(CONTENDERS))
    )
    assert sorted(answer.status for answer in answers) == [201] + [409] * (CONTENDERS - 1)
    refused = next(answer for answer in answers if answer.status == 409)
    assert refused.body["code"] == "login-taken"
    assert refused.body["errors"][0]["pointer"] == "/username"
    await system.quiet()
    assert await rows(system, "SELECT count(*) FROM users WHERE username = 'wanted'") == 1
    assert await rows(system, "SELECT count(*) FROM user_logins WHERE value LIKE 'wanted%'") == 2


async def test_of_many_who_want_one_email_at_once_exactly_one_gets_it(system: System) -> None:
    """The loser of an e-mail leaves nothing behind: no account, no username."""
    answers = await asyncio.gather(
        *(register(system, f"mailer{number}", email="One@Example.org") for number in range(CONTENDERS))
    )
    assert sorted(answer.status for answer in answers) == [201] + [409] * (CONTENDERS - 1)
    assert {a.body["errors"][0]["pointer"] for a in answers if a.status == 409} == {"/email"}
    await system.quiet()
    assert await rows(system, "SELECT count(*) FROM users WHERE username LIKE 'mailer%'") == 1
    assert await rows(system, "SELECT count(*) FROM user_logins WHERE value LIKE 'mailer%'") == 1
    assert await rows(system, "SELECT count(*) FROM user_credentials") == await rows(
        system, "SELECT count(*) FROM users"
    )


async def test_a_refused_registration_leaves_its_username_free(system: System) -> None:
    """After a 409 for the phone number, the same username can be registered with another one."""
    assert (await register(system, "first", phone="+86 138-0013-8000")).status == 201
    refused = await register(system, "second", phone="+8613800138000")
    assert refused.status == 409
    assert refused.body["errors"][0]["pointer"] == "/phone"
    assert (await register(system, "second", phone="+8613900139000")).status == 201


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"role": 2}, "/role"),
        ({"status": 1}, "/status"),
        ({"username": "ab"}, "/username"),
        ({"username": "no spaces"}, "/username"),
        ({"password": "short"}, "/password"),
        ({"email": "nobody"}, "/email"),
        ({"phone": "call me"}, "/phone"),
        ({"username": None}, "/username"),
    ],
)
async def test_a_body_that_does_not_fit_is_a_400_that_points_at_the_field(
    system: System, change: dict[str, Any], pointer: str
) -> None:
    """Unknown members (a role, a status) and unusable values are named."""
    body = {"username": "tidy", "password": PASSWORD, **change}
    answer = await system.client("user").post("/api/users", body)
    assert answer.status == 400
    assert answer.headers["content-type"] == "application/problem+json"
    assert [error["pointer"] for error in answer.body["errors"]] == [pointer]


async def test_the_administrators_account_is_made_once_by_replicas_that_start_together(
    postgres: Any, valkey: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Two replicas that find no administrator make one between them, and later starts make none."""
    folder = tmp_path_factory.mktemp("admin")
    async with running_system(
        postgres, valkey, folder, services=["user"], overrides={"admin_password_file": None}
    ) as fresh:
        secret = folder / "admin-password"
        async with (
            replica(fresh, SPEC, admin_password_file=secret) as one,
            replica(fresh, SPEC, admin_password_file=secret) as two,
        ):
            replicas = [Users(one, Passwords()), Users(two, Passwords())]
            await asyncio.gather(*(users.ensure_admin() for users in replicas))
            await replicas[0].ensure_admin()
        await fresh.quiet()
        found = await fresh.fetch_all("user", "SELECT role, status FROM users")
        assert [tuple(row) for row in found] == [(2, 1)]
        credentials = {"username": "admin", "password": secret.read_text()}
        answer = await fresh.client("user").post("/api/users/login", credentials)
        assert (answer.status, answer.body["role"]) == (200, 2)


async def test_an_administrators_account_that_a_killed_start_left_undecided_is_made_again(
    postgres: Any, valkey: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The row of the login is there and will be undone: the next start waits for that, and then makes the account."""
    folder = tmp_path_factory.mktemp("killed")
    async with running_system(
        postgres, valkey, folder, services=["user"], overrides={"admin_password_file": None}
    ) as fresh:
        secret = folder / "admin-password"
        secret.write_text("a secret of this test")
        async with replica(fresh, SPEC, admin_password_file=secret) as runtime:
            login = Login(LoginKind.USERNAME, "admin")
            # What a process leaves that is killed between its branch and its decision.
            deadline_ms = int((time.time() + 1.5) * 1000)
            with runtime.coordinator.participant(Xid(uuid4()), BranchId(uuid4()), deadline_ms):
                store = runtime.store_of(bucket_of(login.sharding_key))
                await store.branch(lambda session: add_logins(session, fresh.new_id(), [login]))
            await Users(runtime, Passwords()).ensure_admin()
        await fresh.quiet()
        credentials = {"username": "admin", "password": secret.read_text()}
        assert (await fresh.client("user").post("/api/users/login", credentials)).status == 200
