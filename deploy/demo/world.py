"""What the story touches: the gateway as its people see it, and the databases as a sceptic sees them."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import aiohttp
import asyncpg
from asyncpg.exceptions import InterfaceError

from deploy.embedded.problems import RuntimeProblem

CALL_TIMEOUT_S = 30.0
QUIET_TIMEOUT_S = 30.0
POLL_S = 0.1
PATIENCE_S = 45.0
"""How long a person of the story asks again while something is away."""
RETRY_PAUSE_S = 0.4
NO_ANSWER = 0
LATER_STATUSES = frozenset({NO_ANSWER, 429, 502, 503, 504})
LATER_CODES = frozenset({"lock-busy", "idempotency-in-flight", "tx-ended", "branch-repeated"})
DONE_BEFORE = frozenset({"illegal-transition", "illegal-status", "already-reviewed", "login-taken"})
STEADY_S = 1.0
DATABASE_AWAY = (OSError, asyncpg.PostgresConnectionError, asyncpg.OperatorInterventionError, InterfaceError)
COORDINATOR_AWAY = (RuntimeProblem, LookupError, ProcessLookupError)

T = TypeVar("T")


class Failed(Exception):
    """A check of the story did not hold: says what was expected and what was seen."""


class DemoSystem(Protocol):
    """The running system, as far as the story needs to reach behind the gateway."""

    gateway_url: str
    admin_password: str

    def databases(self) -> Mapping[str, str]:
        """Every database by name (`capacity`, `order@shard-0`, ...) with an administrator's DSN."""

    def coordinator_pid(self) -> int:
        """The process id of the coordinator that runs now. Raises LookupError while there is none."""

    async def coordinator_json(self, path: str) -> Any:
        """What the coordinator answers an operator at `path`. Raises RuntimeProblem while it does not answer."""

    async def restart_with(self, environment: Mapping[str, str]) -> None:
        """Starts the service processes anew with `environment` on top of theirs; ready when it returns."""


@dataclass(frozen=True)
class Answer:
    """An HTTP answer: status, decoded body, headers."""

    status: int
    body: Any
    headers: Mapping[str, str]

    @property
    def code(self) -> str:
        """The problem's code, empty where there is none."""
        return str(self.body.get("code", "")) if isinstance(self.body, dict) else ""

    @property
    def is_for_later(self) -> bool:
        """Whether the same question may be answered otherwise in a moment."""
        return self.status in LATER_STATUSES or self.code in LATER_CODES


@dataclass
class Person:
    """Somebody with an account, as seen through the gateway."""

    api: Api
    name: str
    user_id: str = ""
    token: str = ""

    async def call(self, method: str, path: str, body: Any = None, *, key: str | None = None) -> Answer:
        """One request with the person's token; `key` is the Idempotency-Key."""
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        if key is not None:
            headers["Idempotency-Key"] = key
        return await self.api.call(method, path, body, headers)

    async def must(self, method: str, path: str, body: Any = None, *, keyed: bool = False) -> Any:
        """The body of an answer that must be a success. Raises Failed with the problem otherwise.

        Asks again while a part of the system is away, as a good client does: with the same Idempotency-Key where
        there is one; else what the first try may have done already (`DONE_BEFORE`) counts as done, with an empty body.
        """
        key = secrets.token_hex(16) if keyed else None
        deadline = time.monotonic() + PATIENCE_S
        tries = 0
        while True:
            tries += 1
            answer = await self.call(method, path, body, key=key)
            if 200 <= answer.status < 300:
                return answer.body
            if tries > 1 and answer.code in DONE_BEFORE:
                return {}
            if not answer.is_for_later or time.monotonic() > deadline:
                raise Failed(f"{self.name}: {method} {path} answered {answer.status}: {answer.body}")
            await asyncio.sleep(RETRY_PAUSE_S)


@dataclass
class Api:
    """The gateway."""

    url: str
    session: aiohttp.ClientSession

    async def call(self, method: str, path: str, body: Any, headers: Mapping[str, str]) -> Answer:
        """One request; an answer that is not JSON is given as text, none at all as status NO_ANSWER."""
        timeout = aiohttp.ClientTimeout(total=CALL_TIMEOUT_S)
        try:
            async with self.session.request(
                method, f"{self.url}{path}", json=body, headers=dict(headers), timeout=timeout
            ) as response:
                text = await response.text()
                try:
                    decoded = await response.json(content_type=None) if text else None
                except ValueError:
                    decoded = text
                return Answer(response.status, decoded, response.headers.copy())
        except (aiohttp.ClientError, ConnectionError, TimeoutError) as error:
            return Answer(NO_ANSWER, f"no answer: {type(error).__name__}", {})


