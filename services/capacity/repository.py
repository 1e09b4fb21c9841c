"""The SQL of nights and holds. Rows of one listing are always taken in the order of night and pool."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from uuid import UUID

from sqlalchemy import bindparam, delete, func, select, text, update
from sqlalchemy.dialects.postgresql import ARRAY, DATE, INTEGER, TEXT, insert
from sqlalchemy.dialects.postgresql import UUID as PG_UUID
from sqlalchemy.ext.asyncio import AsyncSession

from services.capacity.domain import HoldState, Move, Night, Stay
from services.capacity.tables import holds, pools

_POOL_ARRAYS = (bindparam("pools", type_=ARRAY(TEXT)), bindparam("units", type_=ARRAY(INTEGER)))

# One upsert makes the missing nights and takes the others; it locks each row also where its condition fails.
# FOR SHARE: a total that changes meanwhile is waited for, so no night is made with an old one.
TAKE = text(
    """
    INSERT INTO nights AS n (listing_id, night, pool, total, held, fence)
    SELECT p.listing_id, d.night::date, p.pool, p.total, w.units, coalesce(CAST(:fence AS bigint), 0)
    FROM unnest(:pools, :units) AS w (pool, units)
    JOIN pools AS p ON p.listing_id = :listing_id AND p.pool = w.pool AND p.total >= w.units
    CROSS JOIN generate_series(CAST(:check_in AS date), CAST(:last AS date), interval '1 day') AS d (night)
    ORDER BY d.night, p.pool
    FOR SHARE OF p
    ON CONFLICT (listing_id, night, pool) DO UPDATE
    SET held = n.held + excluded.held, fence = greatest(n.fence, excluded.fence)
    WHERE n.held + n.booked + excluded.held <= n.total
      AND (CAST(:fence AS bigint) IS NULL OR n.fence < CAST(:fence AS bigint))
    RETURNING n.night, n.pool
    """
).bindparams(*_POOL_ARRAYS)

# A write that changes nothing: it meets the lock of whoever took these nights and is not decided yet.
TOUCH = text(
    """
    UPDATE nights AS n SET held = n.held
    FROM unnest(:nights, :pools) AS w (night, pool)
    WHERE n.listing_id = :listing_id AND n.night = w.night AND n.pool = w.pool
    RETURNING n.night, n.pool, n.total, n.held, n.booked, n.fence
    """
).bindparams(bindparam("nights", type_=ARRAY(DATE)), bindparam("pools", type_=ARRAY(TEXT)))

MOVE = text(
    """
    WITH taken AS MATERIALIZED (
        SELECT n.night, n.pool, w.units
        FROM nights AS n
        JOIN unnest(:pools, :units) AS w (pool, units) ON w.pool = n.pool
        WHERE n.listing_id = :listing_id AND n.night >= :check_in AND n.night < :check_out
        ORDER BY n.night, n.pool
        FOR UPDATE OF n
    )
    UPDATE nights AS n
    SET held = n.held + :held * t.units, booked = n.booked + :booked * t.units
    FROM taken AS t
    WHERE n.listing_id = :listing_id AND n.night = t.night AND n.pool = t.pool
    RETURNING n.night
    """
).bindparams(*_POOL_ARRAYS)

RESIZE = text(
    """
    WITH coming AS MATERIALIZED (
        SELECT n.night, n.pool, coalesce(w.total, 0) AS wanted
        FROM nights AS n
        LEFT JOIN unnest(:pools, :units) AS w (pool, total) ON w.pool = n.pool
        WHERE n.listing_id = :listing_id AND n.night >= :since
        ORDER BY n.night, n.pool
        FOR UPDATE OF n
    )
    UPDATE nights AS n
    SET total = CASE WHEN n.held + n.booked <= c.wanted THEN c.wanted ELSE n.total END
    FROM coming AS c
    WHERE n.listing_id = :listing_id AND n.night = c.night AND n.pool = c.pool
    RETURNING n.night, n.total <> c.wanted AS in_use
    """
).bindparams(*_POOL_ARRAYS)

FREE = text(
    """
    SELECT l.listing_id
    FROM unnest(:listing_ids) AS l (listing_id)
    WHERE NOT EXISTS (
        SELECT FROM unnest(:pools, :units) AS w (pool, units)
        LEFT JOIN pools AS p ON p.listing_id = l.listing_id AND p.pool = w.pool
        WHERE p.total IS NULL OR p.total < w.units
    ) AND NOT EXISTS (
        SELECT FROM nights AS n
        JOIN unnest(:pools, :units) AS w (pool, units) ON w.pool = n.pool
        WHERE n.listing_id = l.listing_id AND n.night >= :check_in AND n.night < :check_out
          AND n.held + n.booked + w.units > n.total
    )
    """
).bindparams(bindparam("listing_ids", type_=ARRAY(PG_UUID)), *_POOL_ARRAYS)

NIGHTS = text(
    """
    SELECT d.night::date AS night, p.pool, coalesce(n.total, p.total) AS total, coalesce(n.held, 0) AS held,
           coalesce(n.booked, 0) AS booked, coalesce(n.fence, 0) AS fence
    FROM pools AS p
    CROSS JOIN generate_series(CAST(:first AS date), CAST(:last AS date), interval '1 day') AS d (night)
    LEFT JOIN nights AS n ON n.listing_id = p.listing_id AND n.pool = p.pool AND n.night = d.night::date
    WHERE p.listing_id = :listing_id AND (CAST(:pool AS text) IS NULL OR p.pool = CAST(:pool AS text))
    ORDER BY d.night, p.pool
    """
)

AUDIT = text(
    """
    WITH due AS (
        SELECT h.listing_id, d.night::date AS night, p.key AS pool,
               coalesce(sum(p.value::integer) FILTER (WHERE h.state = 0), 0) AS held,
               coalesce(sum(p.value::integer) FILTER (WHERE h.state = 1), 0) AS booked
        FROM holds AS h
        CROSS JOIN LATERAL jsonb_each_text(h.pools) AS p (key, value)
        CROSS JOIN LATERAL generate_series(h.check_in, h.check_out - 1, interval '1 day') AS d (night)
        WHERE h.state IN (0, 1)
        GROUP BY 1, 2, 3
    )
    SELECT count(*) FILTER (WHERE n.held + n.booked > n.total) AS nights_over_total,
           count(*) FILTER (WHERE (coalesce(n.held, 0), coalesce(n.booked, 0))
                                  <> (coalesce(due.held, 0), coalesce(due.booked, 0))) AS drift,
           count(n.night) AS nights,
           coalesce(sum(n.held), 0) AS held,
           coalesce(sum(n.booked), 0) AS booked
    FROM nights AS n
    FULL JOIN due USING (listing_id, night, pool)
    """
)


@dataclass(frozen=True)
class Hold:
    """An order's hold as it is stored."""

    stay: Stay
    state: HoldState


