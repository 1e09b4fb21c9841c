"""The rules of accounts. Pure."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID

from services.kit.roles import AccountStatus

USERNAME = re.compile(r"^[a-z][a-z0-9_.-]{2,63}$")
SPECIAL = r'@\s\x00-\x1f\x7f"(),:;<>\[\\\]'
"""What means something of its own in the header of an e-mail (RFC 5322, specials): it could name a second reader."""
EMAIL = re.compile(rf"^(?!.*=\?)[^{SPECIAL}]{{1,64}}@[^{SPECIAL}]{{1,250}}\.[^{SPECIAL}.]{{2,}}$")
"""The `=?` would begin an encoded word (RFC 2047), which is such a thing in disguise."""
PHONE = re.compile(r"^\+?[0-9]{6,19}$")
REFRESH_SECRET_BYTES = 32


class LoginKind(StrEnum):
    """By what somebody may log in."""

    USERNAME = "username"
    EMAIL = "email"
    PHONE = "phone"


@dataclass(frozen=True)
class Login:
    """One thing by which an account is found; `value` is normalised."""

    kind: LoginKind
    value: str

    @property
    def sharding_key(self) -> str:
        """What places the look-up row: all three kinds spread over all buckets."""
        return f"{self.kind}:{self.value}"


def normalise(kind: LoginKind, raw: str) -> Login:
    """A login as it is stored: lower case, no spaces. Raises ValueError when it cannot be one."""
    value = raw.strip().lower()
    if kind is LoginKind.PHONE:
        value = re.sub(r"[\s-]", "", value)
    pattern = {LoginKind.USERNAME: USERNAME, LoginKind.EMAIL: EMAIL, LoginKind.PHONE: PHONE}[kind]
    if not pattern.match(value):
        raise ValueError(f"{raw!r} is not a usable {kind}")
    return Login(kind, value)


def guess_login(raw: str) -> Login:
    """What somebody typed into the login field. Raises ValueError when it can be none of the three."""
    text = raw.strip()
    if "@" in text:
        return normalise(LoginKind.EMAIL, text)
    if PHONE.match(re.sub(r"[\s-]", "", text)):
        return normalise(LoginKind.PHONE, text)
    return normalise(LoginKind.USERNAME, text)


_DECISIONS: Mapping[str, tuple[frozenset[AccountStatus], AccountStatus]] = {
    "approve": (frozenset({AccountStatus.PENDING, AccountStatus.ACTIVE}), AccountStatus.ACTIVE),
    "reject": (frozenset({AccountStatus.PENDING}), AccountStatus.SUSPENDED),
    "suspend": (frozenset({AccountStatus.PENDING, AccountStatus.ACTIVE}), AccountStatus.SUSPENDED),
    "restore": (frozenset({AccountStatus.SUSPENDED}), AccountStatus.ACTIVE),
}


def decide(status: AccountStatus, verb: str) -> AccountStatus:
    """The status after an administrator's decision. Raises ValueError with the statuses for which it is.

    A rejected account may do nothing and waits for nobody, as a suspended one; it is restored like that too.
    """
    allowed, to = _DECISIONS[verb]
    if status not in allowed:
        names = " or ".join(sorted(one.name.lower() for one in allowed))
        raise ValueError(f"'{verb}' is for an account that is {names}; this one is {status.name.lower()}.")
    return to


def refresh_token(user_id: UUID, secret: bytes) -> str:
    """An opaque refresh token: it names its user, so that it is found without asking every shard."""
    return base64.urlsafe_b64encode(user_id.bytes + secret).decode().rstrip("=")


def read_refresh_token(token: str) -> tuple[UUID, bytes]:
    """The user and the hash to look for. Raises ValueError when it is none of ours."""
    try:
        raw = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
    except (binascii.Error, ValueError) as error:
        raise ValueError("not a refresh token") from error
    if len(raw) != 16 + REFRESH_SECRET_BYTES:
        raise ValueError("not a refresh token")
    return UUID(bytes=raw[:16]), token_hash(token)


def token_hash(token: str) -> bytes:
    """What is stored of a refresh token. It is random, so a plain hash is enough."""
    return hashlib.sha256(token.encode()).digest()
