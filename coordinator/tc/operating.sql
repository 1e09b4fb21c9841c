-- What a person needs: quarantines and decisions about them, life signs of resources, and alerts. The data model stands in
-- store.sql.

-- A quarantined transaction that is not known any more: it is listed, and nobody is told that it was rolled back.
CREATE OR REPLACE FUNCTION tc.note_forgotten(p_xid uuid, p_caller text) RETURNS void LANGUAGE sql AS $$
    INSERT INTO tc.global_transaction (xid, name, caller, deadline, decision, reason, decided_at, settlement)
    VALUES (p_xid, '', p_caller, clock_timestamp(), 2, 'forgotten', clock_timestamp(), 1)
    ON CONFLICT (xid) DO NOTHING;
$$;

-- What a resource says about a quarantined transaction. Returns the decision that waits for it, if any, and whether its images
-- are wanted. `p_images` is NULL where the resource believes that they are here; `p_outcome` ends the decision `p_resolution`.
CREATE OR REPLACE FUNCTION tc.report(
    p_xid uuid, p_resource text, p_quarantined boolean, p_reason text, p_digest text, p_total integer, p_images jsonb,
    p_resolution uuid, p_outcome jsonb
) RETURNS TABLE (resolution_id uuid, action text, shown text, kept jsonb, show boolean) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_show boolean := false;
BEGIN
    UPDATE tc.resolution r SET done_at = clock_timestamp(), outcome = p_outcome
    WHERE r.resolution_id = p_resolution AND r.done_at IS NULL;
    IF NOT p_quarantined THEN
        DELETE FROM tc.quarantine q WHERE q.xid = p_xid AND q.resource = p_resource;
    ELSIF p_images IS NULL THEN
        v_show := NOT EXISTS (
            SELECT FROM tc.quarantine q WHERE q.xid = p_xid AND q.resource = p_resource AND q.digest = p_digest
        );
    ELSE
        INSERT INTO tc.quarantine AS q (xid, resource, reason, digest, total, images)
        VALUES (p_xid, p_resource, p_reason, p_digest, p_total, p_images)
        ON CONFLICT (xid, resource) DO UPDATE SET
            reason = excluded.reason, digest = excluded.digest, total = excluded.total, images = excluded.images,
            reported_at = clock_timestamp();
    END IF;
    RETURN QUERY
    SELECT r.resolution_id, r.action, r.shown, r.kept, v_show
    FROM (SELECT 1) AS one
    LEFT JOIN tc.resolution r ON r.xid = p_xid AND r.resource = p_resource AND r.done_at IS NULL;
END $$;

-- Takes a person's decision down. Returns why it cannot be taken, as a code, or NULL: under the transaction's row, so that of
-- two decisions at once one is taken and the other hears so. The same resolution_id again is the same decision.
CREATE OR REPLACE FUNCTION tc.resolve(
    p_resolution uuid, p_xid uuid, p_resource text, p_action text, p_kept jsonb, p_shown text, p_by text, p_caller text
) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    v_known tc.resolution;
    v_now tc.quarantine;
BEGIN
    PERFORM FROM tc.global_transaction g WHERE g.xid = p_xid FOR UPDATE;
    IF NOT FOUND THEN
        RETURN 'not-found';
    END IF;
    SELECT * INTO v_known FROM tc.resolution r WHERE r.resolution_id = p_resolution;
    IF FOUND THEN
        RETURN CASE WHEN (v_known.xid, v_known.resource, v_known.action) = (p_xid, p_resource, p_action)
                    AND v_known.kept IS NOT DISTINCT FROM p_kept THEN NULL ELSE 'other-decision' END;
    END IF;
    IF EXISTS (SELECT FROM tc.resolution r WHERE r.xid = p_xid AND r.resource = p_resource AND r.done_at IS NULL) THEN
        RETURN 'decided-already';
    END IF;
    IF NOT EXISTS (SELECT FROM tc.branch b WHERE b.xid = p_xid AND b.resource = p_resource AND b.state = 3) THEN
        RETURN 'not-quarantined';
    END IF;
    SELECT * INTO v_now FROM tc.quarantine q WHERE q.xid = p_xid AND q.resource = p_resource;
    IF p_action <> 'retry' AND NOT FOUND THEN
        RETURN 'not-shown';
    END IF;
    IF p_action <> 'retry' AND v_now.digest IS DISTINCT FROM p_shown THEN
        RETURN 'changed';
    END IF;
    INSERT INTO tc.resolution (resolution_id, xid, resource, action, kept, shown, images, decided_by, caller)
    VALUES (p_resolution, p_xid, p_resource, p_action, p_kept, p_shown, v_now.images, p_by, p_caller);
    RETURN NULL;
END $$;

