"""The capacity service's composition root."""

from __future__ import annotations

from litestar import Litestar
from litestar.di import Provide

from services.capacity.config import SPEC
from services.capacity.controllers import CapacityController, InternalCapacityController
from services.capacity.use_cases import CapacityUseCases
from services.kit.app import build_app
from services.kit.clock import Clock, system_clock
from services.kit.runtime import Runtime
from services.kit.settings import Settings


def create_app(settings: Settings, *, clock: Clock = system_clock) -> Litestar:
    """The service's web process. Nothing connects before it starts."""
    runtime = Runtime(SPEC, settings, clock=clock)
    use_cases = CapacityUseCases(runtime.store, runtime.clock)
    return build_app(
        runtime,
        [CapacityController, InternalCapacityController],
        {"use_cases": Provide(lambda: use_cases, sync_to_thread=False)},
    )
