"""What the user service is, and its constants."""

from __future__ import annotations

from services.kit.spec import ServiceSpec

TABLES = ("users", "user_details", "user_credentials", "user_logins", "user_sessions")

SPEC = ServiceSpec(
    name="user",
    port=8081,
    purpose="Accounts, logins and roles: who somebody is.",
    storage="sharded",
    managed=TABLES,
    guarded=TABLES,
)

ADMIN_USERNAME = "admin"
REFRESH_TTL_S = 30 * 24 * 3600
"""Life of a refresh token."""
LOGIN_FAILURES_MAX = 10
"""Wrong passwords for one login before it has to wait."""
LOGIN_WAIT_S = 300
"""How long wrong passwords are remembered."""
ARGON2_MEMORY_KIB = 47_104
"""46 MiB: the first of the parameter sets that OWASP's password storage page recommends for argon2id."""
HASHES_AT_ONCE = 2
"""Passwords that are hashed at the same time: each takes a core and ARGON2_MEMORY_KIB."""
