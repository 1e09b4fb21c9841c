"""The composition root of the boarding service's web process."""

from __future__ import annotations

from litestar import Litestar
from litestar.di import Provide

from services.boarding.clients import Others
from services.boarding.config import SPEC
from services.boarding.controllers import BoardingController, InternalListingController
from services.boarding.use_cases import Listings, Quoting, Searching
from services.kit.app import build_app
from services.kit.runtime import Runtime
from services.kit.settings import Settings


def create_app(settings: Settings) -> Litestar:
    """The application; nothing connects before it is started."""
    runtime = Runtime(SPEC, settings)
    others = Others(runtime)
    listings, searching, quoting = Listings(runtime, others), Searching(runtime, others), Quoting(runtime, others)
    return build_app(
        runtime,
        [BoardingController, InternalListingController],
        {
            "listings": Provide(lambda: listings, sync_to_thread=False),
            "searching": Provide(lambda: searching, sync_to_thread=False),
            "quoting": Provide(lambda: quoting, sync_to_thread=False),
        },
    )
