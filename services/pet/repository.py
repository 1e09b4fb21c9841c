"""The SQL of pets and claims. Rows are always taken in the order of pet and night."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import bindparam, case, delete, func, insert, select, text, update
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.dialects.postgresql import UUID as PG_UUID
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncSession

from services.pet.domain import Claim, Vaccination
from services.pet.tables import care_plans, claimed_nights, claims, pets, vaccinations

# On a night that is taken the update changes nothing, but it is a write: it meets the lock of whoever took the night
# and is not decided yet, and it keeps the row until we are done.
TAKE = text(
    """
    INSERT INTO claimed_nights AS c (pet_id, night, order_id)
    SELECT p.pet_id, d.night::date, :order_id
    FROM unnest(:pet_ids) AS p (pet_id)
    CROSS JOIN generate_series(CAST(:check_in AS date), CAST(:check_out AS date) - 1, interval '1 day') AS d (night)
    ORDER BY p.pet_id, d.night
    ON CONFLICT (pet_id, night) DO UPDATE SET order_id = c.order_id
    RETURNING c.pet_id, c.night, c.order_id
    """
).bindparams(bindparam("pet_ids", type_=ARRAY(PG_UUID)), bindparam("order_id", type_=PG_UUID))


@dataclass(frozen=True)
class StoredClaim:
    """An order's claim as it is stored."""

    claim: Claim
    released: bool


async def add_pet(session: AsyncSession, values: Mapping[str, Any]) -> None:
    """Writes a new pet."""
    await session.execute(insert(pets).values(**values))


async def find_pet(session: AsyncSession, owner_id: UUID, pet_id: UUID) -> Any:
    """The row of the owner's pet, None when it was removed or is somebody else's."""
    return (await session.execute(select(pets).where(*_own(owner_id, pet_id)))).first()


async def change_pet(session: AsyncSession, owner_id: UUID, pet_id: UUID, values: Mapping[str, Any]) -> Any:
    """Writes `values` into the owner's pet; returns it as it is then, None when there is none."""
    statement = update(pets).where(*_own(owner_id, pet_id)).values(**values).returning(pets)
    return (await session.execute(statement)).first()


async def pets_of(session: AsyncSession, owner_id: UUID, after: UUID | None, limit: int) -> Sequence[Any]:
    """The owner's newest pets, `limit` of them, older than `after`."""
    query = select(pets).where(pets.c.owner_id == owner_id, pets.c.deleted_at.is_(None))
    if after is not None:
        query = query.where(pets.c.id < after)
    return (await session.execute(query.order_by(pets.c.id.desc()).limit(limit))).all()


async def named_pets(
    session: AsyncSession, owner_id: UUID, pet_ids: Sequence[UUID], *, share: bool = False
) -> Sequence[Any]:
    """Those of `pet_ids` that are the owner's; with `share` none of them can be removed until we are done."""
    query = (
        select(pets)
        .where(pets.c.owner_id == owner_id, pets.c.id.in_(pet_ids), pets.c.deleted_at.is_(None))
        .order_by(pets.c.id)
    )
    return (await session.execute(query.with_for_update(read=True) if share else query)).all()


async def coming_nights(session: AsyncSession, pet_id: UUID, since: date) -> Sequence[date]:
    """The nights from `since` on which the pet is claimed, in order."""
    query = select(claimed_nights.c.night).where(claimed_nights.c.pet_id == pet_id, claimed_nights.c.night >= since)
    return (await session.execute(query.order_by(claimed_nights.c.night))).scalars().all()


async def stays_of(session: AsyncSession, pet_id: UUID, limit: int) -> Sequence[Any]:
    """The pet's claims with a night that was not given back, the latest first."""
    query = (
        select(claims.c.order_id, claims.c.check_in, claims.c.check_out)
        .where(
            claims.c.order_id.in_(select(claimed_nights.c.order_id).where(claimed_nights.c.pet_id == pet_id)),
        )
        .order_by(claims.c.check_in.desc())
        .limit(limit)
    )
    return (await session.execute(query)).all()


async def vaccinations_of(session: AsyncSession, pet_id: UUID) -> Sequence[Any]:
    """A pet's vaccinations, the one that holds longest first."""
    query = select(vaccinations).where(vaccinations.c.pet_id == pet_id)
    return (await session.execute(query.order_by(vaccinations.c.expires_on.desc(), vaccinations.c.id))).all()


async def add_vaccination(session: AsyncSession, values: Mapping[str, Any]) -> None:
    """Writes a vaccination."""
    await session.execute(insert(vaccinations).values(**values))


