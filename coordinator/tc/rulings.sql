-- What the coordinator does in its store, set-wise. The data model stands in store.sql, the rule itself, in words that can
-- be enumerated, in core/rulings.py; a test holds the two together.

-- Everything that was said at the same time, in one transaction: hints first, then wishes (0 ask, 1 commit, 2 roll back)
-- in the order of their arrival, then confirmations. All messages may be repeated.
--
-- Returns, for each transaction that a wish names and that is known, one row a resource with its committed branches (one
-- row without a resource where no branch is known); `fresh` when the decision was made here. Rows that are `diverged` name
-- branches whose resource did the opposite of the decision, which no correct resource does.
--
-- Durable when it decides; hints, confirmations and repeated answers do not wait for the disk.
CREATE OR REPLACE FUNCTION tc.apply(
    p_replica uuid,
    p_renudge interval,
    p_begin_xid uuid[] DEFAULT '{}', p_begin_name text[] DEFAULT '{}', p_begin_caller text[] DEFAULT '{}',
    p_begin_deadline_ms bigint[] DEFAULT '{}',
    p_register_xid uuid[] DEFAULT '{}', p_register_caller text[] DEFAULT '{}',
    p_register_deadline_ms bigint[] DEFAULT '{}', p_register_resource text[] DEFAULT '{}',
    p_register_branch uuid[] DEFAULT '{}',
    p_wish_xid uuid[] DEFAULT '{}', p_wish smallint[] DEFAULT '{}', p_wish_name text[] DEFAULT '{}',
    p_wish_caller text[] DEFAULT '{}', p_wish_deadline_ms bigint[] DEFAULT '{}', p_wish_reason text[] DEFAULT '{}',
    p_named_wish integer[] DEFAULT '{}', p_named_xid uuid[] DEFAULT '{}', p_named_resource text[] DEFAULT '{}',
    p_named_branch uuid[] DEFAULT '{}',
    p_confirm_xid uuid[] DEFAULT '{}', p_confirm_resource text[] DEFAULT '{}',
    p_state_xid uuid[] DEFAULT '{}', p_state_resource text[] DEFAULT '{}', p_state_branch uuid[] DEFAULT '{}',
    p_state smallint[] DEFAULT '{}'
) RETURNS TABLE (
    xid uuid, decision smallint, reason text, fresh boolean, resource text, branches uuid[], diverged boolean
) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_now timestamptz;
    v_fresh uuid[];
    v_commits integer[];
    v_memory timestamptz;
