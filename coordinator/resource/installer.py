"""Puts the protocol into a database: schema ``at``, the triggers of managed tables, the guards of all others."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

import asyncpg

from coordinator.resource.errors import InstallationError
from coordinator.resource.functions import Connection

SCRIPTS = (
    "model.sql",
    "catalog.sql",
    "phase_one.sql",
    "phase_two.sql",
    "quarantine.sql",
    "capture.sql",
    "settling.sql",
    "reads.sql",
    "steps.sql",
    "registry.sql",
    "upkeep.sql",
)
"""The SQL of the installation, in the order in which it runs."""

SERVER_VERSION_MIN = 170000
"""The oldest PostgreSQL that is supported, as server_version_num."""

INSTALL_LOCK = 4716_0001
"""The advisory lock under which installations of one database take turns."""


@dataclass(frozen=True)
class InstallReport:
    """What an installation found and did.

    `upgraded` says that the SQL itself was new here, `event_triggers` that later changes of the schema are followed at
    once (otherwise by the next install). Tables are named with their schema.
    """

    upgraded: bool
    managed: tuple[str, ...]
    exempt: tuple[str, ...]
    guarded: int
    event_triggers: bool
    roles: tuple[str, ...]


async def install(
    connection: Connection, *, managed: Sequence[str], exempt: Sequence[str] = (), roles: Sequence[str] = ()
) -> InstallReport:
    """Installs or upgrades the protocol, in one transaction; repeating it changes nothing and locks no table.

    `managed` tables may be written in branches, `exempt` ones too but without undo; every other table refuses
    branches. Tables managed before stay so. `roles` get what an application needs. `connection` must be a superuser,
    or own the tables and have SET on session_replication_role. Raises InstallationError when a table cannot be
    managed, a name is unknown, the server is too old or the rights do not suffice.
    """
    scripts = [_script(name) for name in SCRIPTS]
    fingerprint = hashlib.sha256("".join(scripts).encode()).hexdigest()
    async with connection.transaction():
        await _check_server(connection)
        await connection.execute("SELECT pg_advisory_xact_lock($1)", INSTALL_LOCK)
        managed_ids = [await _relation(connection, name) for name in managed]
        exempt_ids = [await _relation(connection, name) for name in exempt]
        await connection.execute("SELECT set_config('at.following', 'yes', true)")
        upgraded = await _installed(connection) != fingerprint
        if upgraded:
            await connection.execute("SET LOCAL check_function_bodies = off")  # functions name later ones
            for script in scripts:
                await connection.execute(script)
            await connection.execute(
                "INSERT INTO at.installed (fingerprint) VALUES ($1)"
                " ON CONFLICT (one) DO UPDATE SET fingerprint = excluded.fingerprint, installed_at = now()",
                fingerprint,
            )
            await connection.execute("SELECT at.write_fleet_functions()")
            await connection.execute("REVOKE ALL ON ALL FUNCTIONS IN SCHEMA at FROM PUBLIC")
        await _apply(connection, managed_ids, exempt_ids, roles)
        if upgraded:
            # Roles named to an earlier installation take part in what is new, too.
            await connection.execute(
                "SELECT at.grant_role(g.role_name) FROM at.role_grant g JOIN pg_roles r ON r.rolname = g.role_name"
            )
        report = await _report(connection, upgraded)
        await connection.execute("SELECT set_config('at.following', '', true)")
    return report


async def unmanage(connection: Connection, tables: Sequence[str]) -> None:
    """Ends the management of `tables`: branches may not write them. Migrations that change a key or a type need it.

    Raises InstallationError while a table has undo rows, or when a name is unknown.
    """
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock($1)", INSTALL_LOCK)
        await connection.execute("SELECT set_config('at.following', 'yes', true)")
        for name in tables:
            relation = await _relation(connection, name)
            try:
                await connection.execute("SELECT at.unmanage($1::oid::regclass)", relation)
            except asyncpg.ObjectInUseError as error:
                raise InstallationError(f"{error}; settle them first") from error
        await connection.execute("SELECT set_config('at.following', '', true)")


async def uninstall(connection: Connection) -> None:
    """Removes schema ``at`` and every trigger that calls into it.

    Raises InstallationError while undo rows or steps exist.
    """
    async with connection.transaction():
        if await connection.fetchval("SELECT to_regnamespace('at')") is None:
            return
        rows = await connection.fetch("SELECT relation::text AS name FROM at.managed ORDER BY relation")
        await unmanage(connection, [row["name"] for row in rows])
        known = await connection.fetchval("SELECT to_regclass('at.step') IS NOT NULL")
        if known and await connection.fetchval("SELECT EXISTS (SELECT FROM at.step)"):
            raise InstallationError("there are steps that are not over; SELECT * FROM at.steps() lists them")
        await connection.execute("SELECT set_config('at.following', 'yes', true)")
        await connection.execute(_script("uninstall.sql"))


async def _apply(connection: Connection, managed: Sequence[int], exempt: Sequence[int], roles: Sequence[str]) -> None:
    """Brings registry, triggers, guards and grants to what was asked for."""
    await connection.execute("SELECT at.prune()")
    try:
        for relation in managed:
            await connection.execute("SELECT at.manage($1::oid::regclass)", relation)
        for relation in exempt:
            await connection.execute("SELECT at.exempt_table($1::oid::regclass)", relation)
        await connection.execute("SELECT at.generate(relation) FROM at.managed ORDER BY relation")
    except (
        asyncpg.FeatureNotSupportedError,
        asyncpg.ObjectInUseError,
        asyncpg.ObjectNotInPrerequisiteStateError,
    ) as error:
        raise InstallationError(str(error)) from error
    await connection.execute("SELECT at.guard_all()")
    for role in roles:
        if not await connection.fetchval("SELECT true FROM pg_roles WHERE rolname = $1", role):
            raise InstallationError(f"role {role!r} does not exist")
        await connection.execute("SELECT at.grant_role($1)", role)
    await connection.execute("SELECT at.ensure_event_triggers()")


async def _report(connection: Connection, upgraded: bool) -> InstallReport:
    row = await connection.fetchrow(
        """
        WITH names AS (
            SELECT c.oid, format('%I.%I', n.nspname, c.relname) AS name
            FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace)
        SELECT ARRAY(SELECT name FROM names JOIN at.managed ON relation = oid ORDER BY 1) AS managed,
               ARRAY(SELECT name FROM names JOIN at.exempt ON relation = oid ORDER BY 1) AS exempt,
               ARRAY(SELECT role_name::text FROM at.role_grant ORDER BY 1) AS roles,
               (SELECT count(*) FROM pg_trigger WHERE tgname = 'at_guard') AS guarded,
               at.ensure_event_triggers() AS event_triggers
        """
    )
    assert row is not None  # noqa: S101 - a SELECT without FROM has a row
    return InstallReport(
        upgraded=upgraded,
        managed=tuple(row["managed"]),
        exempt=tuple(row["exempt"]),
        guarded=row["guarded"],
        event_triggers=row["event_triggers"],
        roles=tuple(row["roles"]),
    )


async def _check_server(connection: Connection) -> None:
    row = await connection.fetchrow(
        """
        SELECT current_setting('server_version_num')::int AS version, current_setting('server_version') AS version_text,
               current_user::text AS role,
               has_parameter_privilege('session_replication_role', 'SET') AS may_switch
        """
    )
    assert row is not None  # noqa: S101 - a SELECT without FROM has a row
    if row["version"] < SERVER_VERSION_MIN:
        raise InstallationError(f"PostgreSQL {row['version_text']} is too old: 17 or newer is needed")
    if not row["may_switch"]:
        raise InstallationError(
            f"role {row['role']} may not set session_replication_role, which undo needs: install as a superuser,"
            f" or let one GRANT SET ON PARAMETER session_replication_role TO {row['role']}"
        )


async def _installed(connection: Connection) -> str | None:
    """The fingerprint of what is installed, or None."""
    if await connection.fetchval("SELECT to_regclass('at.installed')") is None:
        return None
    fingerprint: str | None = await connection.fetchval("SELECT fingerprint FROM at.installed")
    return fingerprint


async def _relation(connection: Connection, name: str) -> int:
    """The oid of a table by the name that the connection's search path gives it."""
    oid: int | None = await connection.fetchval("SELECT to_regclass($1)::oid", name)
    if oid is None:
        raise InstallationError(f"table {name!r} does not exist in this database")
    return oid


def _script(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