-- Lets the open branches of a decided transaction be told at once. Returns what to tell, as tc.nudges_due does.
CREATE OR REPLACE FUNCTION tc.retry(p_xid uuid, p_renudge interval) RETURNS TABLE (
    xid uuid, decision smallint, nudges smallint, resource text, branches uuid[]
) LANGUAGE sql AS $$
    UPDATE tc.global_transaction g SET nudges = 0, next_nudge_at = clock_timestamp() + p_renudge
    WHERE g.xid = p_xid AND g.settlement IN (1, 3) AND g.reason IS DISTINCT FROM 'forgotten'
        AND EXISTS (SELECT FROM tc.branch b WHERE b.xid = p_xid AND b.state = 0 AND (b.committed OR g.decision = 2));
    SELECT g.xid, g.decision, g.nudges, b.resource,
        coalesce((SELECT array_agg(c.branch_id) FROM tc.branch c
                  WHERE c.xid = g.xid AND c.resource = b.resource AND c.committed), '{}')
    FROM tc.global_transaction g JOIN tc.branch b ON b.xid = g.xid AND b.state = 0 AND (b.committed OR g.decision = 2)
    WHERE g.xid = p_xid AND g.settlement IN (1, 3) AND g.reason IS DISTINCT FROM 'forgotten'
    GROUP BY g.xid, g.decision, g.nudges, b.resource;
$$;

-- A life sign. Marks that do not go on from the one that is known are believed only when the resource has looked again after
-- it heard that one (`p_known`): what a paused process says late is no restore. Always durable: a mark that a failover lost
-- would look like a restore.
CREATE OR REPLACE FUNCTION tc.pulse(
    p_name text, p_incarnation uuid, p_beats bigint, p_mark uuid, p_previous uuid, p_before timestamptz, p_known uuid,
    p_send boolean
) RETURNS TABLE (memory timestamptz, unfit boolean, known uuid, alert_id bigint) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_life tc.resource_life;
    v_alert bigint;
    -- The head of an xid is the time of its making: what was confirmed since began not long before.
    v_oldest uuid := (lpad(to_hex(greatest(floor(extract(epoch FROM p_before - interval '1 day') * 1000), 0)::bigint), 12, '0')
        || repeat('0', 20))::uuid;
    v_unfit boolean := false;
BEGIN
    IF current_setting('synchronous_commit') IN ('off', 'local') THEN
        PERFORM set_config('synchronous_commit', 'on', true);
    END IF;
    INSERT INTO tc.resource_life (name, incarnation, beats, mark, heard_at)
    VALUES (p_name, p_incarnation, p_beats, p_mark, clock_timestamp())
    ON CONFLICT (name) DO NOTHING;
    SELECT * INTO v_life FROM tc.resource_life l WHERE l.name = p_name FOR UPDATE;
    IF v_life.mark IN (p_mark, p_previous) THEN
        UPDATE tc.resource_life l SET beats = p_beats, mark = p_mark, heard_at = clock_timestamp() WHERE l.name = p_name;
    ELSIF p_known IS DISTINCT FROM v_life.mark THEN
        v_unfit := true;
    ELSE
        INSERT INTO tc.alert (kind, subject, detail, next_send_at)
        VALUES ('resource.went_back', p_name, jsonb_build_object(
            'resource', p_name, 'another_database', v_life.incarnation <> p_incarnation,
            'beats_known', v_life.beats, 'beats_found', p_beats, 'backup_from', p_before,
            'confirmed_since', (SELECT count(*) FROM tc.branch b WHERE b.xid >= v_oldest AND b.resource = p_name AND b.confirmed_at > p_before),
            'committed_since', ARRAY(SELECT b.xid FROM tc.branch b WHERE b.xid >= v_oldest AND b.resource = p_name AND b.confirmed_at > p_before
                                     AND b.committed ORDER BY b.confirmed_at LIMIT 100)
        ), CASE WHEN p_send THEN clock_timestamp() END)
        ON CONFLICT (kind, subject) WHERE closed_at IS NULL DO NOTHING RETURNING tc.alert.alert_id INTO v_alert;
        UPDATE tc.resource_life l SET incarnation = p_incarnation, beats = p_beats, mark = p_mark, heard_at = clock_timestamp()
        WHERE l.name = p_name;
    END IF;
    RETURN QUERY SELECT nullif(m.committed_before, '-infinity'), v_unfit, v_life.mark, v_alert FROM tc.memory m;
END $$;

-- Closes alerts whose cause is gone and opens new ones, each once, whichever replica looks first. Returns those opened here.
CREATE OR REPLACE FUNCTION tc.look_for_alerts(p_unsettled interval, p_silent interval, p_limit integer, p_send boolean)
RETURNS SETOF tc.alert LANGUAGE plpgsql AS $$
DECLARE
    v_now timestamptz := clock_timestamp();
