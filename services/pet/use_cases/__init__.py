"""What the pet service does: `pets` for their owners, `claims` for bookings."""

from __future__ import annotations

from services.pet.use_cases.claims import ClaimUseCases
from services.pet.use_cases.pets import PetUseCases

__all__ = ["ClaimUseCases", "PetUseCases"]
