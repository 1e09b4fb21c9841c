"""Random SQL over tables of every kind, for driving through branches; and exact comparison of whole databases."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import asyncpg

SCHEMA = (Path(__file__).parent / "random_sql.sql").read_text()

Make = Callable[[Random], str]


def _one_of(*values: str) -> Make:
    return lambda dice: dice.choice(values)


def _number(low: int, high: int) -> Make:
    return lambda dice: str(dice.randint(low, high))


def _text(dice: Random) -> str:
    return dice.choice(["'a'", "'b '", "''", "'Ünïcode ✓'", "NULL", "'quo''te'", "repeat(md5(random()::text), 200)"])


VALUES: dict[str, Make] = {
    "n": _one_of("0", "1.0", "1.00", "-12.3450", "'NaN'", "NULL", "1e30", "'Infinity'"),
    "ts": _one_of("now()", "'infinity'", "'-infinity'", "'2026-10-25 02:30:00.000001+02'", "NULL"),
    "d": _one_of("'infinity'", "'4713-01-01 BC'", "current_date", "NULL"),
    "iv": _one_of("'1 mon -3 days 04:05:06.7'", "'30 days'", "'1 mon'", "NULL", "'infinity'"),
    "jb": _one_of("'null'", "NULL", """'{"a": [1, 1.0, null], "b": {}}'""", "'[]'"),
    "js": _one_of("""'{"b" : 1,  "a":2, "a":3}'""", "'null'", "NULL", "' [1 ]'"),
    "arr": _one_of("'{}'", "'[3:4]={1,NULL}'", "'{{1,2},{3,4}}'", "NULL", "'{1}'"),
    "tarr": _one_of("""'{"a b",NULL,""}'""", "'{NULL}'", """ARRAY['NULL', 'x,y']""", "NULL"),
    "by": _one_of(r"'\x00ff'", "''::bytea", "NULL", r"'\xdeadbeef'"),
    "f": _one_of("'NaN'", "'-0'", "0", "'Infinity'", "1e-307", "0.1", "NULL"),
    "r4": _one_of("'-0'::real", "'NaN'", "3.14159", "NULL"),
    "co": _one_of("ROW(1, 'x')::comp", "ROW(NULL, NULL)::comp", "NULL", "ROW(2, 'a,\"b')::comp"),
    "e": _one_of("'red'", "'dark blue'", "NULL"),
    "rg": _one_of("'empty'", "'[2026-01-01,2026-02-01)'", "'(,)'", "NULL"),
    "mr": _one_of("'{}'", "'{[1,3),[7,9)}'", "NULL"),
    "ch": _one_of("'ab'", "'abcde'", "''", "NULL"),
    "qc": _one_of("'\"'", "NULL", "'x'"),
    "bt": _one_of("B'101'", "B'000'", "NULL"),
    "pt": _one_of("'(1,2)'", "'(-0,NaN)'", "NULL"),
    "ne": _one_of("'10.0.0.1/8'", "'::1'", "NULL"),
    "mo": _one_of("'12.34'", "'-1'", "NULL"),
    "dm": _one_of("1", "99", "NULL"),
    "tv": _one_of("to_tsvector('simple', 'a b c')", "NULL"),
    "t": _text,
    "uu": _one_of("'00000000-0000-0000-0000-000000000001'::uuid", "'ffffffff-ffff-ffff-ffff-ffffffffffff'", "NULL"),
    "tsl": _one_of("'infinity'", "'2026-11-25 10:00:00.123456'", "NULL"),
    "ti": _one_of("'24:00'", "'00:00:00.000001'", "NULL"),
    "tz": _one_of("'12:00+02'", "'10:00+00'", "NULL"),
    "vc": _one_of("'a'", "'a  '", "''", "NULL"),
    "vb": _one_of("B''", "B'0101'", "NULL"),
    "i2": _one_of("-32768", "7", "NULL"),
    "cd": _one_of("'10.0.0.0/8'", "'::/0'", "NULL"),
    "mac": _one_of("'08:00:2b:01:02:03'", "NULL"),
    "tq": _one_of("'a & !b'", "''", "NULL"),
    "jp": _one_of("'$.a[*] ? (@ > 1)'", "'strict $'", "NULL"),
    "ls": _one_of("'[(0,0),(-0,1)]'", "NULL"),
    "bx": _one_of("'(1,1),(0,0)'", "NULL"),
    "pa": _one_of("'[(0,0),(1,1)]'", "'((0,0),(1,1))'", "NULL"),
    "po": _one_of("'((0,0),(1,1),(1,0))'", "NULL"),
    "ci": _one_of("'<(0,0),1>'", "NULL"),
    "ln": _one_of("'{1,-1,0}'", "NULL"),
    "ea": _one_of("'{red,NULL}'", "'{}'", "NULL"),
    "ca": _one_of("ARRAY[ROW(1, 'x'), ROW(NULL, NULL), NULL]::comp[]", "'{}'", "NULL"),
    "ra": _one_of("""'{"[1,5)",empty,NULL}'""", "NULL"),
    "oi": _one_of("0", "4294967295", "NULL"),
    "nm": _one_of("'Näme'", "''", "NULL"),
    "ls2": _one_of("'0/0'", "'FFFFFFFF/FFFFFFFF'", "NULL"),
    "u": _number(1, 14),
    "w": _number(1, 6),
    "flag": _one_of("true", "false", "NULL"),
}
"""How a column's values are made, by the column's name."""


@dataclass(frozen=True)
class Table:
    """A table of the random schema: `keys` with how they are made, the columns that statements set."""

    name: str
    keys: dict[str, Make]
    columns: tuple[str, ...]
    conflict: str = ""
    parts: tuple[str, ...] = ()
    makers: dict[str, Make] = field(default_factory=dict)

    def make(self, column: str, dice: Random) -> str:
        """An SQL expression for a value of `column`."""
        maker = self.keys.get(column) or self.makers.get(column) or VALUES[column]
        return maker(dice)


_ID = _number(1, 12)
_WIDE = tuple(c for c in VALUES if c not in ("u", "w", "flag"))

TABLES = (
    Table("wide", {"id": _ID}, _WIDE),
    Table("pair", {"a": _one_of("'x'", "'Y'", "'y '", "'é'"), "b": _number(1, 4)}, ("u", "n", "t")),
    Table(
        "part", {"id": _ID, "month": _number(1, 6)}, ("n", "t", "jb"), parts=("part_1", "part_2", "part_34", "part_3")
    ),
    Table('"Odd Näme"', {'"xid"': _ID}, ('"before"', "w"), makers={'"before"': _text}),
    Table("owned", {"id": _ID}, ("t", "n")),
    Table("parent", {"id": _number(1, 5)}, ("t",)),
    Table(
        "child",
        {"id": _ID},
        ("p1", "p2", "up", "t"),
        makers={"p1": _one_of("1", "2", "3", "NULL"), "p2": _number(1, 5), "up": _one_of("1", "2", "3", "NULL")},
    ),
    Table("noisy", {"id": _ID}, ("w", "flag"), makers={}),
    Table(
        "excl", {"id": _ID}, ("rg", "w"), makers={"rg": lambda d: f"int4range({d.randint(1, 9)}, {d.randint(10, 12)})"}
    ),
    Table(
        "motley",
        {
            "nu": _one_of("1", "1.0", "1.00", "'NaN'::numeric", "'-Infinity'::numeric", "2"),
            "fo": _one_of("'x'", "'X'", "'é'", "'É'", "''"),
            "ts": _one_of(
                "timestamptz 'infinity'", "timestamptz '2026-10-25 02:30+02'", "timestamptz '2026-10-25 00:31+00'"
            ),
        },
        ("w", "t"),
        makers={"w": _number(1, 30)},
    ),
    Table(
        "exotic",
        {
            "co": _one_of("ROW(1, 'x')::comp", "ROW(NULL, NULL)::comp", "ROW(1, NULL)::comp"),
            "e": _one_of("'red'::colour", "'dark blue'::colour"),
            "arr": _one_of("'{}'::int[]", "'[3:4]={1,NULL}'::int[]", "'{1,NULL}'::int[]"),
            "by": _one_of(r"'\x00'::bytea", "''::bytea"),
            "uu": _one_of("repeat('0', 32)::uuid", "repeat('f', 32)::uuid"),
        },
        ("n", "w"),
    ),
    Table("hashed", {"id": _ID}, ("u", "t"), parts=("hashed_0", "hashed_1")),
    Table("onlykey", {"k": _ID}, ()),
    Table("genkey", {"id": _ID}, ("w",), conflict="tenfold"),
)
TABLE_NAMES = (*(table.name for table in TABLES), "tally")


def _predicate(table: Table, dice: Random) -> str:
    key = dice.choice(list(table.keys))
    if dice.random() < 0.15:
        return "true"
    return f"{key} {dice.choice(['=', '=', '<', '>='])} {table.make(key, dice)}"


def _assignments(table: Table, dice: Random) -> str:
    columns = dice.sample(table.columns, dice.randint(1, min(3, len(table.columns))))
    return ", ".join(f"{column} = {table.make(column, dice)}" for column in columns)


def _columns(table: Table) -> list[str]:
    return [*table.keys, *table.columns]


def _row(table: Table, dice: Random) -> str:
    return "(" + ", ".join(table.make(column, dice) for column in _columns(table)) + ")"


def _insert(table: Table, dice: Random, target: str | None = None) -> str:
    rows = ", ".join(_row(table, dice) for _ in range(dice.randint(1, 4)))
    return f"INSERT INTO {target or table.name} ({', '.join(_columns(table))}) OVERRIDING SYSTEM VALUE VALUES {rows}"


def _insert_quietly(table: Table, dice: Random) -> str:
    return _insert(table, dice) + " ON CONFLICT DO NOTHING"


def _upsert(table: Table, dice: Random) -> str:
    statement = (
        f"INSERT INTO {table.name} ({', '.join(_columns(table))}) OVERRIDING SYSTEM VALUE VALUES {_row(table, dice)}"
    )
    if not table.columns:
        return statement + " ON CONFLICT DO NOTHING"
    sets = ", ".join(f"{c} = excluded.{c}" for c in table.columns)
    return f"{statement} ON CONFLICT ({table.conflict or ', '.join(table.keys)}) DO UPDATE SET {sets}"


def _update(table: Table, dice: Random) -> str:
    target = dice.choice((table.name, *table.parts))
    if not table.columns:
        return _change_key(table, dice)
    return f"UPDATE {target} SET {_assignments(table, dice)} WHERE {_predicate(table, dice)}"


def _change_key(table: Table, dice: Random) -> str:
    key = dice.choice(list(table.keys))
    value = table.make(key, dice)
    if key in ("id", '"xid"', "k", "b") and dice.random() < 0.5:
        value = f"{key} + {dice.choice([20, -20, 1, 3])}"
    return f"UPDATE {table.name} SET {key} = {value} WHERE {_predicate(table, dice)}"


def _delete(table: Table, dice: Random) -> str:
    return f"DELETE FROM {dice.choice((table.name, *table.parts))} WHERE {_predicate(table, dice)}"


def _replace(table: Table, dice: Random) -> str:
    columns = ", ".join(_columns(table))
    changed = ", ".join(
        table.make(c, dice) if c in table.columns and dice.random() < 0.3 else c for c in _columns(table)
    )
    return (
        f"WITH gone AS (DELETE FROM {table.name} WHERE {_predicate(table, dice)} RETURNING *) "
        f"INSERT INTO {table.name} ({columns}) OVERRIDING SYSTEM VALUE SELECT {changed} FROM gone"
    )


def _two_updates(table: Table, dice: Random) -> str:
    if not table.columns:
        return _delete(table, dice)
    first, second, third = _update(table, dice), _delete(table, dice), _update(table, dice)
    return f"WITH one AS ({first} RETURNING 1), two AS ({second} RETURNING 1) {third}"


def _across(table: Table, dice: Random) -> str:
    other = dice.choice(TABLES)
    first, second, third = _delete(other, dice), _insert(other, dice), _update(table, dice)
    return f"WITH one AS ({first} RETURNING 1), two AS ({second} RETURNING 1) {third}"


def _partly_read(table: Table, dice: Random) -> str:
    columns = ", ".join(_columns(table))
    return (
        f"WITH gone AS (DELETE FROM {table.name} WHERE {_predicate(table, dice)} RETURNING *) "
        f"INSERT INTO {table.name} ({columns}) OVERRIDING SYSTEM VALUE SELECT {columns} FROM gone LIMIT 1"
    )


def _insert_select(table: Table, dice: Random) -> str:
    key = list(table.keys)[-1] if table.name in ("pair",) else next(iter(table.keys))
    columns = _columns(table)
    moved = table.make(key, dice) if table.name == "exotic" else f"{key} + {dice.choice([30, 1, 5])}"
    values = ", ".join(moved if c == key else c for c in columns)
    if table.name == "pair":
        values = values.replace("u,", "u + 40,")
    return (
        f"INSERT INTO {table.name} ({', '.join(columns)}) OVERRIDING SYSTEM VALUE "
        f"SELECT {values} FROM {table.name} WHERE {_predicate(table, dice)}"
    )


def _merge(table: Table, dice: Random) -> str:
    keys = list(table.keys)
    rows = ", ".join("(" + ", ".join(table.make(k, dice) for k in keys) + ")" for _ in range(3))
    matched = f"UPDATE SET {_assignments(table, dice)}" if table.columns else "DELETE"
    return (
        f"MERGE INTO {table.name} t USING (SELECT DISTINCT * FROM (VALUES {rows}) v ({', '.join(keys)})) s "
        f"ON {' AND '.join(f't.{k} = s.{k}' for k in keys)} "
        f"WHEN MATCHED AND {dice.choice(['true', 'false', f't.{keys[0]} IS NOT NULL'])} THEN {matched} "
        f"WHEN MATCHED THEN DELETE "
        f"WHEN NOT MATCHED THEN INSERT ({', '.join(_columns(table))}) OVERRIDING SYSTEM VALUE "
        f"VALUES ({', '.join([f's.{k}' for k in keys] + [table.make(c, dice) for c in table.columns])})"
    )


def _swap(table: Table, dice: Random) -> str:
    if table.name == "pair":
        return "UPDATE pair SET u = 100 - u"
    return f"UPDATE {table.name} SET {_assignments(table, dice)}" if table.columns else _delete(table, dice)


def _update_from(table: Table, dice: Random) -> str:
    """Joins the table with itself; a row that is met several times is changed once, by any of them."""
    if not table.columns:
        return _delete_using(table, dice)
    column, key = dice.choice(table.columns), dice.choice(list(table.keys))
    return (
        f"UPDATE {table.name} AS t SET {column} = o.{column} FROM {table.name} AS o "
        f"WHERE t.{key} {dice.choice(['<', '>=', '<>'])} o.{key} RETURNING t.*"
    )


def _delete_using(table: Table, dice: Random) -> str:
    other, key = dice.choice(TABLES), dice.choice(list(table.keys))
    return (
        f"DELETE FROM {table.name} AS t USING {other.name} AS o "
        f"WHERE t.{key} = {table.make(key, dice)} AND o.{next(iter(other.keys))} IS NOT NULL"
    )


def _upsert_where(table: Table, dice: Random) -> str:
    if not table.columns:
        return _insert_quietly(table, dice)
    return (
        f"{_upsert(table, dice)} WHERE {table.name}.{next(iter(table.keys))} {dice.choice(['IS NOT NULL', 'IS NULL'])}"
    )


def _merge_away(table: Table, dice: Random) -> str:
    """What the source does not have is deleted or changed too."""
    key = next(iter(table.keys))
    missing = f"UPDATE SET {_assignments(table, dice)}" if table.columns and dice.random() < 0.5 else "DELETE"
    return (
        f"MERGE INTO {table.name} t USING (SELECT {table.make(key, dice)} AS k) s ON t.{key} = s.k "
        f"WHEN NOT MATCHED BY SOURCE AND t.{key} {dice.choice(['<', '>'])} {table.make(key, dice)} THEN {missing} "
        f"WHEN MATCHED THEN {f'UPDATE SET {_assignments(table, dice)}' if table.columns else 'DO NOTHING'}"
    )


def _by_cursor(table: Table, dice: Random) -> str:
    if table.parts:  # PostgreSQL refuses a cursor whose query leaves partitions out
        return _delete(table, dice)
    change = f"UPDATE {table.name} SET {_assignments(table, dice)}" if table.columns else f"DELETE FROM {table.name}"
    return (
        f"DO $do$ DECLARE c CURSOR FOR SELECT FROM {table.name} WHERE {_predicate(table, dice)} FOR UPDATE; BEGIN "
        f"FOR r IN c LOOP {change} WHERE CURRENT OF c; END LOOP; END $do$"
    )


def _by_view(table: Table, dice: Random) -> str:
    row = f"({dice.randint(1, 12)}, 'seen', {dice.randint(1, 9)})"
    return dice.choice(
        [
            f"INSERT INTO seen (id, t, n) VALUES {row} ON CONFLICT (id) DO UPDATE SET n = excluded.n + 1",
            f"UPDATE seen SET n = n + 1, t = {_text(dice)} WHERE id < {dice.randint(1, 12)}",
            f"DELETE FROM seen WHERE id = {dice.randint(1, 12)}",
        ]
    )


def _caught_inside(table: Table, dice: Random) -> str:
    """A block whose last statement fails, and with it those before; what comes after stays."""
    inner = f"{_update(table, dice)}; {_insert_quietly(table, dice)}; RAISE division_by_zero;"
    return f"DO $do$ BEGIN BEGIN {inner} EXCEPTION WHEN division_by_zero THEN {_delete(table, dice)}; END; END $do$"


def _in_a_block(table: Table, dice: Random) -> str:
    inner = f"{_update(table, dice)}; {_upsert(table, dice)}; {_delete(table, dice)};"
    return f"DO $do$ BEGIN {inner} END $do$"


KINDS = (
    _insert, _insert_quietly, _insert_quietly, _upsert, _upsert, _update, _update, _change_key, _delete, _replace,
    _two_updates, _across, _partly_read, _insert_select, _merge, _merge, _swap, _in_a_block, _update_from,
    _delete_using, _upsert_where, _merge_away, _by_cursor, _by_view, _caught_inside,
)  # fmt: skip


def statement(dice: Random, tables: tuple[Table, ...] = TABLES) -> str:
    """A random statement. It may well violate a constraint: run it in a savepoint."""
    return dice.choice(KINDS)(dice.choice(tables), dice)


def rows_for(table: Table, dice: Random) -> str:
    """A statement that gives the table rows, as far as they fit."""
    return _insert_quietly(table, dice)


async def prepare(connection: asyncpg.Connection) -> None:
    """Makes the random schema and, for comparison, an empty copy of each table in schema snap."""
    await connection.execute(SCHEMA)
    await connection.execute("CREATE SCHEMA snap")
    for name in TABLE_NAMES:
        await connection.execute(f"CREATE TABLE snap.{name} AS SELECT * FROM {name} WITH NO DATA")


async def take_snapshot(connection: asyncpg.Connection) -> None:
    """Copies every table to schema snap, bit by bit."""
    for name in TABLE_NAMES:
        await connection.execute(f"DELETE FROM snap.{name}; INSERT INTO snap.{name} SELECT * FROM {name}")


def locking_read(dice: Random, tables: tuple[Table, ...] = TABLES) -> str:
    """A statement that locks every row of a random table."""
    return f"SELECT count(*) FROM at.lock(ARRAY(SELECT at_x FROM {dice.choice(tables).name} at_x FOR NO KEY UPDATE))"


async def differences(connection: asyncpg.Connection, *, committed: bool = False) -> list[str]:
    """Tables that are not bit for bit as in the last snapshot, with an example row; empty when all are.

    With `committed` they are looked at with committed reads.
    """
    found = []
    for name in TABLE_NAMES:
        columns = await connection.fetchval(
            "SELECT string_agg(format('%%s.%I', attname), ', ' ORDER BY attnum) FROM pg_attribute"
            " WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped",
            name,
        )
        now, then = columns.replace("%s", "at_t"), columns.replace("%s", "at_s")
        source = f"at.committed(NULL::{name})" if committed else name
        row = await connection.fetchrow(
            f"""
            WITH at_now AS (
                SELECT ROW({now}) AS r, row_number() OVER (PARTITION BY ROW({now})::text) AS i FROM {source} at_t),
            at_then AS (
                SELECT ROW({then}) AS r, row_number() OVER (PARTITION BY ROW({then})::text) AS i FROM snap.{name} at_s)
            SELECT n.r::text AS now, t.r::text AS then
            FROM at_now n FULL JOIN at_then t ON n.r::text = t.r::text AND n.i = t.i
            WHERE n.i IS NULL OR t.i IS NULL OR NOT record_image_eq(n.r, t.r) LIMIT 1
            """
        )
        if row is not None:
            found.append(f"{name}: now {row['now']}, then {row['then']}")
    return found
