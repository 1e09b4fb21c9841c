"""The tables on every shard. The bucket of a row is that of its user; of a login, that of the login itself."""

from __future__ import annotations

from sqlalchemy import Column, DateTime, Index, LargeBinary, MetaData, SmallInteger, Table, Text, Uuid, func, text

metadata = MetaData()


def _stamp(name: str, *, nullable: bool = False, default: bool = True) -> Column[object]:
    return Column(
        name,
        DateTime(timezone=True),
        nullable=nullable,
        server_default=func.clock_timestamp() if default else None,
    )


users = Table(
    "users",
    metadata,
    Column("bucket", SmallInteger, primary_key=True),
    Column("id", Uuid, primary_key=True),
    Column("username", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("role", SmallInteger, nullable=False),
    Column("status", SmallInteger, nullable=False),
    _stamp("applied_at", nullable=True, default=False),
    _stamp("created_at"),
    _stamp("updated_at"),
    Index("users_pending", "created_at", "id", postgresql_where=text("status = 0")),
    Index("users_applied", "created_at", "id", postgresql_where=text("applied_at IS NOT NULL")),
)

user_details = Table(
    "user_details",
    metadata,
    Column("bucket", SmallInteger, primary_key=True),
    Column("user_id", Uuid, primary_key=True),
    Column("email", Text),
    Column("phone", Text),
    Column("address", Text),
    Column("bio", Text),
    Column("application", Text),
)

user_credentials = Table(
    "user_credentials",
    metadata,
    Column("bucket", SmallInteger, primary_key=True),
    Column("user_id", Uuid, primary_key=True),
    Column("password_hash", Text, nullable=False),
    _stamp("changed_at"),
)

user_logins = Table(
    "user_logins",
    metadata,
    Column("bucket", SmallInteger, primary_key=True),
    Column("kind", Text, primary_key=True),
    Column("value", Text, primary_key=True),
    Column("user_id", Uuid, nullable=False),
)

user_sessions = Table(
    "user_sessions",
    metadata,
    Column("bucket", SmallInteger, primary_key=True),
    Column("user_id", Uuid, primary_key=True),
    Column("token_hash", LargeBinary, primary_key=True),
    Column("family", Uuid, nullable=False),
    _stamp("used_at", nullable=True, default=False),
    _stamp("expires_at", default=False),
    _stamp("created_at"),
)
