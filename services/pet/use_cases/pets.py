"""A person's pets, their vaccinations and care plans. All writes are local."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import Any
from uuid import UUID

import msgspec
from sqlalchemy.ext.asyncio import AsyncSession

from coordinator.protocol.ids import uuid7
from services.kit.clock import Clock
from services.kit.database import Store
from services.kit.paging import Cursors, Page, page_of
from services.pet import errors, repository
from services.pet.config import VACCINATIONS_MAX, ZONE_MARGIN
from services.pet.domain import Gender, Species, age_in_months, born_about, size_of
from services.pet.schemas import (
    CarePlan,
    NewPet,
    NewVaccination,
    PetChanges,
    PetView,
    StayView,
    VaccinationView,
)

STAYS_MAX = 100


@dataclass(frozen=True)
class PetUseCases:
    """Pets over the service's one database. Somebody else's pet is not found."""

    store: Store
    clock: Clock
    cursors: Cursors

    async def add(self, owner_id: UUID, new: NewPet) -> PetView:
        """Writes a new pet. Raises 422 when birth and age contradict each other."""
        now = self.clock()
        values = {
            "id": uuid7(int(now.timestamp() * 1000)),
            "owner_id": owner_id,
            **self._columns(msgspec.structs.asdict(new)),
            "created_at": now,
            "updated_at": now,
        }

        async def work(session: AsyncSession) -> Any:
            await repository.add_pet(session, values)
            return await repository.find_pet(session, owner_id, values["id"])

        return self._view(await self.store.local(work))

    async def pets(self, owner_id: UUID, limit: int, cursor: str | None) -> Page[PetView]:
        """A person's pets, the newest first."""
        position = self.cursors.decode(cursor, tuple[UUID])
        after = None if position is None else position[0]
        rows = await self.store.read(lambda session: repository.pets_of(session, owner_id, after, limit + 1))
        page = page_of(rows, limit, self.cursors, lambda row: (row.id,))
        return Page([self._view(row) for row in page.items], page.next_cursor)

    async def pet(self, owner_id: UUID, pet_id: UUID) -> PetView:
        """One pet."""
        return self._view(await self.store.read(lambda session: _found(session, owner_id, pet_id)))

    async def change(self, owner_id: UUID, pet_id: UUID, changes: PetChanges) -> PetView:
        """Changes what is sent, and nothing else."""
        sent = {name: value for name, value in msgspec.structs.asdict(changes).items() if value is not msgspec.UNSET}
        values = {**self._columns(sent), "updated_at": self.clock()}

        async def work(session: AsyncSession) -> Any:
            row = await repository.change_pet(session, owner_id, pet_id, values)
            if row is None:
                raise errors.no_pet(pet_id)
            return row

        return self._view(await self.store.local(work))

    async def remove(self, owner_id: UUID, pet_id: UUID) -> None:
        """Removes a pet from sight. Raises 409 `pet-has-stays` while it is booked."""
        now = self.clock()

        async def work(session: AsyncSession) -> None:
            # The mark first: a claim shares the pet's row, so it came before and is seen, or comes after and fails.
            if await repository.change_pet(session, owner_id, pet_id, {"deleted_at": now}) is None:
                raise errors.no_pet(pet_id)
            nights = await repository.coming_nights(session, pet_id, now.date() - ZONE_MARGIN)
            if nights:
                raise errors.has_coming_stays(pet_id, nights)

        await self.store.local(work)

    async def stays(self, owner_id: UUID, pet_id: UUID) -> Page[StayView]:
        """Where the pet was, is and will be: the latest STAYS_MAX stays."""

        async def work(session: AsyncSession) -> list[StayView]:
            await _found(session, owner_id, pet_id)
            rows = await repository.stays_of(session, pet_id, STAYS_MAX)
            return [StayView(row.order_id, row.check_in, row.check_out) for row in rows]

        return Page(await self.store.read(work))

    async def vaccinations(self, owner_id: UUID, pet_id: UUID) -> Page[VaccinationView]:
        """All vaccinations on record, at most VACCINATIONS_MAX."""
        today = self._today()

        async def work(session: AsyncSession) -> list[VaccinationView]:
            await _found(session, owner_id, pet_id)
            return [_vaccination(row, today) for row in await repository.vaccinations_of(session, pet_id)]

        return Page(await self.store.read(work))

    async def vaccinate(self, owner_id: UUID, pet_id: UUID, new: NewVaccination) -> VaccinationView:
        """Records a vaccination."""
        if new.expires_on < new.given_on:
            raise errors.bad_vaccination()
        vaccination_id = uuid7(int(self.clock().timestamp() * 1000))
        values = {"id": vaccination_id, "pet_id": pet_id, **msgspec.structs.asdict(new)}

        async def work(session: AsyncSession) -> None:
            await _found(session, owner_id, pet_id)
            if len(await repository.vaccinations_of(session, pet_id)) >= VACCINATIONS_MAX:
                raise errors.too_many_vaccinations(VACCINATIONS_MAX)
            await repository.add_vaccination(session, values)

        await self.store.local(work)
        expired = new.expires_on < self._today()
        return VaccinationView(vaccination_id, new.vaccine, new.given_on, new.expires_on, new.note, expired)

    async def forget_vaccination(self, owner_id: UUID, pet_id: UUID, vaccination_id: UUID) -> None:
        """Removes a vaccination from the record."""

        async def work(session: AsyncSession) -> None:
            await _found(session, owner_id, pet_id)
            if not await repository.remove_vaccination(session, pet_id, vaccination_id):
                raise errors.no_vaccination(vaccination_id)

        await self.store.local(work)

    async def care_plan(self, owner_id: UUID, pet_id: UUID) -> CarePlan:
        """How to care for the pet; an empty plan when there is none yet."""

        async def work(session: AsyncSession) -> Any:
            await _found(session, owner_id, pet_id)
            return await repository.care_plan_of(session, pet_id)

        row = await self.store.read(work)
        if row is None:
            return CarePlan()
        return msgspec.convert(
            {"feeding": row.feeding, "medicines": row.medicines, "vet": row.vet, "contact": row.contact}, CarePlan
        )

    async def set_care_plan(self, owner_id: UUID, pet_id: UUID, plan: CarePlan) -> CarePlan:
        """Writes the plan over the one before."""
        values = msgspec.to_builtins(plan)

        async def work(session: AsyncSession) -> None:
            await _found(session, owner_id, pet_id)
            await repository.set_care_plan(session, pet_id, values, self.clock())

        await self.store.local(work)
        return plan

    def _columns(self, sent: dict[str, Any]) -> dict[str, Any]:
        """What was sent, as columns: an age becomes a birth near enough."""
        values = {name: value for name, value in sent.items() if name != "age_months"}
        age_months, birth_date = sent.get("age_months"), sent.get("birth_date")
        if age_months is not None:
            if birth_date is not None:
                raise errors.birth_or_age()
            values |= {"birth_date": born_about(age_months, self._today()), "birth_is_estimate": True}
        elif "birth_date" in sent:
            if birth_date is not None and birth_date > self._today() + ZONE_MARGIN:
                raise errors.born_later(self._today())
            values["birth_is_estimate"] = False
        return values

    def _view(self, row: Any) -> PetView:
        return PetView(
            id=row.id,
            owner_id=row.owner_id,
            name=row.name,
            species=Species(row.species),
            size=size_of(row.weight_g),
            weight_g=row.weight_g,
            breed=row.breed,
            gender=Gender(row.gender),
            birth_date=row.birth_date,
            birth_is_estimate=row.birth_is_estimate,
            age_months=None if row.birth_date is None else age_in_months(row.birth_date, self._today()),
            description=row.description,
            created_at=row.created_at,
            updated_at=row.updated_at,
        )

    def _today(self) -> date:
        return self.clock().date()


async def _found(session: AsyncSession, owner_id: UUID, pet_id: UUID) -> Any:
    row = await repository.find_pet(session, owner_id, pet_id)
    if row is None:
        raise errors.no_pet(pet_id)
    return row


def _vaccination(row: Any, today: date) -> VaccinationView:
    return VaccinationView(row.id, row.vaccine, row.given_on, row.expires_on, row.note, row.expires_on < today)
