"""Who is asking, and what they may.

A person carries an access token that the user service signed; a service carries a service token. Every route has
exactly one of the guards below (or `public`), which a test checks. Ownership is the use case's to check, with 404.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from litestar.connection import ASGIConnection
from litestar.datastructures import State
from litestar.handlers import BaseRouteHandler
from litestar.middleware import ASGIMiddleware
from litestar.types import ASGIApp, Receive, Scope, Send
from litestar.types.callable_types import Guard

from coordinator.protocol.errors import CallerRefused
from coordinator.protocol.tokens import TokenVerifier
from services.kit.problems import Problem, answer, forbidden, unauthorized
from services.kit.roles import AccountStatus, Role
from services.kit.signing import BadSignature, Expired, Verifier

__all__ = [
    "ACCESS_ISSUER",
    "ACCESS_KIND",
    "ACCESS_TTL_S",
    "AccountStatus",
    "Caller",
    "Identities",
    "IdentityMiddleware",
    "Principal",
    "Role",
    "any_user",
    "approved_user",
    "has_role",
    "internal",
    "principal_of",
    "public",
]

ACCESS_KIND = "access"
ACCESS_TTL_S = 900
"""Life of an access token. A suspension takes hold at the latest after it."""

ACCESS_ISSUER = "user"


@dataclass(frozen=True)
class Principal:
    """A person, as their access token says."""

    user_id: UUID
    role: Role
    status: AccountStatus


@dataclass(frozen=True)
class Caller:
    """A service (or the operator), as its service token says."""

    name: str


@dataclass(frozen=True)
class Identities:
    """Turns an Authorization header into a Principal or a Caller."""

    people: Verifier
    services: TokenVerifier

    def identify(self, header: str | None) -> Principal | Caller | None:
        """None without a header. Raises a 401 problem for a token that does not hold."""
        if not header:
            return None
        scheme, _, token = header.partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise unauthorized("Send 'Authorization: Bearer <token>'.")
        try:
            claims = self.people.verify(ACCESS_KIND, ACCESS_ISSUER, token)
            return Principal(UUID(claims["sub"]), Role(claims["role"]), AccountStatus(claims["status"]))
        except Expired:
            raise unauthorized("The access token has ended. Refresh it at POST /api/users/token/refresh.") from None
        except (BadSignature, KeyError, ValueError):
            pass
        try:
            return Caller(self.services.caller_of(token))
        except CallerRefused:
            raise unauthorized("The token is not valid. Log in at POST /api/users/login.") from None


class IdentityMiddleware(ASGIMiddleware):
    """Puts the Principal, the Caller or None into `request.user`."""

    def __init__(self, identities: Identities) -> None:
        self._identities = identities

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        """Answers with a 401 problem to a token that does not hold, also on public routes."""
        header = next((v.decode("latin-1") for k, v in scope["headers"] if k == b"authorization"), None)
        try:
            scope["user"] = self._identities.identify(header)
        except Problem as problem:
            # Not raised: out here only the framework's outermost handler would see it, past the log and the trace id.
            await answer(problem, scope, send)
            return
        scope["auth"] = header
        await next_app(scope, receive, send)


Connection = ASGIConnection[Any, Any, Any, State]


def principal_of(connection: Connection) -> Principal:
    """The person who asks. Raises a 401 problem when it is none."""
    user = connection.scope.get("user")
    if not isinstance(user, Principal):
        raise unauthorized("Log in first: POST /api/users/login.")
    if user.status is AccountStatus.SUSPENDED:
        raise forbidden("This account is suspended.", code="suspended")
    return user


# The guards are coroutines that never wait: Litestar would run plain functions in a thread, for every request.


async def public(connection: Connection, handler: BaseRouteHandler) -> None:
    """Everybody may. Written out, so that a forgotten guard is seen."""


async def any_user(connection: Connection, handler: BaseRouteHandler) -> None:
    """Whoever is logged in, approved or not."""
    principal_of(connection)


async def approved_user(connection: Connection, handler: BaseRouteHandler) -> None:
    """Whoever is logged in and approved."""
    _approved(connection)


def _approved(connection: Connection) -> Principal:
    principal = principal_of(connection)
    if principal.status is not AccountStatus.ACTIVE:
        raise forbidden("This account waits for an administrator's approval.", code="not-approved")
    return principal


def has_role(*roles: Role) -> Guard:
    """An approved person with one of `roles`."""

    async def guard(connection: Connection, handler: BaseRouteHandler) -> None:
        if _approved(connection).role not in roles:
            names = " or ".join(role.name.lower() for role in roles)
            raise forbidden(f"This needs the role {names}.")

    guard.__name__ = "has_role_" + "_".join(role.name.lower() for role in roles)
    return guard


def internal(callers: Iterable[str]) -> Guard:
    """Only the named services."""
    allowed = frozenset(callers)

    async def guard(connection: Connection, handler: BaseRouteHandler) -> None:
        user = connection.scope.get("user")
        if not isinstance(user, Caller):
            raise unauthorized("This address is for services.")
        if user.name not in allowed:
            raise forbidden(f"{user.name} may not call this.")

    guard.__name__ = "internal_" + "_".join(sorted(allowed))
    return guard
