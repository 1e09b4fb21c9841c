"""The wire shapes of the user service."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated
from uuid import UUID

import msgspec
from msgspec import Meta

Username = Annotated[str, Meta(min_length=3, max_length=64)]
Password = Annotated[str, Meta(min_length=8, max_length=200)]
Email = Annotated[str, Meta(min_length=3, max_length=320)]
Phone = Annotated[str, Meta(min_length=6, max_length=24)]
Name = Annotated[str, Meta(min_length=1, max_length=80)]
Text = Annotated[str, Meta(min_length=1, max_length=2000)]


class Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A body in which nothing unknown may stand: no client gives itself a role."""


class Register(Strict, frozen=True):
    """A new account. Role and status are not the client's to say."""

    username: Username
    password: Password
    email: Email | None = None
    phone: Phone | None = None
    name: Name | None = None


class Registered(msgspec.Struct, frozen=True):
    """The seed's answer."""

    message: str
    user_id: UUID
    status: int


class LogIn(Strict, frozen=True):
    """`login` is a username, an e-mail address or a phone number; `username` is the seed's name for it."""

    password: Annotated[str, Meta(min_length=1, max_length=200)]
    login: Annotated[str, Meta(min_length=1, max_length=320)] | None = None
    username: Annotated[str, Meta(min_length=1, max_length=320)] | None = None


class Session(msgspec.Struct, frozen=True):
    """Tokens of somebody who is logged in. `token` is the access token."""

    token: str
    refresh_token: str
    expires_in_s: int
    user_id: UUID
    role: int
    status: int


class Refresh(Strict, frozen=True):
    """A refresh token, used once."""

    refresh_token: Annotated[str, Meta(min_length=10, max_length=200)]


class User(msgspec.Struct, frozen=True):
    """An account as its owner, an administrator or another service sees it."""

    id: UUID
    username: str
    name: str
    role: int
    status: int
    created_at: datetime
    applied_at: datetime | None = None
    email: str | None = None
    phone: str | None = None
    address: str | None = None
    bio: str | None = None
    application: str | None = None


class Profile(msgspec.Struct, frozen=True):
    """What everybody may see."""

    id: UUID
    name: str
    role: int
    bio: str | None
    since: datetime


class ChangeProfile(Strict, frozen=True):
    """What somebody may change about themselves; absent members stay."""

    name: Name | msgspec.UnsetType = msgspec.UNSET
    address: Text | msgspec.UnsetType | None = msgspec.UNSET
    bio: Text | msgspec.UnsetType | None = msgspec.UNSET


class ChangePassword(Strict, frozen=True):
    """The old password proves who is asking; all other sessions end."""

    old_password: Annotated[str, Meta(min_length=1, max_length=200)]
    new_password: Password


class Apply(Strict, frozen=True):
    """Why somebody wants to be a provider."""

    text: Text


class Decide(Strict, frozen=True):
    """An administrator's word, passed on by the admin service."""

    reason: Annotated[str, Meta(max_length=1000)] = ""


class Decided(msgspec.Struct, frozen=True):
    """The account after the decision."""

    id: UUID
    status: int
    role: int


class Message(msgspec.Struct, frozen=True):
    """A plain answer."""

    message: str
