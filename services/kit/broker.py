"""The Dramatiq broker: Redis, built in the composition root and passed on, never a global."""

from __future__ import annotations

from typing import Any

import dramatiq
import structlog
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import AgeLimit, AsyncIO, Callbacks, Middleware, Retries, ShutdownNotifications, TimeLimit

from coordinator.client.contrib.dramatiq import TransactionMiddleware
from services.kit.requests import trace_id_of

log = structlog.get_logger("message")

HEARTBEAT_TIMEOUT_MS = 10_000
"""After this long without a sign, a dead worker's messages are given to another."""
MAINTENANCE_CHANCE = 20_000
"""Of a million commands, how many look for dead workers: often enough that a quiet queue finds them too."""
MAX_RETRIES = 2_000
"""About a day of retries: a message outlives what it needs being away for a night."""
MIN_BACKOFF_MS = 250
MAX_BACKOFF_MS = 60_000
TIME_LIMIT_MS = 60_000


class ContextMiddleware(Middleware):
    """Binds the trace id of the request that caused a message to the log lines of its processing."""

    def before_process_message(self, broker: dramatiq.Broker, message: dramatiq.MessageProxy) -> None:
        """Runs in the worker's thread; the actor's coroutine inherits the context."""
        structlog.contextvars.bind_contextvars(
            service=message.queue_name,
            trace_id=message.options.get("trace_id") or trace_id_of(None),
            message_id=message.message_id,
            actor=message.actor_name,
        )

    def after_process_message(
        self, broker: dramatiq.Broker, message: dramatiq.MessageProxy, *, result: Any = None, exception: Any = None
    ) -> None:
        """Says how it ended, and forgets what was bound."""
        log.info("message", outcome="processed" if exception is None else type(exception).__name__)
        structlog.contextvars.clear_contextvars()


def make_broker(redis_url: str, *, processing: bool) -> RedisBroker:
    """A broker; `processing` adds what only a worker needs."""
    middleware: list[Middleware] = [
        ContextMiddleware(),  # first in, last out: what the others say of a message carries its trace
        AgeLimit(),
        TimeLimit(time_limit=TIME_LIMIT_MS),
        ShutdownNotifications(),
        Callbacks(),
        Retries(max_retries=MAX_RETRIES, min_backoff=MIN_BACKOFF_MS, max_backoff=MAX_BACKOFF_MS),
        TransactionMiddleware(),
    ]
    if processing:
        middleware.append(AsyncIO())
    return RedisBroker(
        url=redis_url,
        middleware=middleware,
        heartbeat_timeout=HEARTBEAT_TIMEOUT_MS,
        maintenance_chance=MAINTENANCE_CHANCE,
    )