async def remove_vaccination(session: AsyncSession, pet_id: UUID, vaccination_id: UUID) -> bool:
    """Removes a vaccination of this pet; False when it has no such one."""
    statement = delete(vaccinations).where(vaccinations.c.pet_id == pet_id, vaccinations.c.id == vaccination_id)
    return (await session.execute(statement.returning(vaccinations.c.id))).first() is not None


async def records_of(session: AsyncSession, pet_ids: Sequence[UUID]) -> list[Vaccination]:
    """The vaccinations of several pets, for the rule."""
    query = select(vaccinations.c.pet_id, vaccinations.c.vaccine, vaccinations.c.expires_on)
    rows = await session.execute(query.where(vaccinations.c.pet_id.in_(pet_ids)))
    return [Vaccination(row.pet_id, row.vaccine, row.expires_on) for row in rows]


async def care_plan_of(session: AsyncSession, pet_id: UUID) -> Any:
    """The row of a pet's care plan, None when it has none."""
    return (await session.execute(select(care_plans).where(care_plans.c.pet_id == pet_id))).first()


async def set_care_plan(session: AsyncSession, pet_id: UUID, values: Mapping[str, Any], at: datetime) -> None:
    """Writes a pet's care plan over the one before."""
    row = {**values, "updated_at": at}
    statement = upsert(care_plans).values(pet_id=pet_id, **row)
    await session.execute(statement.on_conflict_do_update(index_elements=[care_plans.c.pet_id], set_=row))


async def add_claim(session: AsyncSession, order_id: UUID, claim: Claim) -> bool:
    """Writes a new claim's row; False when the order has one already."""
    statement = upsert(claims).values(order_id=order_id, **_claim_values(claim))
    found = await session.execute(statement.on_conflict_do_nothing().returning(claims.c.order_id))
    return found.first() is not None


async def take_claim(session: AsyncSession, order_id: UUID) -> StoredClaim | None:
    """The order's claim, locked, and decided: a write that changes nothing meets an undecided holder."""
    statement = update(claims).where(claims.c.order_id == order_id).values(released=claims.c.released)
    row = (await session.execute(statement.returning(claims))).first()
    if row is None:
        return None
    return StoredClaim(Claim(row.owner_id, frozenset(row.pet_ids), row.check_in, row.check_out), row.released)


async def renew_claim(session: AsyncSession, order_id: UUID, claim: Claim) -> None:
    """Gives a released claim new pets and nights."""
    await session.execute(update(claims).where(claims.c.order_id == order_id).values(_claim_values(claim)))


async def take_nights(session: AsyncSession, order_id: UUID, claim: Claim) -> dict[UUID, list[date]]:
    """Claims every night; returns those that belong to other orders, by pet.

    Raises LockConflict where an undecided global transaction took or gave back one of them.
    """
    rows = await session.execute(
        TAKE,
        {
            "order_id": order_id,
            "pet_ids": sorted(claim.pet_ids),
            "check_in": claim.check_in,
            "check_out": claim.check_out,
        },
    )
    taken: dict[UUID, list[date]] = {}
    for row in rows:
        if row.order_id != order_id:
            taken.setdefault(row.pet_id, []).append(row.night)
    return taken


async def drop_nights(session: AsyncSession, order_id: UUID, since: date | None) -> int:
    """Gives an order's nights back, those from `since` on or all; returns how many. The claim then ends on that day."""
    statement = delete(claimed_nights).where(claimed_nights.c.order_id == order_id)
    values: dict[str, Any] = {"released": True, "changed_at": func.clock_timestamp()}
    if since is not None:
        statement = statement.where(claimed_nights.c.night >= since)
        ends = func.least(claims.c.check_out, since)
        values["check_out"] = case((claims.c.check_in < since, ends), else_=claims.c.check_out)
    rows = (await session.execute(statement.returning(claimed_nights.c.night))).all()
    await session.execute(update(claims).where(claims.c.order_id == order_id).values(**values))
    return len(rows)


def _own(owner_id: UUID, pet_id: UUID) -> tuple[Any, ...]:
    return (pets.c.id == pet_id, pets.c.owner_id == owner_id, pets.c.deleted_at.is_(None))


def _claim_values(claim: Claim) -> dict[str, Any]:
    return {
        "owner_id": claim.owner_id,
        "pet_ids": sorted(claim.pet_ids),
        "check_in": claim.check_in,
        "check_out": claim.check_out,
        "released": False,
        "changed_at": func.clock_timestamp(),
    }
