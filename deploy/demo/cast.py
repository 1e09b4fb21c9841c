"""The people of the story, and what they do more than once."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from deploy.demo.report import Report
from deploy.demo.world import (
    COORDINATOR_AWAY,
    Api,
    Databases,
    DemoSystem,
    Failed,
    Lock,
    Person,
    eventually,
    patiently,
    unique,
)

PRICE_CENTS = 12_000
TIME_ZONE = "Asia/Shanghai"
REGISTER_TRIES_MAX = 40
WATCH_TIMEOUT_S = 4.0
AT_ONCE_MAX = 8
"""Accounts that are made at the same time: each costs a deliberate amount of memory (argon2id)."""


@dataclass
class Cast:
    """Who plays, on which stage. Filled by the first scene."""

    system: DemoSystem
    api: Api
    databases: Databases
    report: Report
    people: dict[str, Person] = field(default_factory=dict)
    things: dict[str, Any] = field(default_factory=dict)

    @property
    def owner(self) -> Person:
        """The pet owner of the story."""
        return self.people["owner"]

    @property
    def provider(self) -> Person:
        """The provider, whose rows live on another shard than the owner's."""
        return self.people["provider"]

    @property
    def admin(self) -> Person:
        """The administrator."""
        return self.people["admin"]

    def say(self, line: str) -> None:
        """One line for a person who watches."""
        self.report.say(line)

    async def log_in(self, login: str, password: str) -> Person:
        """Somebody who is logged in."""
        person = Person(self.api, login)
        body = await person.must("POST", "/api/users/login", {"login": login, "password": password})
        person.token, person.user_id = body["token"], body["user_id"]
        return person

    async def register(self, prefix: str) -> tuple[Person, str]:
        """A new account that waits for approval, and its password."""
        name, password = unique(prefix), secrets.token_urlsafe(18)
        body = {"username": name, "password": password, "email": f"{name}@example.test", "name": prefix.title()}
        person = Person(self.api, name)
        answer = await person.must("POST", "/api/users", body)
        # Empty when a first try was not answered, and a second found the account made.
        person.user_id = answer.get("user_id") or (await self.log_in(name, password)).user_id
        return person, password

    async def approved(self, prefix: str) -> Person:
        """A new account, approved by the administrator and logged in."""
        person, password = await self.register(prefix)
        await self.admin.must("POST", f"/api/admin/approvals/user/{person.user_id}/approve", {})
        return await self.log_in(person.name, password)

    async def many_approved(self, prefix: str, count: int) -> list[Person]:
        """`count` approved people, made a few at a time."""
        gate = asyncio.Semaphore(AT_ONCE_MAX)

        async def one() -> Person:
            async with gate:
                return await self.approved(prefix)

        return list(await asyncio.gather(*(one() for _ in range(count))))

    async def approved_provider(self, prefix: str) -> Person:
        """A new provider: applied, approved, logged in."""
        person, password = await self.register(prefix)
        await self.admin.must("POST", f"/api/admin/approvals/user/{person.user_id}/approve", {})
        person = await self.log_in(person.name, password)
        await person.must("POST", "/api/users/me/provider-application", {"text": "家有院子，养狗二十年。"})
        await self.admin.must("POST", f"/api/admin/approvals/provider/{person.user_id}/approve", {})
        return await self.log_in(person.name, password)

    async def listing(self, provider: Person, title: str, capacity: dict[str, int], **fields: Any) -> str:
        """A listing that was published, submitted and approved; its id."""
        body = {
            "title": title,
            "description": "有院子，每天遛三次，可以看视频。",
            "price_cents": PRICE_CENTS,
            "city": "上海",
            "address": "徐汇区一号",
            "latitude": 31.19,
            "longitude": 121.44,
            "time_zone": TIME_ZONE,
            "policy": "one_day",
            "capacity": capacity,
            **fields,
        }
        made = await provider.must("POST", "/api/boarding/services", body)
        listing_id = str(made["service_id"])
        await provider.must("POST", f"/api/boarding/services/{listing_id}/submit", {})
        await self.admin.must("POST", f"/api/admin/approvals/service/{listing_id}/approve", {})
        return listing_id

    async def pet(self, owner: Person, name: str) -> str:
        """A dog of 18 kg (pool dog-M); its id."""
        body = {"name": name, "species": "dog", "breed": "柴犬", "weight_g": 18_000}
        made = await owner.must("POST", "/api/pets", body)
        return str(made["id"])

    async def quote(self, owner: Person, listing_id: str, pet_ids: list[str], first: date, nights: int) -> Any:
        """A signed quote."""
        stay = {"check_in": first.isoformat(), "check_out": (first + timedelta(days=nights)).isoformat()}
        return await owner.must("POST", f"/api/boarding/services/{listing_id}/quotes", {"pet_ids": pet_ids, **stay})

    async def book(self, owner: Person, quote: str) -> Any:
        """A booking that must succeed."""
        return await owner.must("POST", "/api/orders", {"quote": quote}, keyed=True)

    async def ask_coordinator(self, path: str) -> Any:
        """What the coordinator answers an operator at `path`; waits for one that is being started again."""
        return await patiently(lambda: self.system.coordinator_json(path), COORDINATOR_AWAY)

    async def pause_coordinator(self) -> int:
        """Stops the coordinator from hearing anything (SIGSTOP), as soon as there is one; its process id."""

        async def pause() -> int:
            pid = self.system.coordinator_pid()
            os.kill(pid, signal.SIGSTOP)
            return pid

        return await patiently(pause, COORDINATOR_AWAY)

    async def book_watched(self, owner: Person, quote: str) -> tuple[Any, list[Lock]]:
        """A booking that must succeed, and the global locks that it held before it was decided.

        The coordinator is paused for the moment in which the branches are done and nothing is decided.
        """
        pid = await self.pause_coordinator()
        booking = asyncio.ensure_future(self.book(owner, quote))
        seen: list[Lock] = []

        async def all_branches_are_open() -> bool:
            nonlocal seen
            seen = await self.databases.locked_rows()
            databases = {lock.database.split("@")[0] for lock in seen}
            return booking.done() or {"capacity", "pet", "order"} <= databases

        try:
            await eventually(all_branches_are_open, "the branches of a booking are open", timeout_s=WATCH_TIMEOUT_S)
        except Failed:
            self.say("the branches were not seen in their undecided moment")
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        return await booking, seen

    async def top_up(self, person: Person, amount_cents: int) -> None:
        """Money into a wallet."""
        await person.must("POST", "/api/payments/wallet/top-ups", {"amount_cents": amount_cents}, keyed=True)

    async def balance(self, person: Person) -> int:
        """What is in a wallet, in cents."""
        return int((await person.must("GET", "/api/payments/wallet"))["balance_cents"])

    async def shard_of(self, user_id: str) -> str:
        """The shard that holds a user's rows, looked up in the databases."""
        for name in self.databases.dsns:
            if name.startswith("user@"):
                rows = await self.databases.rows(name, "SELECT 1 FROM users WHERE id = $1::uuid", user_id)
                if rows:
                    return name.removeprefix("user@")
        raise Failed(f"user {user_id} is on no shard")

    async def quiet(self) -> float:
        """Waits until no lock is left anywhere and nothing is undecided; returns the seconds."""
        left: dict[str, int] = {}

        async def settled() -> bool:
            nonlocal left
            left = await self.databases.locks()
            if left:
                return False
            undecided = await self.ask_coordinator("/v1/transactions?decision=0&limit=10")
            left = {"undecided transactions": len(undecided["items"])} if undecided["items"] else {}
            return not left

        try:
            return await eventually(settled, "no lock and no undecided transaction left")
        except Failed as error:
            raise Failed(f"{error}; left: {left}") from None


def tonight() -> date:
    """Today where the listings of the story are: the first night that may be booked there."""
    return datetime.now(ZoneInfo(TIME_ZONE)).date()
