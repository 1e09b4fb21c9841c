"""The routes of the pet service."""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

from litestar import Controller, Request, delete, get, patch, post, put
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody, QueryParameter

from services.kit.auth import any_user, internal, principal_of
from services.kit.paging import LIMIT_DEFAULT, LIMIT_MAX, Page
from services.kit.problems import bad_request
from services.pet.schemas import (
    CarePlan,
    ClaimAnswer,
    ClaimRequest,
    NewPet,
    NewVaccination,
    PetChanges,
    PetFacts,
    PetView,
    ReleaseAnswer,
    ReleaseRequest,
    StayView,
    VaccinationView,
)
from services.pet.use_cases import ClaimUseCases, PetUseCases

Asked = Request[Any, Any, Any]
Pets = NamedDependency[PetUseCases]
Claims = NamedDependency[ClaimUseCases]


class PetController(Controller):
    """What a person may do with their own pets; also before an administrator has approved them."""

    path = "/api/pets"
    tags = ("pets",)
    guards = (any_user,)

    @post("/")
    async def add(self, request: Asked, pets: Pets, data: JSONBody[NewPet]) -> PetView:
        """Records a pet."""
        return await pets.add(principal_of(request).user_id, data)

    @get("/")
    async def list_pets(
        self,
        request: Asked,
        pets: Pets,
        limit: Annotated[int, QueryParameter(ge=1, le=LIMIT_MAX)] = LIMIT_DEFAULT,
        cursor: Annotated[str | None, QueryParameter()] = None,
    ) -> Page[PetView]:
        """One's own pets, the newest first."""
        return await pets.pets(principal_of(request).user_id, limit, cursor)

    @get("/{pet_id:uuid}")
    async def show(self, request: Asked, pets: Pets, pet_id: FromPath[UUID]) -> PetView:
        """One pet."""
        return await pets.pet(principal_of(request).user_id, pet_id)

    @patch("/{pet_id:uuid}")
    async def change(self, request: Asked, pets: Pets, pet_id: FromPath[UUID], data: JSONBody[PetChanges]) -> PetView:
        """Changes what is sent, and nothing else."""
        return await pets.change(principal_of(request).user_id, pet_id, data)

    @delete("/{pet_id:uuid}")
    async def remove(self, request: Asked, pets: Pets, pet_id: FromPath[UUID]) -> None:
        """Removes a pet that has no stay ahead."""
        await pets.remove(principal_of(request).user_id, pet_id)

    @get("/{pet_id:uuid}/stays")
    async def stays(self, request: Asked, pets: Pets, pet_id: FromPath[UUID]) -> Page[StayView]:
        """Where the pet was, is and will be."""
        return await pets.stays(principal_of(request).user_id, pet_id)

    @get("/{pet_id:uuid}/vaccinations")
    async def vaccinations(self, request: Asked, pets: Pets, pet_id: FromPath[UUID]) -> Page[VaccinationView]:
        """All vaccinations on record."""
        return await pets.vaccinations(principal_of(request).user_id, pet_id)

    @post("/{pet_id:uuid}/vaccinations")
    async def vaccinate(
        self, request: Asked, pets: Pets, pet_id: FromPath[UUID], data: JSONBody[NewVaccination]
    ) -> VaccinationView:
        """Records a vaccination. One that ends before a stay does keeps the pet from being booked."""
        return await pets.vaccinate(principal_of(request).user_id, pet_id, data)

    @delete("/{pet_id:uuid}/vaccinations/{vaccination_id:uuid}")
    async def forget_vaccination(
        self, request: Asked, pets: Pets, pet_id: FromPath[UUID], vaccination_id: FromPath[UUID]
    ) -> None:
        """Removes a vaccination from the record."""
        await pets.forget_vaccination(principal_of(request).user_id, pet_id, vaccination_id)

    @get("/{pet_id:uuid}/care-plan")
    async def care_plan(self, request: Asked, pets: Pets, pet_id: FromPath[UUID]) -> CarePlan:
        """How to care for the pet."""
        return await pets.care_plan(principal_of(request).user_id, pet_id)

    @put("/{pet_id:uuid}/care-plan")
    async def set_care_plan(
        self, request: Asked, pets: Pets, pet_id: FromPath[UUID], data: JSONBody[CarePlan]
    ) -> CarePlan:
        """Writes the plan over the one before."""
        return await pets.set_care_plan(principal_of(request).user_id, pet_id, data)


class InternalPetController(Controller):
    """What other services ask."""

    path = "/internal"
    include_in_schema = False

    @get("/pets", guards=[internal(["boarding", "order"])])
    async def facts(
        self,
        claims: Claims,
        owner_id: Annotated[UUID, QueryParameter()],
        ids: Annotated[str, QueryParameter(description="Ids of pets, with commas between them.")],
    ) -> list[PetFacts]:
        """The named pets of one owner, in that order."""
        try:
            pet_ids = [UUID(part) for part in ids.split(",") if part]
        except ValueError:
            raise bad_request(f"'ids' must be UUIDs with commas between them, not {ids!r}.") from None
        return await claims.facts(owner_id, pet_ids)

    @post("/claims", guards=[internal(["order"])], status_code=200)
    async def claim(self, claims: Claims, data: JSONBody[ClaimRequest]) -> ClaimAnswer:
        """An order's pets on all nights of a stay, or on none (a branch)."""
        return await claims.claim(data)

    @post("/claims/{order_id:uuid}/release", guards=[internal(["order"])], status_code=200)
    async def release(self, claims: Claims, order_id: FromPath[UUID], data: JSONBody[ReleaseRequest]) -> ReleaseAnswer:
        """Gives an order's pet nights back (a branch)."""
        return await claims.release(order_id, data.since)