async def add_hold(session: AsyncSession, order_id: UUID, stay: Stay, fence: int | None) -> bool:
    """Writes a new hold's row; False when the order has one already."""
    statement = insert(holds).values(order_id=order_id, **_hold_values(stay, HoldState.HELD, fence))
    found = await session.execute(statement.on_conflict_do_nothing().returning(holds.c.order_id))
    return found.first() is not None


async def take_hold(session: AsyncSession, order_id: UUID) -> Hold | None:
    """The order's hold, locked, and decided: a write that changes nothing meets an undecided holder."""
    row = (
        await session.execute(
            update(holds)
            .where(holds.c.order_id == order_id)
            .values(state=holds.c.state)
            .returning(holds.c.listing_id, holds.c.pools, holds.c.check_in, holds.c.check_out, holds.c.state)
        )
    ).first()
    if row is None:
        return None
    return Hold(Stay(row.listing_id, row.pools, row.check_in, row.check_out), HoldState(row.state))


async def renew_hold(session: AsyncSession, order_id: UUID, stay: Stay, fence: int | None) -> None:
    """Gives a released hold new nights."""
    await session.execute(
        update(holds).where(holds.c.order_id == order_id).values(_hold_values(stay, HoldState.HELD, fence))
    )


async def set_state(session: AsyncSession, order_id: UUID, state: HoldState) -> None:
    """Writes the hold's state."""
    await session.execute(
        update(holds).where(holds.c.order_id == order_id).values(state=int(state), changed_at=func.clock_timestamp())
    )


