"""What a person is told without asking: each cause once, as a line in the log, a figure, and a call of a webhook.

Alerts stand in the store, so that one replica tells for all, and one that dies while it tells is followed by another.
Sending never holds anything else up.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import time
from collections import Counter, deque
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import aiohttp
import asyncpg
import msgspec
import structlog

from coordinator.tc.config import Limits
from coordinator.tc.store import CLASH_ERRORS, Diverged, Store, StoreUnavailable

DELIVER_INTERVAL_S = 0.5
"""Pause between two looks for alerts that are due."""

SIGNATURE_HEADER = "X-Coordinator-Signature"
"""``t=<seconds>,v1=<hex>``: HMAC-SHA256 with the secret over ``<seconds>.<body>``."""

_DIVERGED = """
INSERT INTO tc.alert (kind, subject, detail, next_send_at)
VALUES ('transaction.diverged', $1, $2, CASE WHEN $3::boolean THEN clock_timestamp() END)
ON CONFLICT (kind, subject) WHERE closed_at IS NULL DO NOTHING
"""

log = structlog.get_logger(__name__)


def signature_of(secret: str, body: bytes, now_s: int) -> str:
    """What the signature header of `body` says at `now_s`."""
    mac = hmac.new(secret.encode(), f"{now_s}.".encode() + body, hashlib.sha256)
    return f"t={now_s},v1={mac.hexdigest()}"


class Alerts:
    """The alerts of one replica: `look` opens and closes them, `deliver` calls the webhook."""

    def __init__(
        self, store: Store, limits: Limits, url: str | None, secret: str | None, dice: Callable[[], float]
    ) -> None:
        self.opened: Counter[str] = Counter()
        self.sent = 0
        self.failed = 0
        self._store = store
        self._limits = limits
        self._url = url
        self._secret = secret
        self._dice = dice
        self._diverged: deque[dict[str, Any]] = deque()
        self._http: aiohttp.ClientSession | None = None

    @property
    def sends(self) -> bool:
        """Whether there is a webhook to call."""
        return self._url is not None

    async def open(self) -> None:
        """Opens the HTTP client."""
        timeout = aiohttp.ClientTimeout(total=self._limits.webhook_timeout_s)
        self._http = aiohttp.ClientSession(timeout=timeout, cookie_jar=aiohttp.DummyCookieJar())

    async def close(self) -> None:
        """Closes the HTTP client; what is not sent yet is sent by another replica, or after the next start."""
        if self._http is not None:
            await self._http.close()

    def diverged(self, split: Diverged) -> None:
        """A resource did the opposite of a decision: told at once, and written down with the next look."""
        detail = {
            "xid": str(split.xid),
            "decision": split.decision.name,
            "resource": split.resource,
            "branches": [str(branch) for branch in split.branches],
        }
        self.tell("transaction.diverged", detail)
        if len(self._diverged) < self._limits.alerts_max:
            self._diverged.append(detail)

    async def look(self) -> None:
        """Opens what is due and closes what is over. Raises StoreUnavailable or one of CLASH_ERRORS."""
        while self._diverged:
            detail = self._diverged[0]
            found = (detail["xid"], json.dumps(detail), self.sends)
            await self._store.write(lambda c: c.execute(_DIVERGED, *found))  # noqa: B023 - awaited at once
            self._diverged.popleft()
        bounds = (timedelta(seconds=self._limits.unsettled_alert_s), timedelta(seconds=self._limits.silent_alert_s))
        statement = "SELECT * FROM tc.look_for_alerts($1, $2, $3, $4)"
        arguments = (*bounds, self._limits.alerts_max, self.sends)
        for row in await self._store.write(lambda c: c.fetch(statement, *arguments)):
            self.tell(row["kind"], json.loads(row["detail"]))

    def tell(self, kind: str, detail: dict[str, Any]) -> None:
        """Logs and counts an alert that was opened here."""
        self.opened[kind] += 1
        log.error(kind, alert=True, **detail)

    async def deliver(self) -> None:
        """Calls the webhook for what is due; runs for ever."""
        while True:
            await asyncio.sleep(DELIVER_INTERVAL_S)
            if not self.sends:
                continue
            try:
                lease = timedelta(seconds=self._limits.webhook_lease_s)
                arguments = (self._limits.webhook_at_once_max, lease)
                due = await self._store.write(lambda c: c.fetch("SELECT * FROM tc.alerts_due($1, $2)", *arguments))  # noqa: B023 - awaited at once
                await asyncio.gather(*(self._deliver_one(row) for row in due))
            except (StoreUnavailable, *CLASH_ERRORS) as error:
                log.warning("alert.postponed", error=str(error))

    async def _deliver_one(self, row: asyncpg.Record) -> None:
        problem = await self._post(_body(row))
        if problem is None:
            self.sent += 1
            statement = "UPDATE tc.alert SET sent_at = clock_timestamp(), next_send_at = NULL WHERE alert_id = $1"
            await self._store.write(lambda c: c.execute(statement, row["alert_id"]))
            return
        self.failed += 1
        delay_s = self._limits.webhook_retry.delay_s(row["attempts"], self._dice())
        said = log.warning if delay_s is not None else log.error
        event = "alert.webhook_failed" if delay_s is not None else "alert.webhook_given_up"
        said(event, kind=row["kind"], subject=row["subject"], attempts=row["attempts"], error=problem)
        statement = (
            "UPDATE tc.alert SET next_send_at = clock_timestamp() + make_interval(secs => $2::double precision)"
            " WHERE alert_id = $1 AND sent_at IS NULL"
        )
        await self._store.write(lambda c: c.execute(statement, row["alert_id"], delay_s))

    async def _post(self, body: bytes) -> str | None:
        """None when the webhook took it, else why not."""
        if self._http is None or self._url is None:
            return "the webhook is not open"
        headers = {"Content-Type": "application/json"}
        if self._secret is not None:
            headers[SIGNATURE_HEADER] = signature_of(self._secret, body, int(time.time()))
        try:
            async with self._http.post(self._url, data=body, headers=headers, allow_redirects=False) as response:
                return None if response.status // 100 == 2 else f"it answered {response.status}"
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            return f"{type(error).__name__}: {error}"


def _body(row: asyncpg.Record) -> bytes:
    return msgspec.json.encode(
        {
            "alert_id": row["alert_id"],
            "kind": row["kind"],
            "subject": row["subject"],
            "opened_ms": round(row["opened_at"].timestamp() * 1000),
            "attempt": row["attempts"],
            "detail": json.loads(row["detail"]),
        }
    )
