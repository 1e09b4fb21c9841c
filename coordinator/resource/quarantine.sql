-- Quarantine: what a person sees of an undo that could not be done, and how the decision is carried out.
--
--   at.quarantine   one row per transaction that has, or had, quarantined branches here. It stays until the coordinator has
--                   heard how it ended (at.told), so nothing that must be said is kept in a process only.
--   at.resolution   one row per decision of a person that was carried out or refused: a repeated one gets the same answer.
--   at.life         one row: which database this is, and a chain of marks. Each mark is made after the coordinator has heard
--                   the one before, so the coordinator's last one is here as mark or as previous, or else the database came
--                   back from a backup.

CREATE TABLE IF NOT EXISTS at.quarantine (
    xid uuid PRIMARY KEY,
    since timestamptz NOT NULL DEFAULT clock_timestamp(),
    reason text                  -- NULL: undo found rows that are not as they were left
);

CREATE TABLE IF NOT EXISTS at.resolution (
    resolution_id uuid PRIMARY KEY,
    xid uuid NOT NULL,
    action text NOT NULL,
    outcome jsonb NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE TABLE IF NOT EXISTS at.life (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    incarnation uuid NOT NULL DEFAULT gen_random_uuid(),
    beats bigint NOT NULL DEFAULT 0,
    mark uuid NOT NULL DEFAULT gen_random_uuid(),
    previous uuid NOT NULL DEFAULT gen_random_uuid(),
    heard boolean NOT NULL DEFAULT false,
    beat_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

INSERT INTO at.life DEFAULT VALUES ON CONFLICT DO NOTHING;

-- Those of an installation that did not have the table yet.
INSERT INTO at.quarantine (xid) SELECT DISTINCT b.xid FROM at.branch b WHERE b.state = 3 ON CONFLICT DO NOTHING;

-- An image as it is shown: one that is longer than 16 KiB by its length alone.
CREATE OR REPLACE FUNCTION at.shown(image jsonb) RETURNS jsonb
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE WHEN octet_length(image::text) > 16384
        THEN jsonb_build_object('at__bytes', octet_length(image::text)) ELSE image END;
$$;

-- The undo rows of $1 in one table with the row as it is now, and whether something bypassed the triggers.
CREATE OR REPLACE FUNCTION at.images_statement(relation regclass) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT format(
        'SELECT at_l.ctid AS at__place, %L::text AS at__table, jsonb_build_object(%s) AS at__key, at_l.branch_id, to_jsonb(at_l.before) AS before, to_jsonb(at_l.after) AS after, to_jsonb(at_l.at__now) AS now, NOT %s OR at_l.olds IS NOT NULL AS changed FROM (SELECT at_l.ctid, at_l.*, %s AS at__now FROM %s at_l LEFT JOIN %s at_t ON %s WHERE at_l.xid = $1 OFFSET 0) at_l',
        relation::text, at.key_list(relation, '%1$L, at_l.%2$I'), at.same_image('at_l.after', 'at_l.at__now'),
        at.image_now(relation), at.undo_table(relation), relation, at.key_match(relation, 'at_l', 'at_t'));
$$;

-- What a person needs to see: {"digest", "total", "rows": [{"table", "key", "branch", "before", "after", "now", "changed"}]}, at
-- most `limit` rows, the changed ones first. The digest is over all rows: a decision names it, and is refused when it is
-- another by then.
CREATE OR REPLACE FUNCTION at.images(xid uuid, "limit" int DEFAULT 100) RETURNS jsonb
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    m at.managed;
    page jsonb;
    part text;
    counted int;
    found jsonb := '[]';
    digests text := '';
    total int := 0;
BEGIN
    FOR m IN SELECT * FROM at.managed WHERE relation = ANY (at.touched(images.xid)) ORDER BY relation::text LOOP
        EXECUTE format(
            'SELECT count(*), md5(string_agg(i::text, E''\n'' ORDER BY i.at__key::text)),
                    coalesce(jsonb_agg(jsonb_build_object(''table'', i.at__table, ''key'', i.at__key, ''branch'', i.branch_id,
                        ''before'', at.shown(i.before), ''after'', at.shown(i.after), ''now'', at.shown(i.now), ''changed'', i.changed)
                        ORDER BY i.place) FILTER (WHERE i.place <= $2), ''[]'')
             FROM (SELECT s.at__table, s.at__key, s.branch_id, s.before, s.after, s.now, s.changed,
                          row_number() OVER (ORDER BY s.changed DESC, s.at__key::text) AS place FROM (%s) s) i',
            at.images_statement(m.relation)) INTO counted, part, page USING images.xid, images."limit";
        found := found || page;
        digests := digests || m.relation::text || ':' || coalesce(part, '') || E'\n';
        total := total + counted;
    END LOOP;
    RETURN jsonb_build_object('digest', encode(sha256(convert_to(digests, 'UTF8')), 'hex'), 'total', total, 'rows', (
        SELECT coalesce(jsonb_agg(r.value ORDER BY (r.value ->> 'changed')::boolean DESC, r.ordinality), '[]')
        FROM (SELECT * FROM jsonb_array_elements(found) WITH ORDINALITY
              ORDER BY (value ->> 'changed')::boolean DESC, ordinality LIMIT images."limit") r));
END
$$;

-- Lets go of changed rows as they are now: all of them, or those that `p_kept` lists as [{"table", "key"}]. Returns how many.
CREATE OR REPLACE FUNCTION at.keep_rows(p_xid uuid, p_kept jsonb, p_tables regclass[]) RETURNS int
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    m at.managed;
    dropped int;
    total int := 0;
BEGIN
    FOR m IN SELECT * FROM at.managed WHERE relation = ANY (p_tables) ORDER BY relation LOOP
        EXECUTE format(
            'DELETE FROM %s at_d USING (%s) at_s WHERE at_d.ctid = at_s.at__place AND at_s.changed
             AND ($2 IS NULL OR $2 @> jsonb_build_array(jsonb_build_object(''table'', at_s.at__table, ''key'', at_s.at__key)))',
            at.undo_table(m.relation), at.images_statement(m.relation)) USING p_xid, p_kept;
        GET DIAGNOSTICS dropped = ROW_COUNT;
        total := total + dropped;
    END LOOP;
    RETURN total;
END
$$;

-- Carries a decision out on the rows; raises AT006 where that cannot be done, and the caller takes everything back.
CREATE OR REPLACE FUNCTION at.resolve_rows(p_xid uuid, p_action text, p_kept jsonb) RETURNS jsonb
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    tables regclass[] := at.touched(p_xid);
    kept int := 0;
    restored int := 0;
    problems jsonb;
    ended smallint;
BEGIN
    IF p_action = 'keep_all' THEN
        kept := at.drop_rows(p_xid, NULL, tables);
    ELSE
        IF p_action = 'keep' THEN
            kept := at.keep_rows(p_xid, p_kept, tables);
            IF kept = 0 AND p_kept IS NULL THEN
                RAISE EXCEPTION 'no row was changed behind the triggers: keep_all leaves all rows as they are, retry undoes them'
                    USING ERRCODE = 'AT006';
            ELSIF kept <> jsonb_array_length(p_kept) THEN
                RAISE EXCEPTION 'of the % rows to keep only % were changed behind the triggers', jsonb_array_length(p_kept), kept
                    USING ERRCODE = 'AT006';
            END IF;
            tables := at.touched(p_xid);
        END IF;
        PERFORM at.restore(p_xid, NULL, tables);
        problems := at.problems(p_xid, NULL, tables, 'verify', 1);
        IF problems <> '[]' THEN
            RAISE EXCEPTION '%: % %', problems -> 0 ->> 'error', problems -> 0 ->> 'table', problems -> 0 -> 'key'
                USING ERRCODE = 'AT006';
        END IF;
        restored := at.drop_rows(p_xid, NULL, tables);
    END IF;
    -- To keep all of what may have been committed says that it was; steps follow what the state says.
    ended := CASE WHEN p_action = 'keep_all' AND at.in_doubt(p_xid) THEN 1 ELSE 2 END;
    UPDATE at.branch SET state = ended, settled_at = clock_timestamp() WHERE xid = p_xid AND state = 3;
    RETURN jsonb_build_object('state', ended, 'kept', kept, 'restored', restored);
END
$$;

-- A person's decision on what is quarantined of a transaction: `keep` leaves the changed rows as they are now and undoes
-- the others, `restore` puts all before images back, `keep_all` leaves everything as it is now, `retry` undoes if all rows are
-- as they were left. `shown` is the digest of at.images that the person saw (retry does not need it).
--
-- Returns {"state": 2 (1 where all is kept of a transaction in doubt), "kept", "restored"}, or {"state", "error"} with nothing changed. The answer is kept under
-- `resolution_id`: the same decision takes effect once, whoever brings it and however often. Raises 55P03, 40P01 as at.undo does.
CREATE OR REPLACE FUNCTION at.resolve(xid uuid, resolution_id uuid, action text, shown text, kept jsonb DEFAULT NULL) RETURNS jsonb
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '5s' AS $$
#variable_conflict use_column
DECLARE
    answer jsonb;
    states smallint[];
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'at.resolve needs READ COMMITTED: it must see what it waited for' USING ERRCODE = '25001';
    END IF;
    IF action NOT IN ('keep', 'keep_all', 'restore', 'retry') THEN
        RAISE EXCEPTION '% is no decision: it is keep, keep_all, restore or retry', action USING ERRCODE = '22023';
    END IF;
    PERFORM pg_advisory_xact_lock(uuid_hash_extended(resolve.xid, 4716));
    SELECT r.outcome INTO answer FROM at.resolution r WHERE r.resolution_id = resolve.resolution_id;
    IF FOUND THEN
        RETURN answer;
    END IF;
    PERFORM FROM at.branch b WHERE b.xid = resolve.xid FOR UPDATE;
    states := ARRAY(SELECT DISTINCT b.state FROM at.branch b WHERE b.xid = resolve.xid);
    PERFORM at.lock_rows(resolve.xid, NULL, at.touched(resolve.xid));
    IF 3 <> ALL (states) THEN
        answer := jsonb_build_object('error', 'nothing of it is quarantined here any more');
    ELSIF 0 = ANY (states) THEN
        answer := jsonb_build_object('state', 3, 'error', 'another branch of it is still open here: decide again in a moment');
    ELSIF action = 'retry' THEN
        -- Beside a forgotten branch only those in quarantine are undone: a tombstone would speak for the whole.
        answer := at.undo(resolve.xid, CASE WHEN 1 = ANY (states) THEN ARRAY(
            SELECT b.branch_id FROM at.branch b WHERE b.xid = resolve.xid AND b.state = 3) END);
        answer := CASE WHEN (answer ->> 'state')::int = 2
            THEN jsonb_build_object('state', 2, 'kept', 0, 'restored', answer -> 'rows')
            ELSE jsonb_build_object('state', 3, 'error', 'it still cannot be undone: ' || (answer -> 'problems' -> 0 ->> 'error')) END;
    ELSIF at.images(resolve.xid, 0) ->> 'digest' IS DISTINCT FROM shown THEN
        answer := jsonb_build_object('state', 3, 'error', 'a row was changed again since it was shown: look at it and decide again');
    ELSE
        BEGIN
            answer := at.resolve_rows(resolve.xid, action, kept);
        EXCEPTION
            WHEN SQLSTATE 'AT006' OR integrity_constraint_violation OR data_exception OR syntax_error_or_access_rule_violation
                 OR with_check_option_violation OR raise_exception THEN
                answer := jsonb_build_object('state', 3, 'error', SQLERRM);
        END;
    END IF;
    INSERT INTO at.resolution (resolution_id, xid, action, outcome) VALUES (resolve.resolution_id, resolve.xid, action, answer);
    RETURN answer;
END
$$;

-- Quarantines the open branches of a transaction that the coordinator does not remember any more: they may be committed, so
-- nobody but a person undoes them.
CREATE OR REPLACE FUNCTION at.doubt(xid uuid, reason text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '5s' AS $$
#variable_conflict use_column
BEGIN
    PERFORM pg_advisory_xact_lock(uuid_hash_extended(doubt.xid, 4716));
    IF EXISTS (SELECT FROM at.branch b WHERE b.xid = doubt.xid AND b.state < 1) THEN
        PERFORM at.settle(doubt.xid, NULL, 3::smallint, 0, '[]');
        UPDATE at.quarantine q SET reason = doubt.reason WHERE q.xid = doubt.xid;
    END IF;
END
$$;

-- Whether nobody knows what was decided about a quarantined transaction: its steps wait for a person too.
CREATE OR REPLACE FUNCTION at.in_doubt(xid uuid) RETURNS boolean
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT EXISTS (SELECT FROM at.quarantine q WHERE q.xid = in_doubt.xid AND q.reason IS NOT NULL);
$$;

-- What the coordinator has to be told about, the oldest first.
CREATE OR REPLACE FUNCTION at.quarantines("limit" int) RETURNS TABLE (xid uuid, reason text)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT q.xid, q.reason FROM at.quarantine q ORDER BY q.since LIMIT quarantines."limit";
$$;

-- The coordinator has heard how it ended.
CREATE OR REPLACE FUNCTION at.told(xid uuid) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    DELETE FROM at.quarantine q WHERE q.xid = told.xid
        AND NOT EXISTS (SELECT FROM at.branch b WHERE b.xid = told.xid AND b.state = 3);
$$;

-- Which database this is and the end of its chain of marks; with `beat`, one further where the last one was heard. `before`
-- is when this database was last known to be alive.
CREATE OR REPLACE FUNCTION at.pulse(beat boolean)
RETURNS TABLE (incarnation uuid, beats bigint, mark uuid, previous uuid, before timestamptz)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    life at.life;
BEGIN
    SELECT * INTO life FROM at.life l;
    IF beat AND life.heard THEN
        UPDATE at.life l SET beats = l.beats + 1, previous = l.mark, mark = gen_random_uuid(), heard = false,
            beat_at = clock_timestamp()
        WHERE l.heard;
    END IF;
    RETURN QUERY SELECT l.incarnation, l.beats, l.mark, l.previous, life.beat_at FROM at.life l;
END
$$;

-- The coordinator has heard this mark.
CREATE OR REPLACE FUNCTION at.heard(mark uuid) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    UPDATE at.life l SET heard = true WHERE l.mark = heard.mark AND NOT l.heard;
$$;
