"""What the boarding service does: `listings` for providers and moderators, `searching` and `quoting` for guests."""

from __future__ import annotations

from services.boarding.use_cases.listings import Listings
from services.boarding.use_cases.quoting import Quoting
from services.boarding.use_cases.searching import Searching, wish_near

__all__ = ["Listings", "Quoting", "Searching", "wish_near"]
