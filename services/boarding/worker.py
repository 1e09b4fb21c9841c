"""The composition root of the boarding service's worker."""

from __future__ import annotations

import dramatiq

from services.boarding.actors import declare_actors
from services.boarding.clients import Others
from services.boarding.use_cases import Listings
from services.kit.runtime import Runtime


def declare(runtime: Runtime, broker: dramatiq.Broker) -> None:
    """Declares the service's actors over `runtime`."""
    declare_actors(broker, Listings(runtime, Others(runtime)))