BEGIN
    UPDATE tc.alert a SET closed_at = v_now WHERE a.closed_at IS NULL AND CASE a.kind
        WHEN 'transaction.unsettled' THEN NOT EXISTS (
            SELECT FROM tc.global_transaction g WHERE g.xid = a.subject::uuid AND g.settlement = 1)
        WHEN 'transaction.quarantined' THEN NOT EXISTS (
            SELECT FROM tc.global_transaction g WHERE g.xid = a.subject::uuid AND g.settlement = 3)
        WHEN 'resource.silent' THEN EXISTS (
            SELECT FROM tc.resource_life l WHERE l.name = a.subject AND l.heard_at > a.opened_at
            UNION ALL SELECT FROM tc.resource r WHERE r.name = a.subject AND r.announced_at > a.opened_at
        ) OR NOT EXISTS (
            SELECT FROM tc.global_transaction g JOIN tc.branch b ON b.xid = g.xid AND b.state = 0
            WHERE g.settlement IN (1, 3) AND b.resource = a.subject)
        ELSE a.opened_at < v_now - interval '1 day' END;
    RETURN QUERY
    WITH due AS (
        SELECT g.xid, g.name, g.caller, g.decision, g.settlement, g.nudges, g.decided_at, b.resources, b.open
        FROM tc.global_transaction g
        CROSS JOIN LATERAL (
            SELECT coalesce(array_agg(DISTINCT b.resource), '{}') AS resources,
                coalesce(array_agg(DISTINCT b.resource) FILTER (WHERE b.state = 0), '{}') AS open
            FROM tc.branch b
            WHERE b.xid = g.xid AND (b.state = 3 OR b.state = 0 AND (b.committed OR g.decision = 2))
        ) AS b
        WHERE g.settlement IN (1, 3) AND (g.settlement = 3 OR g.decided_at < v_now - least(p_unsettled, p_silent))
    ), told AS (
        SELECT CASE d.settlement WHEN 3 THEN 'transaction.quarantined' ELSE 'transaction.unsettled' END AS kind,
            d.xid::text AS subject, jsonb_build_object(
                'xid', d.xid, 'name', d.name, 'caller', d.caller,
                'decision', (ARRAY['UNDECIDED', 'COMMITTED', 'ROLLED_BACK'])[d.decision + 1],
                'settlement', CASE d.settlement WHEN 3 THEN 'QUARANTINED' ELSE 'SETTLING' END,
                'resources', d.resources, 'nudges', d.nudges, 'decided_at', d.decided_at) AS detail
        FROM due d WHERE d.settlement = 3 OR d.decided_at < v_now - p_unsettled
        UNION ALL
        SELECT 'resource.silent', o.resource, jsonb_build_object(
            'resource', o.resource, 'transactions', count(*), 'oldest_decided_at', min(d.decided_at), 'heard_at', (
                SELECT max(h.at) FROM (SELECT l.heard_at FROM tc.resource_life l WHERE l.name = o.resource
                    UNION ALL SELECT r.announced_at FROM tc.resource r WHERE r.name = o.resource) AS h (at)))
        FROM due d CROSS JOIN LATERAL unnest(d.open) AS o (resource)
        WHERE d.decided_at < v_now - p_silent
            AND NOT EXISTS (SELECT FROM tc.resource_life l WHERE l.name = o.resource AND l.heard_at > v_now - p_silent)
            AND NOT EXISTS (SELECT FROM tc.resource r WHERE r.name = o.resource AND r.announced_at > v_now - p_silent)
        GROUP BY o.resource
    )
    INSERT INTO tc.alert (kind, subject, detail, next_send_at)
    SELECT t.kind, t.subject, t.detail, CASE WHEN p_send THEN v_now END FROM told t
    WHERE NOT EXISTS (SELECT FROM tc.alert a WHERE a.kind = t.kind AND a.subject = t.subject AND a.closed_at IS NULL)
    LIMIT p_limit
    ON CONFLICT (kind, subject) WHERE closed_at IS NULL DO NOTHING
    RETURNING *;
END $$;

-- Takes alerts whose webhook is due; the attempt is counted and the next one set before it is made.
CREATE OR REPLACE FUNCTION tc.alerts_due(p_limit integer, p_lease interval) RETURNS SETOF tc.alert LANGUAGE sql AS $$
    UPDATE tc.alert a SET attempts = a.attempts + 1, next_send_at = clock_timestamp() + p_lease
    WHERE a.alert_id IN (
        SELECT d.alert_id FROM tc.alert d WHERE d.next_send_at <= clock_timestamp()
        ORDER BY d.next_send_at LIMIT p_limit FOR UPDATE SKIP LOCKED)
    RETURNING a.*;
$$;
