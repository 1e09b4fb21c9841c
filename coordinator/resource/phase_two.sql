-- Phase two: forget after a commit, undo after a rollback, and what the settle loop reads.
--
-- Data model: see model.sql. Undo works set-wise from the statements that at.managed keeps per table. The calls
-- may be repeated, reordered, and come twice at once: at.undo holds the transaction's advisory lock exclusively.

-- Drops the undo rows of committed transactions, with `branches` only those of these branches; rows that a branch
-- outside `branches` may share stay, also where that one was still in its phase one when this began. Returns how many
-- branches became FORGOTTEN.
-- It says `state < 1` for OPEN, so that the planner takes the primary key: the index of the open branches would fit
-- `state = 0` too, and holds the entry of every branch that was open since the last vacuum. The plans are made once.
CREATE OR REPLACE FUNCTION at.forget(xids uuid[], branches uuid[] DEFAULT NULL) RETURNS int
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    forgotten int;
    several uuid[];
BEGIN
    PERFORM at.forget_rows(forget.xids, forget.branches);
    IF forget.branches IS NOT NULL THEN
        -- Only where several branches of a transaction were here can they have written the same row.
        several := ARRAY(SELECT b.xid FROM at.branch b WHERE b.xid = ANY (forget.xids) GROUP BY b.xid HAVING count(*) > 1);
        IF several <> '{}' THEN
            PERFORM at.forget_shared_rows(several, forget.branches);
        END IF;
    END IF;
    UPDATE at.branch b SET state = 1, settled_at = clock_timestamp()
        WHERE b.xid = ANY (forget.xids) AND b.state < 1
          AND (forget.branches IS NULL OR b.branch_id = ANY (forget.branches));
    GET DIAGNOSTICS forgotten = ROW_COUNT;
    RETURN forgotten;
END
$$;

-- Restores the rows of `xid`. Runs in a function of its own because switching the role resets the session's plans:
-- an undo without rows does not pay for it. Triggers, rules and foreign keys of the tables are off meanwhile.
CREATE OR REPLACE FUNCTION at.restore(p_xid uuid, p_branches uuid[], p_tables regclass[]) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET session_replication_role = replica AS $$
DECLARE
    m at.managed;
BEGIN
    FOR m IN SELECT * FROM at.managed WHERE relation = ANY (p_tables) ORDER BY relation LOOP
        EXECUTE m.delete_sql USING p_xid, p_branches, false;
        EXECUTE m.update_sql USING p_xid, p_branches, false;
        BEGIN
            EXECUTE m.update_sql USING p_xid, p_branches, true;
        EXCEPTION WHEN unique_violation OR exclusion_violation THEN
            NULL;  -- values changed places: those rows go and come back
        END;
        EXECUTE m.delete_sql USING p_xid, p_branches, true;
        EXECUTE m.insert_sql USING p_xid, p_branches;
    END LOOP;
END
$$;

-- The undo that most rollbacks need, of rows that were updated: one statement a table. NULL, with nothing done, where it
-- is not enough; what is wrong then is said by the long way.
CREATE OR REPLACE FUNCTION at.undo_in_place(p_xid uuid, p_branches uuid[], p_tables regclass[]) RETURNS int
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET session_replication_role = replica AS $$
DECLARE
    m at.managed;
    restored int;
    dropped int;
    problems jsonb;
    total int := 0;
BEGIN
    FOR m IN SELECT * FROM at.managed WHERE relation = ANY (p_tables) ORDER BY relation LOOP
        IF m.in_place_sql = '' OR m.columns IS DISTINCT FROM at.column_names(m.relation) THEN
            RAISE EXCEPTION 'not in place' USING ERRCODE = 'AT007';
        END IF;
        EXECUTE m.in_place_sql USING p_xid, p_branches;
        GET DIAGNOSTICS restored = ROW_COUNT;
        IF m.references_sql <> '' AND restored > 0 THEN
            EXECUTE m.references_sql INTO problems USING p_xid, p_branches, 1;
        END IF;
        EXECUTE m.drop_sql USING p_xid, p_branches;
        GET DIAGNOSTICS dropped = ROW_COUNT;
        IF restored <> dropped OR problems IS NOT NULL THEN
            RAISE EXCEPTION 'not in place' USING ERRCODE = 'AT007';  -- takes back what was restored
        END IF;
        total := total + restored;
    END LOOP;
    RETURN total;
