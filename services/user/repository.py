"""The user service's SQL. Every function works in the session it is given; none commits."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import delete, func, insert, select, tuple_, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncSession

from services.kit.roles import AccountStatus, Role
from services.kit.undecided import undecided
from services.user.domain import Login
from services.user.tables import user_credentials, user_details, user_logins, user_sessions, users
from sharding import bucket_for, bucket_of


@dataclass(frozen=True)
class NewAccount:
    """Everything that a registration writes on the user's own shard."""

    user_id: UUID
    username: str
    name: str
    role: Role
    status: AccountStatus
    password_hash: str
    email: str | None
    phone: str | None


@dataclass(frozen=True)
class Credentials:
    """What is needed to log somebody in."""

    user_id: UUID
    password_hash: str
    role: Role
    status: AccountStatus


async def add_account(session: AsyncSession, account: NewAccount) -> None:
    """Writes a new account."""
    bucket = bucket_for(account.user_id)
    await session.execute(
        insert(users).values(
            bucket=bucket,
            id=account.user_id,
            username=account.username,
            name=account.name,
            role=account.role,
            status=account.status,
        )
    )
    await session.execute(
        insert(user_details).values(bucket=bucket, user_id=account.user_id, email=account.email, phone=account.phone)
    )
    await session.execute(
        insert(user_credentials).values(bucket=bucket, user_id=account.user_id, password_hash=account.password_hash)
    )


async def add_logins(session: AsyncSession, user_id: UUID, logins: Iterable[Login]) -> list[Login]:
    """Writes look-up rows; returns those logins that somebody has already.

    A row that is there is written too, for nothing but its lock: whoever finds the login of an undecided registration
    waits for the decision instead of refusing a login that may be free in a moment.
    """
    taken = []
    for login in logins:
        row = {
            "bucket": bucket_of(login.sharding_key),
            "kind": login.kind.value,
            "value": login.value,
            "user_id": user_id,
        }
        whose = await session.scalar(
            upsert(user_logins)
            .values(row)
            .on_conflict_do_update(index_elements=["bucket", "kind", "value"], set_={"user_id": user_logins.c.user_id})
            .returning(user_logins.c.user_id)
        )
        if whose != user_id:
            taken.append(login)
    return taken


async def has_decided_login(session: AsyncSession, login: Login) -> bool:
    """Whether this login is there and cannot be undone any more."""
    is_undecided = await session.scalar(
        select(undecided(user_logins)).where(
            user_logins.c.bucket == bucket_of(login.sharding_key),
            user_logins.c.kind == login.kind.value,
            user_logins.c.value == login.value,
        )
    )
    return is_undecided is False


async def find_login(session: AsyncSession, login: Login) -> UUID | None:
    """Whose login this is."""
    found: UUID | None = await session.scalar(
        select(user_logins.c.user_id).where(
            user_logins.c.bucket == bucket_of(login.sharding_key),
            user_logins.c.kind == login.kind.value,
            user_logins.c.value == login.value,
        )
    )
    return found


async def credentials_of(session: AsyncSession, user_id: UUID, *, share: bool = False) -> Credentials | None:
    """What is needed to log this user in; with `share` the password cannot change until this transaction ends."""
    query = (
        select(user_credentials.c.password_hash, users.c.role, users.c.status)
        .join(users, (users.c.bucket == user_credentials.c.bucket) & (users.c.id == user_credentials.c.user_id))
        .where(user_credentials.c.bucket == bucket_for(user_id), user_credentials.c.user_id == user_id)
    )
    if share:
        query = query.with_for_update(read=True, of=user_credentials)
    row = (await session.execute(query)).first()
    return None if row is None else Credentials(user_id, row[0], Role(row[1]), AccountStatus(row[2]))


async def set_password(session: AsyncSession, user_id: UUID, password_hash: str) -> None:
    """Replaces the password."""
    await session.execute(
        update(user_credentials)
        .where(user_credentials.c.bucket == bucket_for(user_id), user_credentials.c.user_id == user_id)
        .values(password_hash=password_hash, changed_at=func.clock_timestamp())
    )


