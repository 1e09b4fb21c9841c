"""Rows that an undecided global transaction wrote: everybody reads them (AT mode), and they may yet be undone."""

from __future__ import annotations

from sqlalchemy import ColumnElement, Table, column, exists, select, table

SCHEMA_DEFAULT = "public"
UNDO_NAME_MAX_BYTES = 63
"""Undo tables with longer names are named by a hash, which only the database knows."""


def undecided(managed: Table) -> ColumnElement[bool]:
    """Whether a global transaction that is not settled wrote the row of `managed`: a column for the select of that row.

    In the same statement, because a row and the lock on it become visible in the same commit: so one snapshot sees both
    or neither. Costs one look-up by primary key. It says nothing of a row that such a transaction deleted: there is no
    row to ask it of. Raises ValueError for a table whose undo table has no plain name.
    """
    name = f"{managed.schema or SCHEMA_DEFAULT}.{managed.name}"
    if len(name.encode()) > UNDO_NAME_MAX_BYTES:
        raise ValueError(f"the undo table of {name} is named by a hash: the name is longer than 63 bytes")
    keys = list(managed.primary_key.columns)
    undo = table(name, *(column(key.name, key.type) for key in keys), schema="at").alias("undo")
    same = (undo.c[key.name] == key for key in keys)
    return exists(select(1).select_from(undo).where(*same).correlate(managed)).label("undecided")
