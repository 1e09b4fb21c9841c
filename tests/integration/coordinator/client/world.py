"""What the client's tests stand on: real databases with accounts, and a real coordinator process."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from coordinator.client import (
    BranchConnection,
    Coordinator,
    Resource,
    SigningKey,
    TokenMaker,
    TokenVerifier,
    branch_connect_args,
)
from coordinator.resource import install
from tests.support.servers import TestPostgres, free_port

ROOT = Path(__file__).resolve().parents[4]
START_TIMEOUT_S = 20
QUIET_TIMEOUT_S = 20
ACCOUNTS = 6
OPENING = 100

SCHEMA = """
CREATE TABLE account (id int PRIMARY KEY, balance bigint NOT NULL CHECK (balance >= 0));
CREATE TABLE secret (id int PRIMARY KEY);
"""

STOCK = f"INSERT INTO account SELECT id, {OPENING} FROM generate_series(1, {ACCOUNTS}) AS id"

EVICT = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
"""

# As a replica, because the triggers rightly refuse to truncate under undo rows.
CLEAN = """
SET session_replication_role = replica;
TRUNCATE account, secret, at."public.account", at.branch, at.lease;
SET session_replication_role = origin;
"""


class TcProcess:
    """The coordinator as a process on a port of its own; can be killed and started again on the same store."""

    def __init__(self, store: str, folder: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._folder = folder
        self._store = store
        self._process: subprocess.Popen[bytes] | None = None
        self.keys = {
            name: SigningKey.generate(name) for name in ("coordinator", "bank", "shop", "operator", "stranger")
        }
        known = [key.public_jwk() for name, key in self.keys.items() if name != "stranger"]
        (folder / "keys.json").write_text(json.dumps({"keys": known}))
        (folder / "coordinator.jwk").write_text(self.keys["coordinator"].private_jwk())
        self.public_keys = {key["kid"]: self.keys[key["kid"]].key.public_key() for key in known}

    def tokens(self, owner: str = "bank") -> TokenMaker:
        """What signs as `owner`."""
        return TokenMaker(owner, self.keys[owner])

    def verifier(self, audience: str = "bank") -> TokenVerifier:
        """What checks tokens for `audience`."""
        return TokenVerifier(audience, self.public_keys)

    def start(self) -> None:
        """Starts it and waits until it is ready."""
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "PAWSTAY_DATABASE_URL": self._store,
            "PAWSTAY_KEY_FILE": str(self._folder / "coordinator.jwk"),
            "PAWSTAY_KEYS_FILE": str(self._folder / "keys.json"),
            "PAWSTAY_PORT": str(self.port),
            "PAWSTAY_LOG_LEVEL": "WARNING",
        }
        with (self._folder / "tc.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "coordinator.tc"], env=environment, stdout=log, stderr=log
            )
        until = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                with urllib.request.urlopen(f"{self.url}/ready", timeout=1):  # noqa: S310 - http, made above
                    return
            except OSError:
                if time.monotonic() > until or self._process.poll() is not None:
                    raise AssertionError((self._folder / "tc.log").read_text()) from None
                time.sleep(0.05)

    def kill(self) -> None:
        """Ends it with SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    stop = kill


@dataclass
class Bank:
    """East is worked with through SQLAlchemy, west through bare asyncpg."""

    coordinator: Coordinator
    engine: AsyncEngine
    pool: asyncpg.Pool
    east: Resource[AsyncSession]
    west: Resource[Any]
    east_dsn: str
    west_dsn: str
    tc: TcProcess

    async def balance(self, dsn: str, account: int = 1) -> int:
        """A balance, read past all locks."""
        return int((await self._read(dsn, f"SELECT balance FROM account WHERE id = {account}"))[0][0])

    async def _read(self, dsn: str, query: str) -> list[Any]:
        connection = await asyncpg.connect(dsn)
        try:
            return list(await connection.fetch(query))
        finally:
            await connection.close()

    async def open_branches(self, dsn: str) -> int:
        """Branches whose decision was not followed yet."""
        return int((await self._read(dsn, "SELECT count(*) FROM at.branch WHERE state = 0"))[0][0])

    async def locks(self, dsn: str) -> int:
        """Global locks."""
        return int((await self._read(dsn, "SELECT count(*) FROM at.locks()"))[0][0])

    async def quiet(self) -> None:
        """Waits until neither database has an open branch or a lock."""
        await until(self._is_quiet, "an open branch or a lock is left")

    async def _is_quiet(self) -> bool:
        for dsn in (self.east_dsn, self.west_dsn):
            if await self.open_branches(dsn) or await self.locks(dsn):
                return False
        return True

    async def transfer(self, amount: int, account: int = 1) -> None:
        """Takes from east, gives to west, as one global transaction."""
        async with self.coordinator.global_transaction("transfer"):
            await self.coordinator.run_branch(self.east, add_east(-amount, account))
            await self.coordinator.run_branch(self.west, add_west(amount, account))


async def until(holds: Callable[[], Awaitable[bool]], otherwise: str) -> None:
    """Waits until `holds`; fails with `otherwise` after QUIET_TIMEOUT_S."""
    end = time.monotonic() + QUIET_TIMEOUT_S
    while not await holds():
        assert time.monotonic() < end, otherwise
        await asyncio.sleep(0.02)


def add_east(amount: int, account: int = 1) -> Callable[[AsyncSession], Awaitable[int]]:
    """Work for a SQLAlchemy branch: changes a balance and returns the new one."""

    async def work(session: AsyncSession) -> int:
        changed = await session.execute(
            text("UPDATE account SET balance = balance + :amount WHERE id = :id RETURNING balance"),
            {"amount": amount, "id": account},
        )
        return int(changed.scalar_one())

    return work


def add_west(amount: int, account: int = 1) -> Callable[[Any], Awaitable[int]]:
    """Work for an asyncpg branch: changes a balance and returns the new one."""

    async def work(connection: Any) -> int:
        return int(
            await connection.fetchval(
                "UPDATE account SET balance = balance + $1 WHERE id = $2 RETURNING balance", amount, account
            )
        )

    return work


async def take_office(postgres: TestPostgres) -> str:
    """A database as new: one that another test has given back, or one that is made now."""
    if _vacant:
        return _vacant.pop()
    dsn = await asyncio.to_thread(postgres.create_database)
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(SCHEMA)
        await connection.execute(STOCK)
        await install(connection, managed=["account"])
    finally:
        await connection.close()
    return dsn


async def give_back_office(dsn: str) -> None:
    """Throws everybody out and makes the database as new: quicker than a fresh one."""
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(EVICT)
        await connection.execute(CLEAN)
        await connection.execute(STOCK)
    finally:
        await connection.close()
    _vacant.append(dsn)


_vacant: list[str] = []


@asynccontextmanager
async def open_bank(postgres: TestPostgres, tc: TcProcess, *, entered: bool = True) -> AsyncIterator[Bank]:
    """A bank of two fresh databases."""
    east_dsn, west_dsn = [await take_office(postgres) for _ in range(2)]
    engine = create_async_engine(
        east_dsn.replace("postgresql://", "postgresql+asyncpg://"),
        connect_args=branch_connect_args(),
        pool_size=10,
        max_overflow=0,
    )
    pool = await asyncpg.create_pool(west_dsn, connection_class=BranchConnection, min_size=1, max_size=10)
    suffix = secrets.token_hex(4)  # resources are named once per coordinator, and the tests share one
    coordinator = Coordinator([tc.url], tc.tokens(), tc.verifier())
    east = coordinator.resource(f"east-{suffix}", engine)
    west = coordinator.resource(f"west-{suffix}", pool)
    bank = Bank(coordinator, engine, pool, east, west, east_dsn, west_dsn, tc)
    try:
        if entered:
            async with coordinator:
                yield bank
        else:
            yield bank
    finally:
        await engine.dispose()
        pool.terminate()
        for dsn in (east_dsn, west_dsn):
            await give_back_office(dsn)