def _selected() -> Any:
    d = user_details.c
    return select(users, d.email, d.phone, d.address, d.bio, d.application).join(
        user_details, (user_details.c.bucket == users.c.bucket) & (user_details.c.user_id == users.c.id)
    )


async def user_of(session: AsyncSession, user_id: UUID, *, lock: bool = False) -> dict[str, Any] | None:
    """An account with its details; with `lock` nobody else changes it until this transaction ends."""
    query = _selected().where(users.c.bucket == bucket_for(user_id), users.c.id == user_id)
    if lock:
        query = query.with_for_update(of=users)
    row = (await session.execute(query)).mappings().first()
    return None if row is None else dict(row)


async def users_waiting(
    session: AsyncSession, *, applied: bool, after: tuple[datetime, UUID] | None, limit: int
) -> list[dict[str, Any]]:
    """Accounts on this shard that wait for approval (or, `applied`, to become providers), oldest first."""
    position = tuple_(users.c.created_at, users.c.id)
    query = _selected().order_by(users.c.created_at, users.c.id).limit(limit)
    query = query.where(users.c.applied_at.is_not(None) if applied else users.c.status == int(AccountStatus.PENDING))
    if after is not None:
        query = query.where(position > tuple_(*after))
    return [dict(row) for row in (await session.execute(query)).mappings()]


async def change_user(session: AsyncSession, user_id: UUID, **values: Any) -> None:
    """Changes columns of `users`."""
    await session.execute(
        update(users)
        .where(users.c.bucket == bucket_for(user_id), users.c.id == user_id)
        .values(updated_at=func.clock_timestamp(), **values)
    )


async def change_details(session: AsyncSession, user_id: UUID, **values: Any) -> None:
    """Changes columns of `user_details`."""
    await session.execute(
        update(user_details)
        .where(user_details.c.bucket == bucket_for(user_id), user_details.c.user_id == user_id)
        .values(**values)
    )


async def add_session(
    session: AsyncSession, user_id: UUID, token_hash: bytes, family: UUID, expires_at: datetime
) -> None:
    """Remembers a refresh token."""
    await session.execute(
        insert(user_sessions).values(
            bucket=bucket_for(user_id), user_id=user_id, token_hash=token_hash, family=family, expires_at=expires_at
        )
    )


async def forget_ended_sessions(session: AsyncSession, user_id: UUID, now: datetime) -> None:
    """Drops a user's refresh tokens that can no longer be used."""
    s = user_sessions.c
    await session.execute(
        delete(user_sessions).where(s.bucket == bucket_for(user_id), s.user_id == user_id, s.expires_at <= now)
    )


@dataclass(frozen=True)
class UsedSession:
    """A refresh token as it was before this use."""

    family: UUID
    expires_at: datetime
    used_before: bool


async def use_session(session: AsyncSession, user_id: UUID, token_hash: bytes) -> UsedSession | None:
    """Marks a refresh token as used; None when it is unknown. Of two at once the second finds it used."""
    s = user_sessions.c
    mine = (s.bucket == bucket_for(user_id)) & (s.user_id == user_id) & (s.token_hash == token_hash)
    row = (await session.execute(select(s.family, s.expires_at, s.used_at).where(mine).with_for_update())).first()
    if row is None:
        return None
    if row.used_at is None:
        await session.execute(update(user_sessions).where(mine).values(used_at=func.clock_timestamp()))
    return UsedSession(row.family, row.expires_at, row.used_at is not None)


async def end_sessions(session: AsyncSession, user_id: UUID, family: UUID | None = None) -> None:
    """Ends one family of sessions, or all of a user's."""
    query = delete(user_sessions).where(
        user_sessions.c.bucket == bucket_for(user_id), user_sessions.c.user_id == user_id
    )
    await session.execute(query if family is None else query.where(user_sessions.c.family == family))