EXCEPTION
    WHEN SQLSTATE 'AT007' OR integrity_constraint_violation OR data_exception OR syntax_error_or_access_rule_violation
         OR with_check_option_violation OR raise_exception THEN
        RETURN NULL;
END
$$;

-- Rows that are not as the branches left them, or that restoring would break, as a jsonb array of at most `p_limit`.
CREATE OR REPLACE FUNCTION at.problems(p_xid uuid, p_branches uuid[], p_tables regclass[], p_what text, p_limit int)
RETURNS jsonb
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    m at.managed;
    statement text;
    page jsonb;
    problems jsonb := '[]';
BEGIN
    FOR m IN SELECT * FROM at.managed WHERE relation = ANY (p_tables) ORDER BY relation LOOP
        EXIT WHEN jsonb_array_length(problems) >= p_limit;
        IF p_what = 'compare' AND m.columns IS DISTINCT FROM at.column_names(m.relation) THEN
            problems := problems || jsonb_build_array(jsonb_build_object(
                'table', m.relation::text, 'key', NULL, 'expected', to_jsonb(m.columns),
                'found', to_jsonb(at.column_names(m.relation)),
                'error', 'the columns changed behind the installation: images may lack values'));
            CONTINUE;
        END IF;
        statement := CASE p_what WHEN 'compare' THEN m.compare_sql ELSE m.verify_sql END;
        CONTINUE WHEN statement = '';
        EXECUTE statement INTO page USING p_xid, p_branches, p_limit - jsonb_array_length(problems);
        problems := problems || coalesce(page, '[]');
    END LOOP;
    RETURN problems;
END
$$;

-- Notes `p_state` on the branches that an undo settles, and answers for at.undo.
CREATE OR REPLACE FUNCTION at.settle(p_xid uuid, p_branches uuid[], p_state smallint, p_rows int, p_problems jsonb)
RETURNS jsonb
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    UPDATE at.branch SET state = p_state, settled_at = clock_timestamp()
        WHERE xid = p_xid AND state IN (0, 3) AND (p_branches IS NULL OR branch_id = ANY (p_branches));
    IF p_state = 3 THEN
        INSERT INTO at.quarantine (xid) VALUES (p_xid) ON CONFLICT DO NOTHING;  -- the coordinator has to be told
    END IF;
    RETURN jsonb_build_object('state', p_state, 'rows', p_rows, 'problems', p_problems);
END
$$;

-- Writes the fence of a rollback: the tombstone of the transaction, or one row per branch not seen here yet. It
-- lives as long as the longest known branch, or an hour (TOMBSTONE_TTL): a phase one that comes after that is
-- merely undone by the settle loop.
CREATE OR REPLACE FUNCTION at.fence(p_xid uuid, p_branches uuid[]) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    INSERT INTO at.branch (xid, branch_id, state, deadline, settled_at)
    SELECT p_xid, u.id, 4,
           greatest(clock_timestamp() + interval '1 hour', (SELECT max(b.deadline) FROM at.branch b WHERE b.xid = p_xid)),
           clock_timestamp()
    FROM unnest(coalesce(p_branches, ARRAY['00000000-0000-0000-0000-000000000000'::uuid])) AS u (id)
    ON CONFLICT DO NOTHING;
$$;

