-- Phase one: how a local transaction becomes a branch, and how writers are refused.
--
-- Data model: see model.sql. These functions write at.branch and the settings at.xid and at.branch.
-- SQLSTATEs: AT001 lock conflict, AT002 deadline passed, AT003 branch repeated, AT004 rolled back here,
-- AT005 cannot be undone; 40001 for plain writers that meet a lock. DETAIL names the holder's xid.

-- Makes this local transaction the branch. The shared advisory lock is what at.undo waits for: with it either
-- undo sees this branch's row, or this function sees undo's tombstone; never neither: the statement that looks has a
-- snapshot that was taken under the lock.
-- It runs with every BEGIN of a branch, and a SET clause costs as much as its insert. So its search_path is the caller's:
-- every function, type and operator in it carries its schema, and what would look one up unseen (nullif, IS DISTINCT
-- FROM, IN, BETWEEN) must not stand here.
CREATE OR REPLACE FUNCTION at.enter(xid uuid, branch_id uuid, deadline timestamptz) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER AS $$
#variable_conflict use_column
BEGIN
    IF pg_catalog.current_setting('at.xid', true) OPERATOR(pg_catalog.<>) '' THEN
        RAISE EXCEPTION 'this local transaction is a branch of global transaction % already',
            pg_catalog.current_setting('at.xid', true) USING ERRCODE = '25001';
    END IF;
    IF enter.deadline OPERATOR(pg_catalog.<=) pg_catalog.clock_timestamp() THEN
        RAISE EXCEPTION 'the deadline % of global transaction % has passed', enter.deadline, enter.xid
            USING ERRCODE = 'AT002';
    END IF;
    PERFORM pg_catalog.pg_advisory_xact_lock_shared(pg_catalog.uuid_hash_extended(enter.xid, 4716)),
        pg_catalog.set_config('at.xid', enter.xid::pg_catalog.text, true),
        pg_catalog.set_config('at.branch', enter.branch_id::pg_catalog.text, true);
    INSERT INTO at.branch (xid, branch_id, deadline)
        SELECT enter.xid, enter.branch_id, enter.deadline
        WHERE NOT EXISTS (
            SELECT FROM at.branch b WHERE b.xid OPERATOR(pg_catalog.=) enter.xid
                AND b.branch_id OPERATOR(pg_catalog.=) '00000000-0000-0000-0000-000000000000'::pg_catalog.uuid)
        ON CONFLICT ON CONSTRAINT branch_pkey DO NOTHING;
    IF NOT FOUND THEN
        PERFORM at.refuse_branch(enter.xid, enter.branch_id);
    END IF;
END
$$;

-- Raises why a branch cannot be entered: its transaction was rolled back here, or the branch was here before.
CREATE OR REPLACE FUNCTION at.refuse_branch(p_xid uuid, p_branch_id uuid) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    found_state smallint;
    found_result jsonb;
BEGIN
    PERFORM FROM at.branch b WHERE b.xid = p_xid AND b.branch_id = '00000000-0000-0000-0000-000000000000';
    IF FOUND THEN
        RAISE EXCEPTION 'global transaction % was rolled back here', p_xid
            USING ERRCODE = 'AT004', DETAIL = p_xid::text;
    END IF;
    SELECT b.state, b.result INTO found_state, found_result
        FROM at.branch b WHERE b.xid = p_xid AND b.branch_id = p_branch_id;
    RAISE EXCEPTION 'branch % of global transaction % was taken before', p_branch_id, p_xid
        USING ERRCODE = 'AT003', DETAIL = found_state::text, HINT = coalesce(found_result::text, '');
END
$$;

-- Keeps an answer in the current branch's row, for a call that is repeated.
CREATE OR REPLACE FUNCTION at.keep(result jsonb) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    UPDATE at.branch b SET result = keep.result
        WHERE b.xid = nullif(current_setting('at.xid', true), '')::uuid
          AND b.branch_id = nullif(current_setting('at.branch', true), '')::uuid;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'at.keep outside a branch: call at.enter first' USING ERRCODE = '25001';
    END IF;
END
$$;

-- Raises the conflict of a writer with a row that global transaction `holder` locks: 40001 for a plain writer,
-- whose retry loop knows it, AT001 for a branch. Declared to return the holder so that it fits into expressions.
CREATE OR REPLACE FUNCTION at.refuse(relation text, holder uuid, what text DEFAULT 'row') RETURNS uuid
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF coalesce(current_setting('at.xid', true), '') = '' THEN
        RAISE EXCEPTION 'row locked by global transaction % (% of %)', holder, what, relation
            USING ERRCODE = '40001', DETAIL = holder::text,
                  HINT = 'Retry the transaction after the global transaction is settled.';
    END IF;
    RAISE EXCEPTION '% of % is locked by global transaction %', what, relation, holder
        USING ERRCODE = 'AT001', DETAIL = holder::text;
END
$$;

-- The guard of a table that is not managed. Its trigger fires inside branches only (see guard in registry.sql).
CREATE OR REPLACE FUNCTION at.refuse_unmanaged() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RAISE EXCEPTION '% on table %.% inside a branch could not be undone', TG_OP, TG_TABLE_SCHEMA, TG_TABLE_NAME
        USING ERRCODE = 'AT005',
              DETAIL = 'The table is not managed.',
              HINT = format('Manage it (SELECT at.manage(%L)), or exempt it if its rows may outlive a rollback (SELECT at.exempt_table(%1$L)).',
                            TG_RELID::regclass);
END
$$;
