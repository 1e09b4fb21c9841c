-- The coordinator's store.
--
--   global_transaction 1 --- n branch          what is known about a transaction, and where it has branches
--   resource                                   where a resource can be nudged, and whose it is
--   wait                                       who waits for whom right now (no history, lost in a crash: it is asked again)
--   barrier                                    one row a replica: the synchronous write before a status is believed
--   install                                    one row: what of this file is installed
--   memory                                     one row: up to where committed transactions were purged
--   quarantine                                 what a person has to look at: images of rows, by transaction and resource
--   resolution                                 what a person decided about it, and what came of it: the audit, never purged
--   resource_life                              the last mark of each resource's own chain, and when it was heard
--   alert                                      what a person was told, and whether it still holds
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

-- A transaction that is not known and whose deadline is not after this may be one that was committed and purged, so nobody
-- may presume that it was rolled back. The greatest deadline of all committed transactions that were purged.
CREATE TABLE IF NOT EXISTS tc.memory (
    only_row         boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    committed_before timestamptz NOT NULL DEFAULT '-infinity'
);

INSERT INTO tc.memory DEFAULT VALUES ON CONFLICT DO NOTHING;

CREATE TABLE IF NOT EXISTS tc.quarantine (
    xid         uuid NOT NULL,
    resource    text NOT NULL,
    reason      text,
    digest      text NOT NULL,
    total       integer NOT NULL,
    images      jsonb NOT NULL,
    reported_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (xid, resource)
);

CREATE TABLE IF NOT EXISTS tc.resolution (
    resolution_id uuid PRIMARY KEY,
    xid           uuid NOT NULL,
    resource      text NOT NULL,
    action        text NOT NULL CHECK (action IN ('keep', 'keep_all', 'restore', 'retry')),
    kept          jsonb,
    shown         text,
    images        jsonb,
    decided_by    text NOT NULL,
    caller        text NOT NULL,
    decided_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    done_at       timestamptz,
    outcome       jsonb,
    CHECK ((done_at IS NULL) = (outcome IS NULL))
);

CREATE UNIQUE INDEX IF NOT EXISTS resolution_pending ON tc.resolution (xid, resource) WHERE done_at IS NULL;
CREATE INDEX IF NOT EXISTS resolution_xid ON tc.resolution (xid);

CREATE TABLE IF NOT EXISTS tc.resource_life (
    name        text PRIMARY KEY,
    incarnation uuid NOT NULL,
    beats       bigint NOT NULL,
    mark        uuid NOT NULL,
    heard_at    timestamptz NOT NULL
);

-- subject: an xid or a resource. next_send_at: when the webhook is due; NULL when it was sent, given up, or is not wanted.
CREATE TABLE IF NOT EXISTS tc.alert (
    alert_id     bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind         text NOT NULL,
    subject      text NOT NULL,
    detail       jsonb NOT NULL,
    opened_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    closed_at    timestamptz,
    sent_at      timestamptz,
    next_send_at timestamptz,
    attempts     smallint NOT NULL DEFAULT 0
);

CREATE UNIQUE INDEX IF NOT EXISTS alert_open ON tc.alert (kind, subject) WHERE closed_at IS NULL;
CREATE INDEX IF NOT EXISTS alert_due ON tc.alert (next_send_at) WHERE next_send_at IS NOT NULL;
