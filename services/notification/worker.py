"""The composition root of the notification service's worker."""

from __future__ import annotations

import dramatiq

from services.kit.runtime import Runtime
from services.notification.actors import declare_actors
from services.notification.use_cases import Notifications


def declare(runtime: Runtime, broker: dramatiq.Broker) -> None:
    """Declares the service's actors over `runtime`."""
    declare_actors(broker, Notifications(runtime))