BEGIN
    -- In xid order, so that the batches of two replicas wait for each other and never in a circle.
    PERFORM 1 FROM tc.global_transaction g
    WHERE g.xid = ANY (p_begin_xid || p_register_xid || p_wish_xid || p_confirm_xid)
    ORDER BY g.xid FOR UPDATE;
    v_now := clock_timestamp();
    v_memory := (SELECT m.committed_before FROM tc.memory m);  -- after the locks: a purge that was met has moved it

    INSERT INTO tc.global_transaction AS g (xid, name, caller, deadline)
    SELECT DISTINCT ON (m.xid) m.xid, m.name, m.caller, to_timestamp(m.deadline_ms / 1000.0)
    FROM (
        SELECT b.xid, b.name, b.caller, b.deadline_ms, 0 AS rank
        FROM unnest(p_begin_xid, p_begin_name, p_begin_caller, p_begin_deadline_ms) AS b (xid, name, caller, deadline_ms)
        UNION ALL
        SELECT w.xid, w.name, w.caller, w.deadline_ms, CASE WHEN w.wish > 0 THEN 1 ELSE 3 END
        FROM unnest(p_wish_xid, p_wish, p_wish_name, p_wish_caller, p_wish_deadline_ms)
            AS w (xid, wish, name, caller, deadline_ms)
        -- Before its deadline, to ask about an unknown transaction leaves no trace.
        WHERE w.wish > 0 OR to_timestamp(w.deadline_ms / 1000.0) < v_now
        UNION ALL
        SELECT r.xid, '', r.caller, r.deadline_ms, 2
        FROM unnest(p_register_xid, p_register_caller, p_register_deadline_ms) AS r (xid, caller, deadline_ms)
    ) AS m
    -- What may have been committed and purged stays unknown: see tc.memory.
    WHERE to_timestamp(m.deadline_ms / 1000.0) > v_memory
    ORDER BY m.xid, m.rank
    ON CONFLICT (xid) DO UPDATE SET name = excluded.name, caller = excluded.caller
    WHERE g.name = '' AND excluded.name <> '';

    IF cardinality(p_register_xid) > 0 THEN
        INSERT INTO tc.branch (xid, resource, branch_id)
        SELECT DISTINCT r.xid, r.resource, r.branch
        FROM unnest(p_register_xid, p_register_resource, p_register_branch) AS r (xid, resource, branch)
        ON CONFLICT (xid, resource, branch_id) DO NOTHING;
    END IF;

    IF cardinality(p_wish_xid) > 0 THEN
        WITH first_wish AS (
            SELECT DISTINCT ON (w.xid) w.xid, w.wish, w.reason, w.place
            FROM unnest(p_wish_xid, p_wish, p_wish_reason) WITH ORDINALITY AS w (xid, wish, reason, place)
            ORDER BY w.xid, w.wish = 0, w.place
        ), ruled AS (
            UPDATE tc.global_transaction g SET
                decision = CASE WHEN f.wish = 1 AND g.deadline >= v_now THEN 1 ELSE 2 END,
                reason = CASE WHEN f.wish = 2 THEN f.reason WHEN g.deadline < v_now THEN 'timed_out' ELSE 'asked' END,
                decided_at = v_now,
                settlement = 1,
                next_nudge_at = v_now + p_renudge
            FROM first_wish f
            WHERE g.xid = f.xid AND g.decision = 0 AND (f.wish > 0 OR g.deadline < v_now)
            RETURNING g.xid, g.decision, f.place
        )
        SELECT array_agg(r.xid), array_agg(r.place::integer) FILTER (WHERE r.decision = 1)
        INTO v_fresh, v_commits FROM ruled r;

        -- Only the branches of the call that committed are committed; those of any other call are places to look at.
        INSERT INTO tc.branch AS b (xid, resource, branch_id, committed)
        SELECT n.xid, n.resource, n.branch, bool_or(n.wish = ANY (coalesce(v_commits, '{}')))
        FROM unnest(p_named_xid, p_named_wish, p_named_resource, p_named_branch) AS n (xid, wish, resource, branch)
        GROUP BY n.xid, n.resource, n.branch
        ON CONFLICT (xid, resource, branch_id) DO UPDATE SET committed = true
        WHERE excluded.committed AND NOT b.committed;
    END IF;

    IF cardinality(p_confirm_xid) > 0 THEN
        INSERT INTO tc.branch AS b (xid, resource, branch_id, state, confirmed_at)
        SELECT DISTINCT ON (s.xid, s.resource, s.branch) s.xid, s.resource, s.branch, s.state, v_now
        FROM unnest(p_state_xid, p_state_resource, p_state_branch, p_state) WITH ORDINALITY
            AS s (xid, resource, branch, state, place)
        JOIN tc.global_transaction g ON g.xid = s.xid AND g.decision <> 0
        WHERE s.state <> 0 AND s.branch <> '00000000-0000-0000-0000-000000000000'
        ORDER BY s.xid, s.resource, s.branch, s.place DESC
        -- Forgotten and undone are ends; what was quarantined may still be resolved by a person.
        ON CONFLICT (xid, resource, branch_id) DO UPDATE SET state = excluded.state, confirmed_at = v_now
        WHERE b.state IN (0, 3, 4) AND b.state <> excluded.state;

        -- An undo speaks for the whole transaction in its resource: what it does not list never came there, and is
        -- refused when it comes.
        UPDATE tc.branch b SET state = 4, confirmed_at = v_now
        FROM unnest(p_confirm_xid, p_confirm_resource) AS c (xid, resource)
        JOIN tc.global_transaction g ON g.xid = c.xid AND g.decision = 2
        WHERE b.xid = c.xid AND b.resource = c.resource AND b.state = 0
            AND NOT EXISTS (
                SELECT FROM unnest(p_state_xid, p_state_branch, p_state) AS s (xid, branch, state)
                WHERE s.xid = b.xid AND s.branch = b.branch_id AND s.state = 0
            );
    END IF;

    IF cardinality(p_wish_xid) + cardinality(p_register_xid) + cardinality(p_confirm_xid) > 0 THEN
        -- Lateral, so that the branches of each transaction are looked up and never all read.
        UPDATE tc.global_transaction g SET
            settlement = n.settlement,
            settled_at = CASE WHEN n.settlement = 2 THEN v_now END,
            next_nudge_at = CASE WHEN n.waiting THEN coalesce(g.next_nudge_at, v_now + p_renudge) END
        FROM (SELECT DISTINCT x.xid FROM unnest(p_wish_xid || p_register_xid || p_confirm_xid) AS x (xid)) AS t
        JOIN tc.global_transaction d ON d.xid = t.xid AND d.decision <> 0
        CROSS JOIN LATERAL (
            SELECT bool_or(b.state = 3) AS quarantined, bool_or(b.state = 0 AND (b.committed OR d.decision = 2)) AS waiting
            FROM tc.branch b WHERE b.xid = t.xid
        ) AS a
        CROSS JOIN LATERAL (
            SELECT coalesce(a.waiting, false) AS waiting,
                CASE WHEN a.quarantined THEN 3 WHEN a.waiting THEN 1 ELSE 2 END AS settlement
        ) AS n
        WHERE g.xid = t.xid AND g.settlement <> n.settlement;
    END IF;

    IF v_fresh IS NULL THEN
        PERFORM set_config('synchronous_commit', 'off', true);
    ELSE
        IF current_setting('synchronous_commit') IN ('off', 'local') THEN
            PERFORM set_config('synchronous_commit', 'on', true);
        END IF;
        -- NOTIFY serialises commits, so only for those who wait at another replica; this one's are woken by its batch.
        PERFORM pg_notify('tc_decided', d.xid::text)
        FROM (
            SELECT w.holder AS xid FROM tc.wait w WHERE w.holder = ANY (v_fresh) AND w.replica <> p_replica
            UNION
            SELECT w.waiter FROM tc.wait w WHERE w.waiter = ANY (v_fresh) AND w.replica <> p_replica
        ) AS d;
    END IF;

    RETURN QUERY
    SELECT g.xid, g.decision, g.reason, g.xid = ANY (coalesce(v_fresh, '{}')), b.resource, b.branches, false
    FROM tc.global_transaction g
    LEFT JOIN LATERAL (
        SELECT t.resource, coalesce(array_agg(t.branch_id) FILTER (WHERE t.committed), '{}') AS branches
        FROM tc.branch t WHERE t.xid = g.xid GROUP BY t.resource
    ) AS b ON true
    WHERE g.xid = ANY (p_wish_xid) AND g.reason IS DISTINCT FROM 'forgotten';

    IF cardinality(p_state_xid) > 0 THEN
        RETURN QUERY
        SELECT g.xid, g.decision, g.reason, false, b.resource, array_agg(b.branch_id), true
        FROM (SELECT DISTINCT x.xid FROM unnest(p_state_xid) AS x (xid)) AS s
        JOIN tc.global_transaction g ON g.xid = s.xid
        JOIN tc.branch b ON b.xid = g.xid AND b.confirmed_at = v_now
        WHERE (g.decision = 1 AND b.committed AND b.state IN (2, 4))
            OR (g.decision = 2 AND b.state = 1 AND g.reason IS DISTINCT FROM 'forgotten')
        GROUP BY g.xid, g.decision, g.reason, b.resource;
    END IF;