-- Phase two rollback, see docs/reference/resource-sql.md. A wait for a running phase one or for a plain writer's row
-- ends after lock_timeout (UNDO_WAIT, 5 s) with 55P03; nothing is changed then and the caller comes again.
CREATE OR REPLACE FUNCTION at.undo(xid uuid, branches uuid[] DEFAULT NULL) RETURNS jsonb
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '5s' AS $$
#variable_conflict use_column
DECLARE
    problem_limit constant int := 100;
    scope uuid[] := undo.branches;
    tables regclass[];
    problems jsonb;
    settled int;
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'at.undo needs READ COMMITTED: it must see what it waited for' USING ERRCODE = '25001';
    END IF;
    -- Waits for every phase one of this transaction that runs here, and for another undo of it.
    PERFORM pg_advisory_xact_lock(uuid_hash_extended(undo.xid, 4716));
    PERFORM at.fence(undo.xid, scope);
    PERFORM FROM at.branch b WHERE b.xid = undo.xid FOR UPDATE;
    IF scope IS NOT NULL AND NOT EXISTS (SELECT FROM at.branch b WHERE b.xid = undo.xid AND b.branch_id <> ALL (scope)) THEN
        scope := NULL;  -- no other branch was ever here: shared rows belong to these branches alone
    END IF;
    tables := at.touched(undo.xid);
    IF tables = '{}' THEN
        RETURN at.settle(undo.xid, undo.branches, 2::smallint, 0, '[]');
    END IF;
    IF scope IS NOT NULL THEN
        problems := at.shared_rows(undo.xid, tables, problem_limit);
        IF problems <> '[]' THEN
            RETURN at.settle(undo.xid, undo.branches, 3::smallint, 0, problems);
        END IF;
    END IF;
    settled := at.undo_in_place(undo.xid, scope, tables);
    IF settled IS NOT NULL THEN
        RETURN at.settle(undo.xid, undo.branches, 2::smallint, settled, '[]');
    END IF;
    BEGIN
        PERFORM at.lock_rows(undo.xid, scope, tables);
        problems := at.problems(undo.xid, scope, tables, 'compare', problem_limit);
        IF problems = '[]' THEN
            PERFORM at.restore(undo.xid, scope, tables);
            problems := at.problems(undo.xid, scope, tables, 'verify', problem_limit);
        END IF;
        IF problems <> '[]' THEN
            RAISE EXCEPTION 'quarantine' USING ERRCODE = 'AT006';  -- takes back what was restored
        END IF;
        settled := at.drop_rows(undo.xid, scope, tables);
    EXCEPTION
        WHEN SQLSTATE 'AT006' THEN
            RETURN at.settle(undo.xid, undo.branches, 3::smallint, 0, problems);
        WHEN integrity_constraint_violation OR data_exception OR syntax_error_or_access_rule_violation
             OR with_check_option_violation OR object_not_in_prerequisite_state OR raise_exception THEN
            -- 55P03 (lock_timeout) belongs to the class of object_not_in_prerequisite_state, yet is worth a retry.
            IF SQLSTATE = '55P03' THEN
                RAISE;
            END IF;
            RETURN at.settle(undo.xid, undo.branches, 3::smallint, 0, jsonb_build_array(jsonb_build_object(
                'table', NULL, 'key', NULL, 'expected', NULL, 'found', NULL, 'error', SQLSTATE || ': ' || SQLERRM)));
    END;
    RETURN at.settle(undo.xid, undo.branches, 2::smallint, settled, '[]');
END
$$;

-- Locks the touched rows as they are now, and the undo rows: a plain writer on its way is waited for, and refused.
CREATE OR REPLACE FUNCTION at.lock_rows(p_xid uuid, p_branches uuid[], p_tables regclass[]) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    m at.managed;
BEGIN
    FOR m IN SELECT * FROM at.managed WHERE relation = ANY (p_tables) ORDER BY relation LOOP
        EXECUTE m.lock_sql USING p_xid, p_branches;
    END LOOP;
END
$$;

