"""What the user service does."""

from __future__ import annotations

import asyncio
import secrets
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import msgspec
import structlog
from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerifyMismatchError
from redis.exceptions import RedisError
from sqlalchemy.ext.asyncio import AsyncSession

from coordinator.client import LockConflict, TransactionRolledBack
from services.kit import outbox
from services.kit.auth import ACCESS_KIND, ACCESS_TTL_S
from services.kit.database import Store
from services.kit.paging import Page, page_of
from services.kit.problems import Problem, not_found
from services.kit.roles import AccountStatus, Role
from services.kit.runtime import Runtime
from services.user import domain, errors, events, repository, schemas
from services.user.config import (
    ADMIN_USERNAME,
    ARGON2_MEMORY_KIB,
    HASHES_AT_ONCE,
    LOGIN_FAILURES_MAX,
    LOGIN_WAIT_S,
    REFRESH_TTL_S,
)
from sharding import IdMaker, bucket_of

REGISTER_TIMEOUT_S = 10.0
ADMIN_ATTEMPTS_MAX = 3
"""How often the first administrator's account is tried again behind somebody's undecided one."""
TOLD = {
    "approve": "account_approved",
    "reject": "account_rejected",
    "suspend": "account_suspended",
    "restore": "account_restored",
}
log = structlog.get_logger(__name__)


class Passwords:
    """argon2id, in threads, a few at a time; an unknown account costs as much as a known one."""

    def __init__(self) -> None:
        self._hasher = PasswordHasher(time_cost=1, memory_cost=ARGON2_MEMORY_KIB, parallelism=1)
        self._gate = asyncio.Semaphore(HASHES_AT_ONCE)
        self._decoy = self._hasher.hash(secrets.token_hex(16))

    async def hash(self, password: str) -> str:
        """The hash to store."""
        async with self._gate:
            return await asyncio.to_thread(self._hasher.hash, password)

    async def fits(self, stored: str | None, password: str) -> bool:
        """Whether the password is the one; None (no such account) takes as long and is never."""
        async with self._gate:
            return await asyncio.to_thread(self._verify, stored, password)

    def _verify(self, stored: str | None, password: str) -> bool:
        try:
            return self._hasher.verify(stored or self._decoy, password) and stored is not None
        except (VerifyMismatchError, InvalidHashError):
            return False