@dataclass(frozen=True)
class Lock:
    """A row that an undecided global transaction holds."""

    database: str
    table: str
    key: str
    xid: str


@dataclass
class Databases:
    """All databases of the system, read as an administrator reads them."""

    dsns: Mapping[str, str]
    _connections: dict[str, Any] = field(default_factory=dict)

    async def connection(self, name: str) -> Any:
        """A connection to one database, kept for the run."""
        found = self._connections.get(name)
        if found is None or found.is_closed():
            connect: Any = asyncpg.connect
            found = self._connections[name] = await connect(self.dsns[name])
        return found

    async def close(self) -> None:
        """Closes all of them."""
        for connection in self._connections.values():
            await connection.close()

    async def rows(self, name: str, query: str, *values: object) -> list[asyncpg.Record]:
        """Rows of one database; waits for a server that is being started again."""

        async def ask() -> list[asyncpg.Record]:
            try:
                return list(await (await self.connection(name)).fetch(query, *values))
            except DATABASE_AWAY:
                self._connections.pop(name, None)
                raise

        return await patiently(ask, DATABASE_AWAY)

    async def locks(self) -> dict[str, int]:
        """Global locks (and undo rows: they are the same rows) in every database that has any."""
        found = {}
        for name in self.dsns:
            count = (await self.rows(name, "SELECT count(*) AS n FROM at.locks(NULL)"))[0]["n"]
            if count:
                found[name] = count
        return found

    async def locked_rows(self) -> list[Lock]:
        """Every row that an undecided global transaction holds, in every database."""
        query = "SELECT table_name, key::text AS key, xid::text AS xid FROM at.locks(NULL)"
        return [
            Lock(name, row["table_name"], row["key"], row["xid"])
            for name in self.dsns
            for row in await self.rows(name, query)
        ]

    async def fingerprint(self) -> dict[str, str]:
        """A digest of the rows of every table in every database: equal digests, equal rows."""
        digests: dict[str, str] = {}
        for name in self.dsns:
            tables = await self.rows(
                name,
                """
                SELECT c.oid::regclass::text AS table_name FROM pg_class AS c
                WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r'
                ORDER BY 1
                """,
            )
            for table in tables:
                # The names come from the catalogue, quoted by regclass.
                query = (
                    "SELECT coalesce(md5(string_agg(t::text, E'\\n' ORDER BY t::text)), 'empty') AS digest "
                    f"FROM {table['table_name']} AS t"
                )
                digests[f"{name}.{table['table_name']}"] = (await self.rows(name, query))[0]["digest"]
        return digests

    async def steady_fingerprint(self) -> dict[str, str]:
        """A fingerprint after everybody has been told what there is to tell: every outbox empty, two in a row equal."""
        seen: dict[str, str] = {}

        async def same_again() -> bool:
            nonlocal seen
            before, seen = seen, await self.fingerprint()
            await asyncio.sleep(STEADY_S)
            told = all(digest == "empty" for name, digest in seen.items() if name.endswith(".outbox"))
            return told and before == seen

        await eventually(same_again, "the rows come to rest")
        return seen


async def patiently(ask: Callable[[], Awaitable[T]], away: tuple[type[Exception], ...]) -> T:
    """What `ask` answers, asked again for PATIENCE_S while it raises one of `away`; then that is raised."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return await ask()
        except away:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(RETRY_PAUSE_S)


def difference(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """The tables whose rows differ."""
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


async def eventually(check: Callable[[], Awaitable[bool]], what: str, *, timeout_s: float = QUIET_TIMEOUT_S) -> float:
    """Waits until `check` holds; returns after how many seconds. Raises Failed with `what` when it never does."""
    started = time.monotonic()
    while not await check():
        if time.monotonic() - started > timeout_s:
            raise Failed(f"after {timeout_s:.0f} s still not: {what}")
        await asyncio.sleep(POLL_S)
    return round(time.monotonic() - started, 2)


def unique(prefix: str) -> str:
    """A name that no earlier run has used."""
    return f"{prefix}_{hashlib.sha256(secrets.token_bytes(16)).hexdigest()[:10]}"
