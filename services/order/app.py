"""The order service's web process."""

from __future__ import annotations

from litestar import Litestar
from litestar.di import Provide

from services.kit.app import build_app
from services.kit.clock import Clock, system_clock
from services.kit.runtime import Runtime
from services.kit.settings import Settings
from services.order.config import MONTHS_INTERVAL_S, SPEC, SWEEP_INTERVAL_S
from services.order.controllers import InternalController, OrderController
from services.order.use_cases import Booking, Care, Changes, Desk, Expiry, Figures, Reading
from services.order.use_cases.months import Months


def create_app(
    settings: Settings, *, clock: Clock = system_clock, sweep_interval_s: float = SWEEP_INTERVAL_S
) -> Litestar:
    """The service as an ASGI application. Nothing connects before it starts."""
    runtime = Runtime(SPEC, settings, clock=clock)
    desk = Desk(runtime)
    expiry, months = Expiry(desk), Months(runtime)

    async def sweep() -> None:
        await expiry.sweep()

    runtime.every(sweep_interval_s, sweep, "order.sweep")
    runtime.every(MONTHS_INTERVAL_S, months.ensure, "order.months")
    app = build_app(
        runtime,
        [OrderController, InternalController],
        {
            "booking": _given(Booking(desk)),
            "changes": _given(Changes(desk)),
            "care": _given(Care(desk)),
            "reading": _given(Reading(desk)),
            "figures": _given(Figures(desk)),
        },
    )
    # After the runtime has connected and before the first request: there is a partition for it.
    app.on_startup.append(months.ensure)
    return app


def _given(value: object) -> Provide:
    return Provide(lambda: value, sync_to_thread=False)