@dataclass
class Users:
    """The use cases, over one runtime."""

    runtime: Runtime
    passwords: Passwords
    ids: IdMaker = field(default_factory=IdMaker)

    async def register(self, body: schemas.Register) -> schemas.Registered:
        """A new account that waits for approval; its logins are unique over all shards. 409 names what is taken."""
        status = AccountStatus.ACTIVE if self.runtime.settings.owner_auto_approve else AccountStatus.PENDING
        user_id = await self._create(body, Role.OWNER, status)
        return schemas.Registered("用户注册成功", user_id, int(status))

    async def ensure_admin(self) -> None:
        """Makes sure that the administrator's account is there. Repeatable; a second replica finds it made.

        What a start that was killed left undecided does not count: it is waited for, and made again when it is undone.
        """
        path = self.runtime.settings.admin_password_file
        if path is None:
            return
        login = domain.Login(domain.LoginKind.USERNAME, ADMIN_USERNAME)
        body = schemas.Register(
            username=ADMIN_USERNAME, password=path.read_text(encoding="utf-8").strip(), name="管理员"
        )
        for attempt in range(1, ADMIN_ATTEMPTS_MAX + 1):
            if await self._store_of_login(login).read(lambda s: repository.has_decided_login(s, login)):
                return
            try:
                await self._create(body, Role.ADMIN, AccountStatus.ACTIVE)
                return
            except Problem as problem:
                if problem.code != "login-taken":
                    raise
                log.info("admin.exists")
                return
            except (LockConflict, TransactionRolledBack) as error:
                log.warning("admin.waiting", attempt=attempt, error=str(error))
                if attempt == ADMIN_ATTEMPTS_MAX:
                    raise

    async def _create(self, body: schemas.Register, role: Role, status: AccountStatus) -> UUID:
        logins = _logins_of(body)
        by_kind = {login.kind: login.value for login in logins}
        user_id = self.ids()
        account = repository.NewAccount(
            user_id=user_id,
            username=by_kind[domain.LoginKind.USERNAME],
            name=body.name or body.username,
            role=role,
            status=status,
            password_hash=await self.passwords.hash(body.password),
            email=by_kind.get(domain.LoginKind.EMAIL),
            phone=by_kind.get(domain.LoginKind.PHONE),
        )
        placed: dict[str, list[domain.Login]] = defaultdict(list)
        for login in logins:
            placed[self._store_of_login(login).name].append(login)
        home = self.runtime.store_of(user_id).name
        stores = {store.name: store for store in self.runtime.stores}

        async def work(session: AsyncSession, where: str) -> list[domain.Login]:
            if where == home:
                await repository.add_account(session, account)
            return await repository.add_logins(session, user_id, placed.get(where, []))

        async with self.runtime.coordinator.global_transaction("register", timeout_s=REGISTER_TIMEOUT_S):
            for name in sorted({home, *placed}):
                taken = await stores[name].branch(partial(work, where=name))
                if taken:
                    raise errors.login_taken(taken[0].kind.value)
        return user_id

    async def log_in(self, body: schemas.LogIn) -> schemas.Session:
        """Tokens for whoever knows the password. 401 tells not which of the two was wrong."""
        raw = body.login or body.username
        if not raw:
            raise errors.unusable_login("login", "Send 'login' (or the seed's 'username').")
        try:
            login = domain.guess_login(raw)
        except ValueError:
            await self.passwords.fits(None, body.password)
            raise errors.wrong_credentials() from None
        await self._refuse_when_guessing(login.sharding_key)
        user_id = await self._owner_of(login)
        known = None
        if user_id is not None:
            uid = user_id
            known = await self.runtime.store_of(uid).read(lambda s: repository.credentials_of(s, uid))
        if not await self.passwords.fits(known.password_hash if known else None, body.password) or known is None:
            await self._note_failure(login.sharding_key)
            raise errors.wrong_credentials()
        refresh = domain.refresh_token(known.user_id, secrets.token_bytes(domain.REFRESH_SECRET_BYTES))
        now = self.runtime.clock()
        row = (domain.token_hash(refresh), uuid4(), now + timedelta(seconds=REFRESH_TTL_S))
        uid = known.user_id

        async def work(session: AsyncSession) -> None:
            # A new password ends the sessions that it finds: one that is begun with the old one comes before, or never.
            current = await repository.credentials_of(session, uid, share=True)
            if current is None or current.password_hash != known.password_hash:
                raise errors.wrong_credentials()
            await repository.forget_ended_sessions(session, uid, now)
            await repository.add_session(session, uid, *row)

        await self.runtime.store_of(uid).local(work)
        return self._tokens(known, refresh)

    async def refresh(self, body: schemas.Refresh) -> schemas.Session:
        """New tokens for an unused refresh token; a used one that comes again ends the whole family."""
        try:
            user_id, hashed = domain.read_refresh_token(body.refresh_token)
        except ValueError:
            raise errors.session_ended() from None
        now = self.runtime.clock()
        fresh = domain.refresh_token(user_id, secrets.token_bytes(domain.REFRESH_SECRET_BYTES))

        async def work(session: AsyncSession) -> repository.Credentials | None:
            # First: a new password waits for us and then ends what we make, or comes before and has ended this session.
            known = await repository.credentials_of(session, user_id, share=True)
            used = await repository.use_session(session, user_id, hashed)
            if used is None:
                return None
            if used.used_before or used.expires_at <= now:
                log.warning("session.reused" if used.used_before else "session.old", user_id=str(user_id))
                await repository.end_sessions(session, user_id, used.family)
                return None
            # Used up and replaced in one transaction: a crash leaves the person with one of the two.
            ends = now + timedelta(seconds=REFRESH_TTL_S)
            await repository.add_session(session, user_id, domain.token_hash(fresh), used.family, ends)
            return known

        known = await self.runtime.store_of(user_id).local(work)
        if known is None:
            raise errors.session_ended()
        return self._tokens(known, fresh)

    async def log_out(self, user_id: UUID) -> None:
        """Ends all sessions of a user."""
        await self.runtime.store_of(user_id).local(lambda s: repository.end_sessions(s, user_id))

    async def change_password(self, user_id: UUID, body: schemas.ChangePassword) -> None:
        """A new password; every session ends. Wrong ones are counted as at a login: a stolen token guesses no more."""
        store, guessed = self.runtime.store_of(user_id), f"user:{user_id}"
        await self._refuse_when_guessing(guessed)
        known = await store.read(lambda s: repository.credentials_of(s, user_id))
        if not await self.passwords.fits(known.password_hash if known else None, body.old_password):
            await self._note_failure(guessed)
            raise errors.wrong_credentials()
        hashed = await self.passwords.hash(body.new_password)

        async def work(session: AsyncSession) -> None:
            await repository.set_password(session, user_id, hashed)
            await repository.end_sessions(session, user_id)

        await store.local(work)

    async def user(self, user_id: UUID) -> schemas.User:
        """An account. 404 when there is none."""
        return _user(await self._user(user_id))

    async def profile(self, user_id: UUID) -> schemas.Profile:
        """What everybody may see of an account that is not suspended."""
        user = await self._user(user_id)
        if user["status"] == AccountStatus.SUSPENDED:
            raise not_found("user", user_id)
        return schemas.Profile(user_id, user["name"], user["role"], user["bio"], user["created_at"])

    async def change_profile(self, user_id: UUID, body: schemas.ChangeProfile) -> schemas.User:
        """Changes what the body names."""
        given = {k: v for k, v in msgspec.structs.asdict(body).items() if v is not msgspec.UNSET}

        async def work(session: AsyncSession) -> None:
            if "name" in given:
                await repository.change_user(session, user_id, name=given["name"])
            details = {k: v for k, v in given.items() if k != "name"}
            if details:
                await repository.change_details(session, user_id, **details)

        await self.runtime.store_of(user_id).local(work)
        return await self.user(user_id)

    async def apply_as_provider(self, user_id: UUID, text: str) -> None:
        """Asks an administrator for the provider's role. Raises 409 for whoever has it, or more."""
        now = self.runtime.clock()

        async def work(session: AsyncSession) -> None:
            user = await repository.user_of(session, user_id, lock=True)
            if user is None:
                raise not_found("user", user_id)
            if user["role"] != Role.OWNER:
                raise errors.illegal_status("This account is a provider or administrator already.")
            await repository.change_user(session, user_id, applied_at=now)
            await repository.change_details(session, user_id, application=text)

        await self.runtime.store_of(user_id).local(work)

    async def waiting(self, *, applied: bool, cursor: str | None, limit: int) -> Page[schemas.User]:
        """Who waits for an administrator, over all shards, oldest first."""
        after = self.runtime.cursors.decode(cursor, tuple[datetime, UUID])
        found = await asyncio.gather(
            *(
                store.read(lambda s: repository.users_waiting(s, applied=applied, after=after, limit=limit + 1))
                for store in self.runtime.stores
            )
        )
        rows = sorted((row for part in found for row in part), key=lambda row: (row["created_at"], row["id"]))
        users = [_user(row) for row in rows[: limit + 1]]
        return page_of(users, limit, self.runtime.cursors, lambda user: (user.created_at, user.id))

    async def decide(self, user_id: UUID, verb: str) -> schemas.Decided:
        """An administrator's decision, as a branch of the admin service's transaction."""
        store = self.runtime.store_of(user_id)

        async def work(session: AsyncSession) -> schemas.Decided:
            user = await repository.user_of(session, user_id, lock=True)
            if user is None:
                raise not_found("user", user_id)
            changes, kind = _decision(user, verb)
            await repository.change_user(session, user_id, **changes)
            if changes.get("status") == AccountStatus.SUSPENDED:
                await repository.end_sessions(session, user_id)
            await outbox.send(
                session,
                self.runtime.clock,
                queue=events.NOTIFICATION_QUEUE,
                actor=events.NOTIFICATION_ACTOR,
                args=events.told(kind, user_id),
            )
            return schemas.Decided(
                user_id, int(changes.get("status", user["status"])), int(changes.get("role", user["role"]))
            )

        return await store.branch(work, schemas.Decided)

    def _tokens(self, known: repository.Credentials, refresh: str) -> schemas.Session:
        role, status = int(known.role), int(known.status)
        claims = {"sub": str(known.user_id), "role": role, "status": status}
        access = self.runtime.signer.sign(ACCESS_KIND, claims, ttl_s=ACCESS_TTL_S)
        return schemas.Session(access, refresh, ACCESS_TTL_S, known.user_id, role, status)

    async def _user(self, user_id: UUID) -> dict[str, Any]:
        found = await self.runtime.store_of(user_id).read(lambda s: repository.user_of(s, user_id))
        if found is None:
            raise not_found("user", user_id)
        return found

    def _store_of_login(self, login: domain.Login) -> Store:
        return self.runtime.store_of(bucket_of(login.sharding_key))

    async def _owner_of(self, login: domain.Login) -> UUID | None:
        return await self._store_of_login(login).read(lambda s: repository.find_login(s, login))

    async def _refuse_when_guessing(self, whose: str) -> None:
        try:
            failures = int(await self.runtime.redis.get(_failures_key(whose)) or 0)
        except (RedisError, OSError):
            return  # without Redis nobody is kept out; the hash itself is slow
        if failures >= LOGIN_FAILURES_MAX:
            raise errors.too_many_attempts(LOGIN_WAIT_S)

    async def _note_failure(self, whose: str) -> None:
        try:
            key = _failures_key(whose)
            await self.runtime.redis.incr(key)
            await self.runtime.redis.expire(key, LOGIN_WAIT_S)
        except (RedisError, OSError) as error:
            log.warning("login.failures_not_counted", error=str(error))


