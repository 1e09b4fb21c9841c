"""The composition root of the notification service's web process."""

from __future__ import annotations

from litestar import Litestar
from litestar.di import Provide

from services.kit.app import build_app
from services.kit.runtime import Runtime
from services.kit.settings import Settings
from services.notification.config import SPEC
from services.notification.controllers import NotificationController
from services.notification.use_cases import Notifications


def create_app(settings: Settings) -> Litestar:
    """The application; nothing connects before it is started."""
    runtime = Runtime(SPEC, settings)
    notifications = Notifications(runtime)
    return build_app(
        runtime, [NotificationController], {"notifications": Provide(lambda: notifications, sync_to_thread=False)}
    )
