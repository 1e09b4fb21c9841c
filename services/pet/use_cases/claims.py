"""Which pet is where on which night: branches of bookings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from services.kit.database import Store
from services.pet import errors, repository
from services.pet.config import PETS_PER_QUESTION_MAX, STAY_NIGHTS_MAX
from services.pet.domain import Claim, Species, lapsed, size_of
from services.pet.schemas import ClaimAnswer, ClaimRequest, PetFacts, ReleaseAnswer


@dataclass(frozen=True)
class ClaimUseCases:
    """Claims over the pet service's one database."""

    store: Store

    async def facts(self, owner_id: UUID, pet_ids: Sequence[UUID]) -> list[PetFacts]:
        """The named pets, in that order. Raises 404 when one of them is not the owner's."""
        if len(pet_ids) > PETS_PER_QUESTION_MAX:
            raise errors.too_many_pets(PETS_PER_QUESTION_MAX)
        rows = await self.store.read(lambda session: repository.named_pets(session, owner_id, pet_ids))
        known = {
            row.id: PetFacts(row.id, row.owner_id, row.name, Species(row.species), size_of(row.weight_g), row.weight_g)
            for row in rows
        }
        for pet_id in pet_ids:
            if pet_id not in known:
                raise errors.no_pet(pet_id)
        return [known[pet_id] for pet_id in pet_ids]

    async def claim(self, request: ClaimRequest) -> ClaimAnswer:
        """A branch: every named pet on every night of the stay, or nothing.

        Raises 404 for a pet that is not the owner's, 422 `vaccine-expired`, 409 `pet-already-booked`; waits for whoever
        is undecided on one of the nights. Repeated for the same order and stay it changes nothing.
        """
        claim = Claim(request.owner_id, frozenset(request.pet_ids), request.check_in, request.check_out)
        if not 0 < (claim.check_out - claim.check_in).days <= STAY_NIGHTS_MAX:
            raise errors.bad_stay(STAY_NIGHTS_MAX)

        async def work(session: AsyncSession) -> ClaimAnswer:
            if not await repository.add_claim(session, request.order_id, claim):
                known = await repository.take_claim(session, request.order_id)
                if known is None or (not known.released and known.claim != claim):
                    raise errors.claim_exists(request.order_id)
                if not known.released:
                    return ClaimAnswer(claim.nights)
                await repository.renew_claim(session, request.order_id, claim)
            await _check_pets(session, claim)
            taken = await repository.take_nights(session, request.order_id, claim)
            if taken:
                raise errors.pet_already_booked(taken)
            return ClaimAnswer(claim.nights)

        return await self.store.branch(work, ClaimAnswer)

    async def release(self, order_id: UUID, since: date | None = None) -> ReleaseAnswer:
        """A branch: gives back what the order claimed, or what of it is still ahead on the day `since`; nothing when it
        was given back before.
        """

        async def work(session: AsyncSession) -> ReleaseAnswer:
            known = await repository.take_claim(session, order_id)
            if known is None or known.released:
                return ReleaseAnswer(0)
            return ReleaseAnswer(await repository.drop_nights(session, order_id, since))

        return await self.store.branch(work, ReleaseAnswer)


async def _check_pets(session: AsyncSession, claim: Claim) -> None:
    ids = sorted(claim.pet_ids)
    rows = await repository.named_pets(session, claim.owner_id, ids, share=True)
    missing = claim.pet_ids - {row.id for row in rows}
    if missing:
        raise errors.no_pet(min(missing))
    late = lapsed(await repository.records_of(session, ids), claim.check_out)
    if late:
        raise errors.vaccine_expired([(record.pet_id, record.vaccine, record.expires_on) for record in late])
