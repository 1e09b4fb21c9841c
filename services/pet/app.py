"""The pet service's composition root."""

from __future__ import annotations

from litestar import Litestar
from litestar.di import Provide

from services.kit.app import build_app
from services.kit.clock import Clock, system_clock
from services.kit.runtime import Runtime
from services.kit.settings import Settings
from services.pet.config import SPEC
from services.pet.controllers import InternalPetController, PetController
from services.pet.use_cases import ClaimUseCases, PetUseCases


def create_app(settings: Settings, *, clock: Clock = system_clock) -> Litestar:
    """The service's web process. Nothing connects before it starts."""
    runtime = Runtime(SPEC, settings, clock=clock)
    pets = PetUseCases(runtime.store, runtime.clock, runtime.cursors)
    claims = ClaimUseCases(runtime.store)
    return build_app(
        runtime,
        [PetController, InternalPetController],
        {
            "pets": Provide(lambda: pets, sync_to_thread=False),
            "claims": Provide(lambda: claims, sync_to_thread=False),
        },
    )