END $$;

-- The commits of transactions that the store has never heard of, which is what most of them are: their hints are taken back
-- when the decision overtakes them. The same ruling as that of tc.apply, in two inserts. Each xid comes once, with branches.
-- Returns those that were committed; tc.apply rules on all others.
CREATE OR REPLACE FUNCTION tc.commit_unheard(
    p_replica uuid, p_renudge interval, p_xid uuid[], p_name text[], p_caller text[], p_deadline_ms bigint[],
    p_named_xid uuid[], p_named_resource text[], p_named_branch uuid[]
) RETURNS uuid[] LANGUAGE plpgsql AS $$
DECLARE
    v_now timestamptz := clock_timestamp();
    v_made uuid[];
BEGIN
    WITH made AS (
        INSERT INTO tc.global_transaction AS g
            (xid, name, caller, deadline, decision, reason, decided_at, settlement, next_nudge_at)
        SELECT w.xid, w.name, w.caller, to_timestamp(w.deadline_ms / 1000.0), 1, 'asked', v_now, 1, v_now + p_renudge
        FROM unnest(p_xid, p_name, p_caller, p_deadline_ms) AS w (xid, name, caller, deadline_ms)
        WHERE to_timestamp(w.deadline_ms / 1000.0) >= v_now
        ORDER BY w.xid
        ON CONFLICT (xid) DO NOTHING
        RETURNING g.xid
    )
    SELECT array_agg(m.xid) INTO v_made FROM made m;
    IF v_made IS NULL THEN
        RETURN '{}';
    END IF;
    INSERT INTO tc.branch (xid, resource, branch_id, committed)
    SELECT n.xid, n.resource, n.branch, true
    FROM unnest(p_named_xid, p_named_resource, p_named_branch) AS n (xid, resource, branch)
    WHERE n.xid = ANY (v_made)
    ON CONFLICT (xid, resource, branch_id) DO NOTHING;
    IF current_setting('synchronous_commit') IN ('off', 'local') THEN
        PERFORM set_config('synchronous_commit', 'on', true);
    END IF;
    -- Also who was never heard of may be waited for: see tc.apply.
    PERFORM pg_notify('tc_decided', w.holder::text)
    FROM (SELECT DISTINCT w.holder FROM tc.wait w WHERE w.holder = ANY (v_made) AND w.replica <> p_replica) AS w;
    RETURN v_made;
