"""The payment service's composition root."""

from __future__ import annotations

from litestar import Litestar
from litestar.di import Provide

from services.kit.app import build_app
from services.kit.clock import Clock, system_clock
from services.kit.runtime import Runtime
from services.kit.settings import Settings
from services.payment.config import SPEC
from services.payment.controllers import InternalPaymentController, PaymentController
from services.payment.use_cases import PaymentUseCases


def create_app(settings: Settings, *, clock: Clock = system_clock) -> Litestar:
    """The service's web process. Nothing connects before it starts."""
    runtime = Runtime(SPEC, settings, clock=clock)
    use_cases = PaymentUseCases(runtime.store, runtime.clock, runtime.cursors)
    return build_app(
        runtime,
        [PaymentController, InternalPaymentController],
        {"use_cases": Provide(lambda: use_cases, sync_to_thread=False)},
    )
