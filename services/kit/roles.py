"""Roles and states of accounts, with the seed's numbers: every service reads them from access tokens."""

from __future__ import annotations

from enum import IntEnum


class Role(IntEnum):
    """What somebody is. A provider may do all that an owner may."""

    OWNER = 0
    PROVIDER = 1
    ADMIN = 2


class AccountStatus(IntEnum):
    """Whether somebody may act."""

    PENDING = 0
    ACTIVE = 1
    SUSPENDED = 2
