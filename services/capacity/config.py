"""What the capacity service is, and its constants."""

from __future__ import annotations

from datetime import timedelta

from services.kit.spec import ServiceSpec

SPEC = ServiceSpec(
    name="capacity",
    port=8089,
    purpose="How many places a listing has on each night, held and booked.",
    storage="own",
    managed=("pools", "nights", "holds"),
    calls=(),
    has_worker=False,
)

LISTINGS_MAX = 500
"""Listings in one question about availability."""
RANGE_NIGHTS_MAX = 366
"""Nights in one answer about availability, or in one stay."""
ZONE_MARGIN = timedelta(days=1)
"""Yesterday in UTC is still tonight somewhere: a total may not shrink below what such a night holds."""