END $$;

-- Confirmations that say nothing but "forgotten", which is what most of them are: the same as tc.apply makes of them where
-- the commit named the branch and nothing was confirmed of it yet. Returns the transactions for which that was not all
-- there is to it; tc.apply rules on these, and finds what was done here done already.
CREATE OR REPLACE FUNCTION tc.confirm_forgotten(p_xid uuid[], p_resource text[], p_branch uuid[]) RETURNS uuid[]
LANGUAGE plpgsql AS $$
DECLARE
    v_now timestamptz;
    v_left uuid[];
BEGIN
    PERFORM set_config('synchronous_commit', 'off', true);
    -- In xid order: see tc.apply.
    PERFORM 1 FROM tc.global_transaction g WHERE g.xid = ANY (p_xid) ORDER BY g.xid FOR UPDATE;
    v_now := clock_timestamp();
    UPDATE tc.branch b SET state = 1, confirmed_at = v_now
    FROM unnest(p_xid, p_resource, p_branch) AS s (xid, resource, branch)
    WHERE b.xid = s.xid AND b.resource = s.resource AND b.branch_id = s.branch AND b.committed AND b.state = 0;
    UPDATE tc.global_transaction g SET settlement = 2, settled_at = v_now, next_nudge_at = NULL
    WHERE g.xid = ANY (p_xid) AND g.decision = 1 AND g.settlement = 1 AND NOT EXISTS (
        SELECT FROM tc.branch b WHERE b.xid = g.xid AND (b.state = 3 OR b.state = 0 AND b.committed)
    );
    SELECT array_agg(DISTINCT s.xid) INTO v_left
    FROM unnest(p_xid, p_resource, p_branch) AS s (xid, resource, branch)
    LEFT JOIN tc.branch b ON b.xid = s.xid AND b.resource = s.resource AND b.branch_id = s.branch
    WHERE (b.committed AND b.state = 1) IS NOT TRUE;
    RETURN coalesce(v_left, '{}');
END $$;

-- Rolls back transactions that nobody decided in time. Two replicas share the work and never wait for each other.
CREATE OR REPLACE FUNCTION tc.expire(p_replica uuid, p_renudge interval, p_limit integer) RETURNS TABLE (
    xid uuid, decision smallint, reason text, fresh boolean, resource text, branches uuid[], diverged boolean
) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_xids uuid[];
BEGIN
    v_xids := ARRAY(
        SELECT g.xid FROM tc.global_transaction g
        WHERE g.decision = 0 AND g.deadline < clock_timestamp()
        ORDER BY g.deadline LIMIT p_limit FOR UPDATE SKIP LOCKED
    );
    IF cardinality(v_xids) > 0 THEN
        RETURN QUERY SELECT * FROM tc.apply(
            p_replica, p_renudge, p_wish_xid => v_xids,
            p_wish => array_fill(0::smallint, ARRAY[cardinality(v_xids)]),
            p_wish_name => array_fill(''::text, ARRAY[cardinality(v_xids)]),
            p_wish_caller => array_fill(''::text, ARRAY[cardinality(v_xids)]),
            p_wish_deadline_ms => array_fill(0::bigint, ARRAY[cardinality(v_xids)]),
            p_wish_reason => array_fill(NULL::text, ARRAY[cardinality(v_xids)])
        );
    END IF;
