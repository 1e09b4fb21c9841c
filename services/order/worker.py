"""The order service's part of a worker process."""

from __future__ import annotations

import dramatiq

from services.kit.runtime import Runtime
from services.order.actors import declare_expire
from services.order.use_cases import Desk, Expiry


def declare(runtime: Runtime, broker: dramatiq.Broker) -> None:
    """Declares the service's actors on `broker`."""
    declare_expire(broker, Expiry(Desk(runtime)))