-- Drops the undo rows after they were restored; returns how many.
CREATE OR REPLACE FUNCTION at.drop_rows(p_xid uuid, p_branches uuid[], p_tables regclass[]) RETURNS int
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    m at.managed;
    dropped int;
    total int := 0;
BEGIN
    FOR m IN SELECT * FROM at.managed WHERE relation = ANY (p_tables) ORDER BY relation LOOP
        EXECUTE m.drop_sql USING p_xid, p_branches;
        GET DIAGNOSTICS dropped = ROW_COUNT;
        total := total + dropped;
    END LOOP;
    RETURN total;
END
$$;

-- Rows of `p_xid` that several of its branches touched: they cannot be taken apart again.
CREATE OR REPLACE FUNCTION at.shared_rows(p_xid uuid, p_tables regclass[], p_limit int) RETURNS jsonb
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT coalesce(jsonb_agg(jsonb_build_object(
        'table', s.table_name, 'key', s.key, 'expected', s.after, 'found', NULL,
        'error', 'several branches of this transaction wrote the row')), '[]')
    FROM (SELECT * FROM at.locks(p_xid) l WHERE l.branch_id IS NULL LIMIT p_limit) s;
$$;

-- Transactions with open branches, the oldest first. Where there are more than `limit`, the oldest half and as many drawn
-- from the others: many that stay undecided for long must not hide those behind them from the settle loop.
CREATE OR REPLACE FUNCTION at.unsettled("limit" int)
RETURNS TABLE (xid uuid, branches uuid[], deadline timestamptz)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT d.xid, d.branches, d.deadline FROM (
        SELECT o.* FROM (
            SELECT b.xid, array_agg(b.branch_id) AS branches, max(b.deadline) AS deadline, min(b.created_at) AS since,
                   row_number() OVER (ORDER BY min(b.created_at)) AS place
            FROM at.branch b WHERE b.state = 0 GROUP BY b.xid
        ) AS o
        ORDER BY CASE WHEN o.place <= (unsettled."limit" + 1) / 2 THEN -1 ELSE random() END LIMIT unsettled."limit"
    ) AS d ORDER BY d.since;
$$;

CREATE OR REPLACE FUNCTION at.states(xid uuid) RETURNS TABLE (branch_id uuid, state smallint)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT b.branch_id, b.state FROM at.branch b WHERE b.xid = states.xid ORDER BY b.created_at, b.branch_id;
$$;

CREATE OR REPLACE FUNCTION at.purge(grace interval) RETURNS int
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    purged int;
BEGIN
    -- A row stays while another branch of its transaction is open: it tells at.forget that rows may be shared. And while
    -- there is a step, to which it says what was decided.
    DELETE FROM at.branch b WHERE b.state IN (1, 2, 4) AND b.deadline < clock_timestamp() - purge.grace
        AND NOT EXISTS (SELECT FROM at.branch o WHERE o.xid = b.xid AND o.state < 1)
        AND NOT EXISTS (SELECT FROM at.step s WHERE s.xid = b.xid);
    GET DIAGNOSTICS purged = ROW_COUNT;
    DELETE FROM at.resolution r WHERE r.applied_at < clock_timestamp() - interval '7 days' - purge.grace;
    RETURN purged;
END
$$;

-- Takes or renews the settle lease: true when `owner` holds it for `ttl` from now.
CREATE OR REPLACE FUNCTION at.claim(owner text, ttl interval) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO at.lease AS l (owner, token, expires_at) VALUES (claim.owner, 1, clock_timestamp() + claim.ttl)
    ON CONFLICT ON CONSTRAINT lease_pkey DO UPDATE
        SET owner = excluded.owner, expires_at = excluded.expires_at,
            token = l.token + CASE WHEN l.owner = excluded.owner THEN 0 ELSE 1 END
        WHERE l.owner = excluded.owner OR l.expires_at <= clock_timestamp();
    RETURN FOUND;
END
$$;
