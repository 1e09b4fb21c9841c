"""The other services, as an order needs them. Calls inside a global transaction are branches of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from uuid import UUID

import msgspec

from services.kit.clients import ServiceClient

LISTING_APPROVED = 1
PROVIDER_ACTIVE = 1


class ListingState(msgspec.Struct, frozen=True):
    """What a booking needs to know of a listing."""

    id: UUID
    provider_id: UUID
    audit_status: int


class UserState(msgspec.Struct, frozen=True):
    """What a booking needs to know of a provider."""

    id: UUID
    status: int


class PetSnapshot(msgspec.Struct, frozen=True):
    """A pet as it is when it is booked."""

    id: UUID
    owner_id: UUID
    name: str
    species: str
    size: str
    weight_g: int | None = None


class _Fence(msgspec.Struct, frozen=True):
    fence: int


class _Done(msgspec.Struct, frozen=True):
    """Whatever a branch answers beyond its success."""


class Settled(msgspec.Struct, frozen=True):
    """How a settlement was divided."""

    provider_cents: int
    commission_cents: int


@dataclass(frozen=True)
class Capacity:
    """Nights."""

    client: ServiceClient

    async def fence(self, listing_id: UUID) -> int:
        """A number greater than all before it for this listing."""
        return (await self.client.call("POST", f"/internal/fences/{listing_id}", _Fence, json={})).fence

    async def hold(
        self,
        *,
        order_id: UUID,
        listing_id: UUID,
        pools: Mapping[str, int],
        check_in: date,
        check_out: date,
        fence: int | None,
    ) -> None:
        """Branch: takes the nights for an unpaid order. Raises 409 `capacity-exhausted` or `stale-fence`."""
        body = {
            "order_id": order_id,
            "listing_id": listing_id,
            "pools": dict(pools),
            "check_in": check_in,
            "check_out": check_out,
            "fence": fence,
        }
        await self.client.call("POST", "/internal/holds", _Done, json=body)

    async def book(self, order_id: UUID) -> None:
        """Branch: turns the held nights into booked ones."""
        await self.client.call("POST", f"/internal/holds/{order_id}/book", _Done, json={})

    async def release(self, order_id: UUID) -> None:
        """Branch: gives the nights back."""
        await self.client.call("POST", f"/internal/holds/{order_id}/release", _Done, json={})


@dataclass(frozen=True)
class Pets:
    """Pets and their claims."""

    client: ServiceClient

    async def snapshots(self, owner_id: UUID, pet_ids: Sequence[UUID]) -> list[PetSnapshot]:
        """The owner's pets by id. Raises 404 for one that is not theirs."""
        params = {"owner_id": str(owner_id), "ids": ",".join(str(pet_id) for pet_id in pet_ids)}
        return await self.client.call("GET", "/internal/pets", list[PetSnapshot], params=params)

    async def claim(
        self, *, order_id: UUID, owner_id: UUID, pet_ids: Sequence[UUID], check_in: date, check_out: date
    ) -> None:
        """Branch: the pets are in this stay on these nights. Raises 409 `pet-already-booked`, 422 `vaccine-expired`."""
        body = {
            "order_id": order_id,
            "owner_id": owner_id,
            "pet_ids": list(pet_ids),
            "check_in": check_in,
            "check_out": check_out,
        }
        await self.client.call("POST", "/internal/claims", _Done, json=body)

    async def release(self, order_id: UUID, *, since: date | None = None) -> None:
        """Branch: the pets are free again, on all nights or on those from `since` on."""
        await self.client.call("POST", f"/internal/claims/{order_id}/release", _Done, json={"since": since})


@dataclass(frozen=True)
class Payments:
    """Money."""

    client: ServiceClient

    async def charge(self, *, order_id: UUID, owner_id: UUID, amount_cents: int) -> None:
        """Branch: from the owner's wallet into escrow. Raises 409 `insufficient-funds`."""
        body = {"order_id": order_id, "owner_id": owner_id, "amount_cents": amount_cents}
        await self.client.call("POST", "/internal/charges", _Done, json=body)

    async def refund(
        self, *, order_id: UUID, owner_id: UUID, amount_cents: int, provider_id: UUID | None, provider_cents: int
    ) -> None:
        """Branch: out of escrow, to the owner and, where the policy says so, to the provider."""
        body = {
            "order_id": order_id,
            "owner_id": owner_id,
            "amount_cents": amount_cents,
            "provider_id": provider_id,
            "provider_cents": provider_cents,
        }
        await self.client.call("POST", "/internal/refunds", _Done, json=body)

    async def settle(self, *, order_id: UUID, provider_id: UUID, amount_cents: int) -> Settled:
        """Branch: out of escrow to the provider, less the commission."""
        body = {"order_id": order_id, "provider_id": provider_id, "amount_cents": amount_cents}
        return await self.client.call("POST", "/internal/settlements", Settled, json=body)


@dataclass(frozen=True)
class Directory:
    """Listings and people: whether bookings may still be taken."""

    boarding: ServiceClient
    users: ServiceClient

    async def listing(self, listing_id: UUID) -> ListingState:
        """A listing's state. Raises 404 for an unknown one."""
        return await self.boarding.call("GET", f"/internal/listings/{listing_id}", ListingState)

    async def user(self, user_id: UUID) -> UserState:
        """A person's state. Raises 404 for an unknown one."""
        return await self.users.call("GET", f"/internal/users/{user_id}", UserState)