END $$;

-- Notes that `p_waiter` (NULL for a plain writer) waits for `p_holder`, and returns every wait that can be reached from the
-- waiter, among transactions that are still undecided: a cycle through the waiter is in there or does not exist.
CREATE OR REPLACE FUNCTION tc.wait_for(
    p_wait_id uuid, p_replica uuid, p_holder uuid, p_waiter uuid, p_waiter_deadline_ms bigint, p_resource text,
    p_lease interval
) RETURNS TABLE (waiter uuid, holder uuid, waiter_deadline_ms bigint) LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    PERFORM set_config('synchronous_commit', 'off', true);
    IF p_waiter IS NOT NULL THEN
        -- Two waits that close a cycle at the same moment, at two replicas, would each miss the other's row.
        PERFORM pg_advisory_xact_lock(hashtextextended('tc.wait', 0));
    END IF;
    INSERT INTO tc.wait (wait_id, replica, holder, waiter, waiter_deadline_ms, resource, expires_at)
    VALUES (p_wait_id, p_replica, p_holder, p_waiter, p_waiter_deadline_ms, p_resource, clock_timestamp() + p_lease);
    RETURN QUERY
    WITH RECURSIVE live AS MATERIALIZED (
        SELECT DISTINCT w.waiter, w.holder, w.waiter_deadline_ms
        FROM tc.wait w
        WHERE p_waiter IS NOT NULL AND w.waiter IS NOT NULL AND w.expires_at > clock_timestamp()
            AND NOT EXISTS (
                SELECT FROM tc.global_transaction g WHERE g.xid IN (w.waiter, w.holder) AND g.decision <> 0
            )
    ), reached AS (
        SELECT l.waiter, l.holder, l.waiter_deadline_ms FROM live l WHERE l.waiter = p_waiter
        UNION
        SELECT l.waiter, l.holder, l.waiter_deadline_ms FROM live l JOIN reached r ON l.waiter = r.holder
    )
    SELECT r.waiter, r.holder, r.waiter_deadline_ms FROM reached r;
END $$;

-- The synchronous write that a fresh connection makes before it believes a status. On a server that was failed over and
-- does not know it, it does not return.
CREATE OR REPLACE FUNCTION tc.pass_barrier(p_replica uuid) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF current_setting('synchronous_commit') IN ('off', 'local') THEN
        PERFORM set_config('synchronous_commit', 'on', true);
    END IF;
    INSERT INTO tc.barrier AS b (replica, passed_at, passes) VALUES (p_replica, clock_timestamp(), 1)
    ON CONFLICT (replica) DO UPDATE SET passed_at = excluded.passed_at, passes = b.passes + 1;
END $$;

-- Takes up to `p_limit` transactions whose resources should hear of the decision once more, and counts the attempt. The
-- caller sets the next time with tc.nudge_again in the same transaction.
CREATE OR REPLACE FUNCTION tc.nudges_due(p_limit integer) RETURNS TABLE (
    xid uuid, decision smallint, nudges smallint, resource text, branches uuid[]
) LANGUAGE sql AS $$
    WITH due AS (
        SELECT g.xid, g.decision, g.nudges FROM tc.global_transaction g
        WHERE g.settlement IN (1, 3) AND g.next_nudge_at <= clock_timestamp()
            AND g.reason IS DISTINCT FROM 'forgotten'  -- nobody may be told that this one was rolled back
        ORDER BY g.next_nudge_at LIMIT p_limit FOR UPDATE SKIP LOCKED
    )
    SELECT d.xid, d.decision, d.nudges, b.resource,
        coalesce((SELECT array_agg(c.branch_id) FROM tc.branch c
                  WHERE c.xid = d.xid AND c.resource = b.resource AND c.committed), '{}')
    FROM due d JOIN tc.branch b ON b.xid = d.xid AND b.state = 0
    GROUP BY d.xid, d.decision, d.nudges, b.resource
