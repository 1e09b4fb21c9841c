"""The worker: processes the messages of any number of services, in one process, on one event loop.

Actors are coroutines. Dramatiq's threads only carry them; the services' runtimes live on Dramatiq's event loop.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import dramatiq
import structlog
from dramatiq.asyncio import get_event_loop_thread

from services.kit.broker import make_broker
from services.kit.runtime import Runtime

THREADS = 8
STOP_TIMEOUT_MS = 15_000

Declare = Callable[[Runtime, dramatiq.Broker], None]
"""Declares a service's actors on the broker: `services.<name>.worker.declare`."""

log = structlog.get_logger(__name__)


def run_workers(redis_url: str, parts: Sequence[tuple[Runtime, Declare]], stop: threading.Event) -> None:
    """Processes messages until `stop` is set, then finishes what is running and closes everything."""
    broker = make_broker(redis_url, processing=True)
    for runtime, declare in parts:
        declare(runtime, broker)
    worker = dramatiq.Worker(broker, worker_threads=THREADS)
    worker.start()
    loop: Any = get_event_loop_thread()
    try:
        for runtime, _ in parts:
            loop.run_coroutine(runtime.start())
        log.info("worker.ready", queues=sorted(broker.get_declared_queues()))
        stop.wait()
    finally:
        # The worker first: actors still need the runtimes, and the runtimes need the loop.
        worker.stop(timeout=STOP_TIMEOUT_MS)
        log.info("worker.stopped")
        broker.close()
