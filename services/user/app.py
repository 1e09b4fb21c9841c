"""The composition root of the user service's web process."""

from __future__ import annotations

from litestar import Litestar
from litestar.di import Provide

from services.kit.app import build_app
from services.kit.runtime import Runtime
from services.kit.settings import Settings
from services.user.config import SPEC
from services.user.controllers import InternalUserController, UserController
from services.user.use_cases import Passwords, Users


def create_app(settings: Settings) -> Litestar:
    """The application; nothing connects before it is started."""
    runtime = Runtime(SPEC, settings)
    users = Users(runtime, Passwords())
    runtime.at_start(users.ensure_admin)
    return build_app(
        runtime,
        [UserController, InternalUserController],
        {"users": Provide(lambda: users, sync_to_thread=False)},
    )
