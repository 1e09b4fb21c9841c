"""The tables that the kit needs in a service's database, and how a service's migrations run SQL."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from alembic import op

KIT_TABLES = ("outbox", "inbox", "idempotency_keys")


def kit_sql(name: Literal["outbox", "inbox", "idempotency"]) -> str:
    """The DDL of one of the kit's tables."""
    return (Path(__file__).parent / f"{name}.sql").read_text(encoding="utf-8")


def run_script(sql: str) -> None:
    """Runs `sql`, as many statements as it holds, inside the migration that is running.

    `op.execute` prepares what it is given, and PostgreSQL prepares one statement only.
    """
    connection = op.get_bind()
    # The driver's adapter opens its transaction with the first statement that it sees itself.
    connection.exec_driver_sql("SELECT 1")
    adapted: Any = connection.connection.dbapi_connection
    adapted.run_async(lambda driver: driver.execute(sql))
