"""The composition root of the admin service's web process."""

from __future__ import annotations

from litestar import Litestar
from litestar.di import Provide

from services.admin.clients import Others
from services.admin.config import SPEC
from services.admin.controllers import AdminController
from services.admin.use_cases import Administration
from services.kit.app import build_app
from services.kit.runtime import Runtime
from services.kit.settings import Settings


def create_app(settings: Settings) -> Litestar:
    """The application; nothing connects before it is started."""
    runtime = Runtime(SPEC, settings)
    administration = Administration(runtime, Others(runtime))
    return build_app(
        runtime, [AdminController], {"administration": Provide(lambda: administration, sync_to_thread=False)}
    )
