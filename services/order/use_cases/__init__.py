"""What can be done with orders. One module for each part of their life, over one `Desk`."""

from __future__ import annotations

from services.order.use_cases.booking import Booking
from services.order.use_cases.care import Care
from services.order.use_cases.changes import Changes
from services.order.use_cases.desk import Actor, Desk
from services.order.use_cases.expiry import Expiry
from services.order.use_cases.figures import Figures
from services.order.use_cases.reading import Reading

__all__ = ["Actor", "Booking", "Care", "Changes", "Desk", "Expiry", "Figures", "Reading"]
