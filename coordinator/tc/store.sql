-- The coordinator's store.
--
--   global_transaction 1 --- n branch          what is known about a transaction, and where it has branches
--   resource                                   where a resource can be nudged, and whose it is
--   wait                                       who waits for whom right now (no history, lost in a crash: it is asked again)
--   barrier                                    one row a replica: the synchronous write before a status is believed
--   install                                    one row: what of this file is installed
--
-- decision: 0 undecided, 1 committed, 2 rolled back. First one wins, never changes.
-- settlement: 0 open, 1 settling, 2 settled, 3 quarantined. Always that of `decision` and the branches; derived, stored for its index.
-- branch.state: 0 open, 1 forgotten, 2 undone, 3 quarantined, 4 tombstone.
-- branch.committed: named by the commit. The others of a committed transaction are orphans, which their resource undoes.
--
-- A row may exist before its Begin came (a Register or Decide overtook it), and Begin may never come. Whoever changes a
-- transaction or its branches locks its row first, so branches need no foreign key and no lock of their own.

CREATE SCHEMA IF NOT EXISTS tc;

CREATE TABLE IF NOT EXISTS tc.install (
    only_row     boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    version      integer NOT NULL,
    digest       text NOT NULL,
    installed_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE IF NOT EXISTS tc.global_transaction (
    xid           uuid PRIMARY KEY,
    name          text NOT NULL,
    caller        text NOT NULL,
    deadline      timestamptz NOT NULL,
    heard_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    decided_at    timestamptz,
    settled_at    timestamptz,
    next_nudge_at timestamptz,
    alerted_at    timestamptz,
    decision      smallint NOT NULL DEFAULT 0 CHECK (decision BETWEEN 0 AND 2),
    settlement    smallint NOT NULL DEFAULT 0 CHECK (settlement BETWEEN 0 AND 3),
    nudges        smallint NOT NULL DEFAULT 0,
    reason        text,
    CHECK ((decision = 0) = (decided_at IS NULL)),
    CHECK ((decision = 0) = (settlement = 0))
) WITH (fillfactor = 70);

CREATE INDEX IF NOT EXISTS undecided ON tc.global_transaction (deadline) WHERE decision = 0;
CREATE INDEX IF NOT EXISTS unsettled ON tc.global_transaction (next_nudge_at) WHERE settlement IN (1, 3);

CREATE TABLE IF NOT EXISTS tc.branch (
    xid          uuid NOT NULL,
    resource     text NOT NULL,
    branch_id    uuid NOT NULL,
    known_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    confirmed_at timestamptz,
    state        smallint NOT NULL DEFAULT 0 CHECK (state BETWEEN 0 AND 4),
    committed    boolean NOT NULL DEFAULT false,
    PRIMARY KEY (xid, resource, branch_id)
) WITH (fillfactor = 80);

CREATE TABLE IF NOT EXISTS tc.resource (
    name         text NOT NULL,
    nudge_url    text NOT NULL,
    owner        text NOT NULL,
    announced_at timestamptz NOT NULL,
    PRIMARY KEY (name, nudge_url)
);

CREATE UNLOGGED TABLE IF NOT EXISTS tc.wait (
    wait_id            uuid PRIMARY KEY,
    replica            uuid NOT NULL,
    holder             uuid NOT NULL,
    waiter             uuid,
    waiter_deadline_ms bigint,
    resource           text NOT NULL,
    since              timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at         timestamptz NOT NULL
);

CREATE INDEX IF NOT EXISTS wait_holder ON tc.wait (holder);
CREATE INDEX IF NOT EXISTS wait_waiter ON tc.wait (waiter);

CREATE TABLE IF NOT EXISTS tc.barrier (
    replica   uuid PRIMARY KEY,
    passed_at timestamptz NOT NULL,
    passes    bigint NOT NULL
);
