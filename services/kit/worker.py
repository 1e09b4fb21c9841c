"""The worker: processes the messages of any number of services, in one process, on one event loop.

Actors are coroutines. Dramatiq's threads only carry them; the services' runtimes live on Dramatiq's event loop.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import dramatiq
import structlog
from dramatiq.asyncio import get_event_loop_thread
from dramatiq.middleware import Middleware, MiddlewareError

from services.kit.broker import make_broker
from services.kit.runtime import Runtime

THREADS = 8
STOP_TIMEOUT_MS = 15_000

Declare = Callable[[Runtime, dramatiq.Broker], None]
"""Declares a service's actors on the broker: `services.<name>.worker.declare`."""

log = structlog.get_logger(__name__)


class RuntimesMiddleware(Middleware):
    """Starts the runtimes on the worker's loop before the first message, and stops them after the last."""

    def __init__(self, runtimes: Sequence[Runtime]) -> None:
        self._runtimes = runtimes

    def before_worker_boot(self, broker: dramatiq.Broker, worker: dramatiq.Worker) -> None:
        """Raises MiddlewareError when a runtime does not start, so that the worker does not either."""
        try:
            for runtime in self._runtimes:
                _run(runtime.start())
        except Exception as error:
            log.exception("worker.not_started")
            raise MiddlewareError(f"the worker did not start: {error}") from error

    def after_worker_shutdown(self, broker: dramatiq.Broker, worker: dramatiq.Worker) -> None:
        """The actors have ended; the loop is still there."""
        for runtime in self._runtimes:
            _run(runtime.stop())


def run_workers(redis_url: str, parts: Sequence[tuple[Runtime, Declare]], stop: threading.Event) -> None:
    """Processes messages until `stop` is set, then finishes what is running and closes everything.

    Raises MiddlewareError when a runtime does not start.
    """
    broker = make_broker(redis_url, processing=True)
    # After AsyncIO: its loop is there when the runtimes start, and still when they stop.
    broker.add_middleware(RuntimesMiddleware([runtime for runtime, _ in parts]))
    for runtime, declare in parts:
        declare(runtime, broker)
    worker = dramatiq.Worker(broker, worker_threads=THREADS)
    try:
        worker.start()
        log.info("worker.ready", queues=sorted(broker.get_declared_queues()))
        stop.wait()
    finally:
        worker.stop(timeout=STOP_TIMEOUT_MS)
        log.info("worker.stopped")
        broker.close()


def _run(work: Coroutine[Any, Any, None]) -> None:
    loop = get_event_loop_thread()
    if loop is None:
        raise RuntimeError("the worker's event loop is not running")
    loop.run_coroutine(work)