$$;

-- A delay of NULL ends the attempts: what is left is for the resource's own settle loop and for a person.
CREATE OR REPLACE FUNCTION tc.nudge_again(p_xids uuid[], p_delays_s double precision[]) RETURNS void LANGUAGE sql AS $$
    SELECT set_config('synchronous_commit', 'off', true);
    UPDATE tc.global_transaction g
    SET nudges = g.nudges + 1, next_nudge_at = clock_timestamp() + make_interval(secs => n.delay_s)
    FROM unnest(p_xids, p_delays_s) AS n (xid, delay_s) WHERE g.xid = n.xid;
$$;

-- A resource says where it can be nudged. Returns NULL, or the other owner that the name still belongs to: a name is free
-- again when its owner has been silent for `p_lapse`. One that comes back from silence hears again what it missed.
CREATE OR REPLACE FUNCTION tc.announce(p_name text, p_nudge_url text, p_owner text, p_lapse interval) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
    v_now timestamptz := clock_timestamp();
    v_other text;
    v_awake boolean;
BEGIN
    PERFORM set_config('synchronous_commit', 'off', true);
    PERFORM pg_advisory_xact_lock(hashtextextended('tc.resource:' || p_name, 0));
    DELETE FROM tc.resource r WHERE r.name = p_name AND r.announced_at < v_now - p_lapse;
    SELECT r.owner INTO v_other FROM tc.resource r WHERE r.name = p_name AND r.owner <> p_owner LIMIT 1;
    IF v_other IS NOT NULL THEN
        RETURN v_other;
    END IF;
    v_awake := EXISTS (SELECT FROM tc.resource r WHERE r.name = p_name);
    INSERT INTO tc.resource (name, nudge_url, owner, announced_at) VALUES (p_name, p_nudge_url, p_owner, v_now)
    ON CONFLICT (name, nudge_url) DO UPDATE SET announced_at = excluded.announced_at;
    IF NOT v_awake THEN
        UPDATE tc.global_transaction g SET nudges = 0, next_nudge_at = v_now
        WHERE g.xid IN (
            SELECT u.xid FROM tc.global_transaction u
            WHERE u.settlement IN (1, 3)
                AND EXISTS (SELECT FROM tc.branch b WHERE b.xid = u.xid AND b.resource = p_name AND b.state = 0)
            ORDER BY u.xid FOR UPDATE
        );
    END IF;
    RETURN NULL;
END $$;

-- Removes up to `p_limit` transactions from history that ended, with every branch confirmed, and whose deadline has passed,
-- both at least `p_keep` ago: after the deadline a late commit is refused even where nothing is remembered.
CREATE OR REPLACE FUNCTION tc.purge(p_keep interval, p_limit integer) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    v_xids uuid[];
BEGIN
    PERFORM set_config('synchronous_commit', 'off', true);
    v_xids := ARRAY(
        SELECT g.xid FROM tc.global_transaction g
        -- The head of an xid is the time of its making, which keeps this off the recent part of the index.
        WHERE g.xid < (lpad(to_hex(floor(extract(epoch FROM clock_timestamp() - p_keep) * 1000)::bigint), 12, '0')
                || repeat('0', 20))::uuid
            AND g.settlement = 2
            AND g.settled_at < clock_timestamp() - p_keep AND g.deadline < clock_timestamp() - p_keep
        ORDER BY g.xid LIMIT p_limit FOR UPDATE SKIP LOCKED
    );
    UPDATE tc.memory m SET committed_before = p.deadline
    FROM (SELECT max(g.deadline) AS deadline FROM tc.global_transaction g WHERE g.xid = ANY (v_xids) AND g.decision = 1) AS p
    WHERE p.deadline > m.committed_before;
    DELETE FROM tc.alert a WHERE a.closed_at < clock_timestamp() - p_keep;
    DELETE FROM tc.branch b WHERE b.xid = ANY (v_xids);
    DELETE FROM tc.global_transaction g WHERE g.xid = ANY (v_xids);
    RETURN cardinality(v_xids);
END $$;
