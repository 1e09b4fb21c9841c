"""A small marketplace for the order service's tests: real capacity, pet and payment, boarding and user as stand-ins."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

from litestar import Litestar, get
from redis.asyncio import Redis

from services.kit.auth import Role
from services.kit.settings import Settings
from services.kit.signing import Signer
from tests.support.servers import TestPostgres
from tests.support.system import Answer, Api, Outside, System, running_system

TIME_ZONE = "Asia/Shanghai"
NIGHT_CENTS = 10_000


@dataclass
class Person:
    """Somebody with a token, and pets if they are an owner."""

    id: UUID
    api: Api
    wallet: Api
    pets: list[str] = field(default_factory=list)


@dataclass
class Listing:
    """A listing as the stand-in for boarding knows it."""

    id: UUID
    provider: Person
    audit_status: int = 1


class Market:
    """People, listings and quotes in a running system."""

    def __init__(self, system: System, listings: dict[UUID, Listing], users: dict[UUID, int]) -> None:
        self.system = system
        self._listings = listings
        self._users = users

    def today(self) -> date:
        """The day at the listings."""
        return datetime.now(UTC).astimezone(ZoneInfo(TIME_ZONE)).date()

    def person(self, role: Role = Role.OWNER, shard: str | None = None) -> Person:
        """Somebody new, on `shard` if one is named."""
        user_id = self.system.new_id(shard)
        self._users[user_id] = 1
        return Person(
            user_id,
            self.system.as_person("order", user_id, role),
            self.system.as_person("payment", user_id, role),
        )

    async def owner(self, *, cents: int = 1_000_000, pets: int = 1, shard: str | None = None) -> Person:
        """An owner with money and dogs of size M."""
        owner = self.person(shard=shard)
        if cents:
            answer = await owner.wallet.post("/api/payments/wallet/top-ups", {"amount_cents": cents}, key=str(uuid4()))
            assert answer.status == 201, answer
        for number in range(pets):
            pet = {"name": f"旺财{number}", "species": "dog", "weight_g": 15_000}
            answer = await self.system.as_person("pet", owner.id).post("/api/pets", pet)
            assert answer.status == 201, answer
            owner.pets.append(answer.body.get("id") or answer.body["pet_id"])
        return owner

    async def listing(self, places: int, *, shard: str | None = None) -> Listing:
        """A listing of a new provider with `places` for dogs of size M."""
        listing = Listing(uuid4(), self.person(Role.PROVIDER, shard))
        self._listings[listing.id] = listing
        pools = {"pools": {"dog-M": places}}
        answer = await self.system.as_service("capacity", "boarding").put(f"/internal/pools/{listing.id}", pools)
        assert answer.status == 200, answer
        return listing

    def suspend(self, person: Person) -> None:
        """The user service says from now on that this person is suspended."""
        self._users[person.id] = 2

    def quote(
        self, owner: Person, listing: Listing, *, begins_in_days: int = 0, nights: int = 2, **changes: Any
    ) -> dict[str, str]:
        """A booking request with a quote as boarding signs it."""
        check_in = self.today() + timedelta(days=begins_in_days)
        claims: dict[str, Any] = {
            "listing_id": str(listing.id),
            "provider_id": str(listing.provider.id),
            "owner_id": str(owner.id),
            "pet_ids": owner.pets,
            "pools": {"dog-M": len(owner.pets)},
            "check_in": check_in.isoformat(),
            "check_out": (check_in + timedelta(days=nights)).isoformat(),
            "lines": [{"label": f"{nights} 晚", "nights": nights, "amount_cents": nights * NIGHT_CENTS}],
            "total_cents": nights * NIGHT_CENTS,
            "policy": "same_day",
            "instant_book": False,
            "time_zone": TIME_ZONE,
            "title": "阳光宠物之家",
        }
        ttl_s = changes.pop("ttl_s", 600)
        signer = Signer(changes.pop("signer", "boarding"), self.system.keys["boarding"], self.system.clock)
        return {"quote": signer.sign("quote", {**claims, **changes}, ttl_s=ttl_s)}

    async def book(self, owner: Person, listing: Listing, **options: Any) -> Answer:
        """Books, with a new Idempotency-Key."""
        return await owner.api.post("/api/orders", self.quote(owner, listing, **options), key=str(uuid4()))

    async def booked(self, owner: Person, listing: Listing, **options: Any) -> str:
        """The id of a new booking."""
        answer = await self.book(owner, listing, **options)
        assert answer.status == 201, answer
        return str(answer.body["order_id"])

    async def step(self, person: Person, order_id: str, step: str, body: Any = None) -> Answer:
        """One step of an order, with a new Idempotency-Key."""
        return await person.api.post(f"/api/orders/{order_id}/{step}", body or {}, key=str(uuid4()))

    async def done(self, person: Person, order_id: str, step: str, body: Any = None) -> Any:
        """The body of a step that succeeded."""
        answer = await self.step(person, order_id, step, body)
        assert answer.status == 200, answer
        return answer.body

    async def balance(self, person: Person) -> int:
        """What is in a wallet."""
        return int((await person.wallet.get("/api/payments/wallet")).body["balance_cents"])

    async def nights(self, listing: Listing) -> list[tuple[int, int]]:
        """(held, booked) of each night that a booking has touched."""
        rows = await self.system.fetch(
            "capacity", "SELECT held, booked FROM nights WHERE listing_id = $1 ORDER BY night", listing.id
        )
        return [(row["held"], row["booked"]) for row in rows]

    async def claims(self, order_id: str) -> int:
        """How many nights of pets an order has claimed."""
        rows = await self.system.fetch(
            "pet", "SELECT count(*) AS n FROM claimed_nights WHERE order_id = $1", UUID(order_id)
        )
        return int(rows[0]["n"])

    async def status(self, order_id: str) -> tuple[int, int]:
        """The status of an order: its own, and the copy in the provider's index."""
        own = await self.system.fetch_all("order", "SELECT status FROM orders WHERE id = $1", UUID(order_id))
        copy = await self.system.fetch_all(
            "order", "SELECT status FROM provider_orders WHERE order_id = $1", UUID(order_id)
        )
        return int(own[0]["status"]), int(copy[0]["status"])

    async def messages(self, *recipients: Person) -> list[dict[str, Any]]:
        """What lies in the notification queue for these people."""
        client: Redis = Redis.from_url(self.system.redis_url)
        try:
            raw = await client.hvals("dramatiq:notification.msgs")
        finally:
            await client.aclose()
        wanted = {str(person.id) for person in recipients}
        sent = [json.loads(message)["kwargs"] for message in raw]
        return [message for message in sent if message["recipient"] in wanted]

    async def rows(self) -> dict[str, int]:
        """How many rows there are in every table that a booking writes."""
        counts: dict[str, int] = {}
        for service, tables in {
            "order": ("orders", "order_details", "order_events", "provider_orders"),
            "capacity": ("holds",),
            "pet": ("claims", "claimed_nights"),
        }.items():
            for table in tables:
                found = await self.system.fetch_all(service, f"SELECT count(*) AS n FROM {table}")
                counts[f"{service}.{table}"] = sum(row["n"] for row in found)
        return counts

    async def audit(self) -> None:
        """What must hold over all services once everything is quiet."""
        await self.system.quiet()
        orders = await self.system.as_service("order", "admin").get("/internal/consistency")
        assert orders.status == 200, orders
        for figure in ("orders_without_index", "index_status_differs", "index_without_order"):
            assert orders.body[figure] == 0, orders.body
        capacity = await self.system.as_service("capacity", "admin").get("/internal/consistency")
        assert (capacity.body["nights_over_total"], capacity.body["drift"]) == (0, 0), capacity.body
        payment = await self.system.as_service("payment", "admin").get("/internal/consistency")
        assert (payment.body["ledger_sum_cents"], payment.body["wallets_wrong"]) == (0, 0), payment.body


