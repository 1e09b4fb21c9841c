"""What the boarding service is, and its constants."""

from __future__ import annotations

from services.kit.spec import ServiceSpec

SPEC = ServiceSpec(
    name="boarding",
    port=8083,
    purpose="Listings: what providers offer, found, priced and quoted.",
    managed=("listings", "listing_details", "blocked_dates"),
    calls=("pet", "capacity"),
    has_worker=True,
)

QUEUE = "boarding"
QUOTE_KIND = "quote"
QUOTE_TTL_S = 600
"""How long a quote holds."""
TOTAL_MAX_CENTS = 1_000_000_000
"""The largest price of a stay: what the payment service moves in one transfer."""
SEARCH_PAGES_MAX = 10
"""Pages of candidates that one search with dates looks through before it says that there is more."""
SUGGESTION_DAYS_MAX = 60
SUGGESTION_NIGHTS_MAX = 90
BOOKING_HORIZON_DAYS_MAX = 730
"""No schedule opens further ahead (schemas.Schedule)."""
CACHE_KEY = "service:{id}"
"""The seed's key."""
