"""What the pet service is, and its constants."""

from __future__ import annotations

from datetime import timedelta

from services.kit.spec import ServiceSpec

SPEC = ServiceSpec(
    name="pet",
    port=8082,
    purpose="Pets, their health and care plans, and which pet is where on which night.",
    storage="own",
    managed=("pets", "vaccinations", "care_plans", "claims", "claimed_nights"),
    calls=(),
    has_worker=False,
)

PETS_PER_QUESTION_MAX = 20
"""Pets in one claim, or in one question of another service."""
STAY_NIGHTS_MAX = 366
VACCINATIONS_MAX = 100
"""Vaccinations that one pet may have on record."""
ZONE_MARGIN = timedelta(days=1)
"""Yesterday in UTC is still tonight somewhere."""
