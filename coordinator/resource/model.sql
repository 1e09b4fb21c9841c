-- Schema at: what a resource database keeps about global transactions.
--
--   at.branch      one row per branch (one local transaction of a global one): the fence that phase one and
--                  phase two meet at. state: 0 OPEN, 1 FORGOTTEN, 2 UNDONE, 3 QUARANTINED, 4 TOMBSTONE. The row
--                  (xid, all zeros) is the tombstone of a whole transaction: phase one after it is refused.
--   at."S.T"       one table per managed table S.T, its undo table. Key columns of S.T with their own types as
--                  primary key (a key column named like one of the following is called key_<name>), xid, branch_id
--                  (NULL when several branches of xid touched the row), before and after image as rows of S.T,
--                  olds and news (NULL but while captures of one statement are still to come, see capture.sql).
--                  One row is the global lock and the net undo record of one key. Both images may be NULL: the
--                  row came and went within xid. Generated columns are NULL in images, but for those of unique indexes and
--                  foreign keys.
--   at.managed     the registry of managed tables, with the generated statements of phase two.
--   at.exempt      tables that a branch may write although nothing of it can be undone.
--   at.role_grant  the roles that may take part.
--   at.step        effects and messages outside the database, see steps.sql.
--   at.lease       one row: who runs the settle loop, and until when.
--   at.installed   one row: the fingerprint of the SQL that is installed.
--
-- Transaction-local settings: at.xid and at.branch say that this local transaction is a branch. After the
-- transaction they read as '' rather than NULL.

CREATE SCHEMA IF NOT EXISTS at;

CREATE TABLE IF NOT EXISTS at.branch (
    xid uuid NOT NULL,
    branch_id uuid NOT NULL,
    state smallint NOT NULL DEFAULT 0 CHECK (state BETWEEN 0 AND 4),
    deadline timestamptz NOT NULL,
    result jsonb,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    settled_at timestamptz,
    PRIMARY KEY (xid, branch_id)
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000);

CREATE INDEX IF NOT EXISTS branch_open ON at.branch (created_at) WHERE state = 0;
CREATE INDEX IF NOT EXISTS branch_settled ON at.branch (deadline) WHERE state IN (1, 2, 4);

CREATE TABLE IF NOT EXISTS at.managed (
    relation regclass PRIMARY KEY,
    undo_table name NOT NULL UNIQUE,
    columns name[] NOT NULL,
    fingerprint text NOT NULL,
    lock_sql text NOT NULL,      -- ($1 xid, $2 branches): locks the rows as they are now
    compare_sql text NOT NULL,   -- ($1, $2, $3 limit): rows that are not as the branch left them, as jsonb
    update_sql text NOT NULL,    -- ($1, $2, $3): puts before images back in place where no unique value moved; $3: all
    delete_sql text NOT NULL,    -- ($1, $2, $3): removes rows that came; $3: all that are not as they were
    insert_sql text NOT NULL,    -- ($1, $2): brings the other before images back
    verify_sql text NOT NULL,    -- ($1, $2, $3): foreign keys that the restored rows would break, as jsonb; or ''
    drop_sql text NOT NULL,      -- ($1, $2): drops the undo rows
    in_place_sql text NOT NULL DEFAULT '',   -- ($1, $2): puts all before images back in place, or only some; '' if never
    references_sql text NOT NULL DEFAULT ''  -- verify_sql where foreign keys have to do with the table, else ''
);
ALTER TABLE at.managed ADD COLUMN IF NOT EXISTS in_place_sql text NOT NULL DEFAULT '';
ALTER TABLE at.managed ADD COLUMN IF NOT EXISTS references_sql text NOT NULL DEFAULT '';

CREATE TABLE IF NOT EXISTS at.exempt (relation regclass PRIMARY KEY);

CREATE TABLE IF NOT EXISTS at.role_grant (role_name name PRIMARY KEY);

CREATE TABLE IF NOT EXISTS at.lease (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    owner text NOT NULL,
    token bigint NOT NULL,       -- rises with every change of owner
    expires_at timestamptz NOT NULL
);

CREATE TABLE IF NOT EXISTS at.installed (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    fingerprint text NOT NULL,
    installed_at timestamptz NOT NULL DEFAULT now()
);