NEVER_S = 1e6


@asynccontextmanager
async def running_market(
    postgres: TestPostgres,
    valkey: str,
    folder: Path,
    *,
    also: Sequence[str] = (),
    outside: Outside | None = None,
    **overrides: Any,
) -> AsyncIterator[Market]:
    """A marketplace of its own, with the services `also` beside its own; `overrides` are settings of all of them.

    Its sweeper sleeps, unless the services run `outside` (see running_system).
    """
    listings: dict[UUID, Listing] = {}
    users: dict[UUID, int] = {}

    def boarding(settings: Settings) -> Litestar:
        @get("/internal/listings/{listing_id:uuid}")
        async def listing(listing_id: UUID) -> dict[str, Any]:
            found = listings[listing_id]
            return {
                "id": str(found.id),
                "provider_id": str(found.provider.id),
                "audit_status": found.audit_status,
                "title": "阳光宠物之家",
            }

        return Litestar([listing], openapi_config=None)

    def user(settings: Settings) -> Litestar:
        @get("/internal/users/{user_id:uuid}")
        async def person(user_id: UUID) -> dict[str, Any]:
            return {"id": str(user_id), "username": "x", "name": "x", "status": users.get(user_id, 1)}

        return Litestar([person], openapi_config=None)

    async with running_system(
        postgres,
        valkey,
        folder,
        services=["order", "capacity", "pet", "payment", *also],
        stand_ins={"boarding": boarding, "user": user},
        overrides=overrides,
        app_options={"order": {"sweep_interval_s": NEVER_S}},
        outside=outside,
    ) as system:
        yield Market(system, listings, users)


async def at_once(*calls: Any) -> list[Answer]:
    """All answers of calls made at the same time."""
    return list(await asyncio.gather(*calls))