async def take_nights(session: AsyncSession, stay: Stay, fence: int | None) -> set[tuple[date, str]]:
    """Takes what can be taken of `stay`; returns the places that it got."""
    rows = await session.execute(
        TAKE,
        {
            **_pool_arrays(stay.pools),
            "listing_id": stay.listing_id,
            "check_in": stay.check_in,
            "last": stay.nights[-1],
            "fence": fence,
        },
    )
    return {(row.night, row.pool) for row in rows}


async def touch_nights(session: AsyncSession, listing_id: UUID, places: set[tuple[date, str]]) -> list[Night]:
    """The rows of `places`, decided. Raises LockConflict when an undecided global transaction has one of them."""
    ordered = sorted(places)
    rows = await session.execute(
        TOUCH,
        {
            "listing_id": listing_id,
            "nights": [night for night, _ in ordered],
            "pools": [pool for _, pool in ordered],
        },
    )
    return [Night(r.night, r.pool, r.total, r.held, r.booked, r.fence) for r in rows]


async def move_nights(session: AsyncSession, stay: Stay, by: Move) -> int:
    """Adds the move to every night of `stay`; returns how many rows that were."""
    rows = await session.execute(
        MOVE,
        {
            **_pool_arrays(stay.pools),
            "listing_id": stay.listing_id,
            "check_in": stay.check_in,
            "check_out": stay.check_out,
            "held": by.held,
            "booked": by.booked,
        },
    )
    return len(rows.all())


async def set_pools(session: AsyncSession, listing_id: UUID, totals: Mapping[str, int]) -> None:
    """Makes `totals` the listing's pools, whatever they were."""
    await session.execute(delete(pools).where(pools.c.listing_id == listing_id, pools.c.pool.not_in(sorted(totals))))
    if totals:
        statement = insert(pools).values(
            [{"listing_id": listing_id, "pool": pool, "total": totals[pool]} for pool in sorted(totals)]
        )
        await session.execute(
            statement.on_conflict_do_update(
                index_elements=[pools.c.listing_id, pools.c.pool], set_={"total": statement.excluded.total}
            )
        )


async def resize_nights(
    session: AsyncSession, listing_id: UUID, totals: Mapping[str, int], since: date
) -> Sequence[date]:
    """Brings the nights from `since` to `totals`; returns those on which more than that is taken, left as they were."""
    rows = await session.execute(RESIZE, {**_pool_arrays(totals), "listing_id": listing_id, "since": since})
    return sorted({row.night for row in rows if row.in_use})


async def free_listings(
    session: AsyncSession, listing_ids: Sequence[UUID], wanted: Mapping[str, int], check_in: date, check_out: date
) -> set[UUID]:
    """Those of `listing_ids` that have `wanted` left on every night."""
    rows = await session.execute(
        FREE,
        {
            **_pool_arrays(wanted),
            "listing_ids": list(listing_ids),
            "check_in": check_in,
            "check_out": check_out,
        },
    )
    return set(rows.scalars())


async def nights_of(session: AsyncSession, listing_id: UUID, first: date, last: date, pool: str | None) -> list[Night]:
    """Every night from `first` to `last`, both included, also those that nobody ever asked for."""
    rows = await session.execute(NIGHTS, {"listing_id": listing_id, "first": first, "last": last, "pool": pool})
    return [Night(r.night, r.pool, r.total, r.held, r.booked, r.fence) for r in rows]


async def next_fence(session: AsyncSession) -> int:
    """A number higher than every one before it; a sequence, so it is never handed out twice, not even by a rollback."""
    return int((await session.execute(select(func.nextval("fences")))).scalar_one())


async def audit(session: AsyncSession) -> Mapping[str, int]:
    """The figures of `schemas.Consistency`, from one snapshot."""
    row = (await session.execute(AUDIT)).one()
    return {name: int(value) for name, value in row._mapping.items()}


def _pool_arrays(of: Mapping[str, int]) -> dict[str, list[str] | list[int]]:
    names = sorted(of)
    return {"pools": names, "units": [of[name] for name in names]}


def _hold_values(stay: Stay, state: HoldState, fence: int | None) -> dict[str, object]:
    return {
        "listing_id": stay.listing_id,
        "pools": dict(stay.pools),
        "check_in": stay.check_in,
        "check_out": stay.check_out,
        "state": int(state),
        "fence": fence,
        "changed_at": func.clock_timestamp(),
    }
