"""All services, for the runtime, the gateway and the documents."""

from __future__ import annotations

from services.admin.config import SPEC as ADMIN
from services.boarding.config import SPEC as BOARDING
from services.capacity.config import SPEC as CAPACITY
from services.kit.spec import ServiceSpec
from services.notification.config import SPEC as NOTIFICATION
from services.order.config import SPEC as ORDER
from services.payment.config import SPEC as PAYMENT
from services.pet.config import SPEC as PET
from services.review.config import SPEC as REVIEW
from services.user.config import SPEC as USER

SERVICES: tuple[ServiceSpec, ...] = (USER, PET, BOARDING, ORDER, REVIEW, NOTIFICATION, ADMIN, PAYMENT, CAPACITY)
COORDINATOR_PORT = 8090


def spec_of(name: str) -> ServiceSpec:
    """The service called `name`. Raises KeyError when there is none."""
    return {spec.name: spec for spec in SERVICES}[name]