def _failures_key(whose: str) -> str:
    return f"login_failures:{whose}"


def _logins_of(body: schemas.Register) -> Sequence[domain.Login]:
    given = {
        domain.LoginKind.USERNAME: body.username,
        domain.LoginKind.EMAIL: body.email,
        domain.LoginKind.PHONE: body.phone,
    }
    logins = []
    for kind, raw in given.items():
        if raw is None:
            continue
        try:
            logins.append(domain.normalise(kind, raw))
        except ValueError as error:
            raise errors.unusable_login(kind.value, str(error)) from None
    return logins


def _decision(user: dict[str, Any], verb: str) -> tuple[dict[str, Any], str]:
    """The columns that an administrator's decision changes, and what the user is told. Raises 409 `illegal-status`."""
    match verb:
        case "approve-provider":
            _check_applied(user)
            return {"role": int(Role.PROVIDER), "applied_at": None}, "provider_approved"
        case "reject-provider":
            _check_applied(user)
            return {"applied_at": None}, "account_rejected"
        case "suspend" if user["role"] == Role.ADMIN:
            raise errors.illegal_status("An administrator cannot be suspended.")
    try:
        status = domain.decide(AccountStatus(user["status"]), verb)
    except ValueError as error:
        raise errors.illegal_status(str(error)) from None
    return {"status": int(status)}, TOLD[verb]


def _check_applied(user: dict[str, Any]) -> None:
    if user["applied_at"] is None:
        raise errors.illegal_status("This account has not applied to be a provider.")


def _user(row: dict[str, Any]) -> schemas.User:
    return schemas.User(**{name: row[name] for name in schemas.User.__struct_fields__})
