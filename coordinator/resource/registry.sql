-- The registry: which tables are managed, exempt or guarded, and how that stays true when tables change.
--
-- Data model: see model.sql. Everything here is called by the installer, by a migration, or by the event triggers.

-- Why a table cannot be managed; NULL when it can.
CREATE OR REPLACE FUNCTION at.why_not_manageable(p_relation regclass) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    c pg_class;
    i pg_index;
BEGIN
    SELECT * INTO c FROM pg_class WHERE oid = p_relation;
    SELECT * INTO i FROM pg_index WHERE indrelid = p_relation AND indisprimary;
    RETURN CASE
        WHEN c.relkind = 'f' THEN 'it is a foreign table: manage it in its own database'
        WHEN c.relkind IN ('v', 'm') THEN 'it is a view: manage the tables behind it'
        WHEN c.relkind NOT IN ('r', 'p') THEN 'it is not a table'
        WHEN c.relpersistence = 't' THEN 'it is temporary: no other session could undo it'
        WHEN at.is_system(p_relation) THEN 'it belongs to the system'
        WHEN c.relpersistence = 'u' THEN 'it is unlogged: a crash would empty it but not its undo rows'
        WHEN c.relispartition THEN 'it is a partition: manage the partitioned table'
        WHEN EXISTS (SELECT FROM pg_inherits h WHERE h.inhrelid = p_relation OR h.inhparent = p_relation)
             AND c.relkind = 'r' THEN 'it uses inheritance: only partitioning is supported'
        WHEN i.indrelid IS NULL THEN 'it has no primary key'
        WHEN NOT i.indimmediate THEN 'its primary key is deferrable: two rows may have the same key for a while'
        WHEN i.indisexclusion OR (SELECT am.amname FROM pg_class x JOIN pg_am am ON am.oid = x.relam
                                  WHERE x.oid = i.indexrelid) <> 'btree' THEN 'its primary key is no btree index (WITHOUT OVERLAPS)'
        WHEN EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = p_relation AND a.attname LIKE 'at\_\_%') THEN
             'a column begins with at__, which is reserved'
        WHEN EXISTS (SELECT FROM at.tree(p_relation) t JOIN pg_class x ON x.oid = t WHERE x.relkind = 'f') THEN
             'one of its partitions is a foreign table'
    END;
END
$$;

CREATE OR REPLACE FUNCTION at.is_system(p_relation regclass) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT n.nspname IN ('at', 'information_schema') OR n.nspname LIKE 'pg\_%'
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = p_relation;
$$;

-- The table at the top of a partition tree, or the table itself.
CREATE OR REPLACE FUNCTION at.root(p_relation regclass) RETURNS regclass
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT coalesce(pg_partition_root(p_relation), p_relation);
$$;

-- Creates one trigger where it is missing or calls something else; `spec` is what stands between name and function.
CREATE OR REPLACE FUNCTION at.ensure_trigger(p_relation regclass, p_name name, p_event text, p_rest text, p_function text)
RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM FROM pg_trigger t
        WHERE t.tgrelid = p_relation AND t.tgname = p_name AND t.tgfoid = to_regprocedure(p_function);
    IF NOT FOUND THEN
        EXECUTE format('CREATE OR REPLACE TRIGGER %I %s ON %s %s FOR EACH STATEMENT %s EXECUTE FUNCTION %s', p_name, p_event,
                       p_relation, split_part(p_rest, '|', 1), split_part(p_rest, '|', 2), p_function);
    END IF;
END
$$;

CREATE OR REPLACE FUNCTION at.drop_triggers(p_relation regclass, p_names name[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    doomed name;
BEGIN
    FOR doomed IN SELECT tgname FROM pg_trigger WHERE tgrelid = p_relation AND tgname = ANY (p_names) LOOP
        EXECUTE format('DROP TRIGGER %I ON %s', doomed, p_relation);
    END LOOP;
END
$$;

-- Puts the capture triggers on a managed table and on each of its partitions, and takes them from detached ones.
-- Triggers on the parent alone would miss statements that name a partition.
CREATE OR REPLACE FUNCTION at.cover_partitions(relation regclass) RETURNS int
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    base constant text := at.base_name(relation);
    member regclass;
    covered int := 0;
    names constant name[] := ARRAY['at_capture_insert', 'at_capture_update', 'at_capture_delete', 'at_capture_truncate'];
BEGIN
    FOR member IN SELECT * FROM at.tree(relation) LOOP
        PERFORM at.drop_triggers(member, ARRAY['at_guard', 'at_guard_truncate']);
        PERFORM at.ensure_trigger(member, 'at_capture_insert', 'AFTER INSERT', 'REFERENCING NEW TABLE AS at_new|',
                                  format('at.%I()', at.name_of(base || ':insert')));
        PERFORM at.ensure_trigger(member, 'at_capture_update', 'AFTER UPDATE',
                                  'REFERENCING OLD TABLE AS at_old NEW TABLE AS at_new|',
                                  format('at.%I()', at.name_of(base || ':update')));
        PERFORM at.ensure_trigger(member, 'at_capture_delete', 'AFTER DELETE', 'REFERENCING OLD TABLE AS at_old|',
                                  format('at.%I()', at.name_of(base || ':delete')));
        PERFORM at.ensure_trigger(member, 'at_capture_truncate', 'BEFORE TRUNCATE', '|',
                                  format('at.%I()', at.name_of(base || ':truncate')));
        covered := covered + 1;
    END LOOP;
    -- MERGE on a partitioned table puts the row that it inserted before into the NEW TABLE of its updates (seen with
    -- PostgreSQL 18.6): the tuple remembered while routing an insert is not forgotten. It is not remembered where a
    -- partition has a BEFORE INSERT row trigger, so there is one, which never fires.
    IF (SELECT c.relkind = 'p' FROM pg_class c WHERE c.oid = relation)
       AND NOT EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = relation AND t.tgname = 'at_capture_merge') THEN
        EXECUTE format('CREATE TRIGGER at_capture_merge BEFORE INSERT ON %s FOR EACH ROW WHEN (false) EXECUTE FUNCTION at.refuse_unmanaged()',
                       relation);
    END IF;
    FOR member IN SELECT DISTINCT t.tgrelid::regclass FROM pg_trigger t
            WHERE t.tgname = 'at_capture_insert' AND t.tgfoid = to_regprocedure(format('at.%I()', at.name_of(base || ':insert')))
              AND t.tgrelid NOT IN (SELECT at.tree(relation)) LOOP
        PERFORM at.drop_triggers(member, names);
        PERFORM at.guard(member);
    END LOOP;
    RETURN covered;
END
$$;

-- Refuses writes of branches on a table that is neither managed nor exempt. The condition stands in the trigger, so
-- that plain writers pay next to nothing.
CREATE OR REPLACE FUNCTION at.guard(relation regclass) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    only_branches constant text := '|WHEN (coalesce(current_setting(''at.xid'', true), '''') <> '''')';
BEGIN
    IF at.is_system(relation) OR EXISTS (SELECT FROM at.managed m WHERE m.relation = at.root(guard.relation))
       OR EXISTS (SELECT FROM at.exempt e WHERE e.relation IN (guard.relation, at.root(guard.relation)))
       OR EXISTS (SELECT FROM pg_class c WHERE c.oid = relation AND (c.relkind NOT IN ('r', 'p', 'f') OR c.relpersistence = 't')) THEN
        PERFORM at.drop_triggers(relation, ARRAY['at_guard', 'at_guard_truncate']);
        RETURN false;
    END IF;
    PERFORM at.ensure_trigger(relation, 'at_guard', 'BEFORE INSERT OR UPDATE OR DELETE', only_branches, 'at.refuse_unmanaged()');
    PERFORM at.ensure_trigger(relation, 'at_guard_truncate', 'BEFORE TRUNCATE', only_branches, 'at.refuse_unmanaged()');
    RETURN true;
END
$$;

-- Guards every table that needs it; returns how many tables are guarded.
CREATE OR REPLACE FUNCTION at.guard_all() RETURNS int
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT count(*) FILTER (WHERE at.guard(c.oid))::int FROM pg_class c
    WHERE c.relkind IN ('r', 'p', 'f') AND c.relpersistence <> 't' AND NOT at.is_system(c.oid);
$$;

-- Makes or renews the undo table. An undo table for another primary key is replaced once it is empty.
CREATE OR REPLACE FUNCTION at.ensure_undo_table(p_relation regclass) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    undo constant text := at.undo_table(p_relation);
    base constant text := at.base_name(p_relation);
    wanted constant text := at.key_list(p_relation, '%2$I');
    has_rows boolean;
BEGIN
    IF to_regclass(undo) IS NOT NULL AND (SELECT string_agg(definition, ', ' ORDER BY ordinal) FROM at.key(undo))
            IS DISTINCT FROM (SELECT string_agg(definition, ', ' ORDER BY ordinal) FROM at.key(p_relation)) THEN
        EXECUTE format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE', undo);
        EXECUTE format('SELECT EXISTS (SELECT FROM %s)', undo) INTO has_rows;
        IF has_rows THEN
            RAISE EXCEPTION 'the primary key of % changed while transactions on it are unsettled', p_relation
                USING ERRCODE = '55006', HINT = 'Settle them, then change the key.';
        END IF;
        EXECUTE format('DROP TABLE %s', undo);
    END IF;
    IF to_regclass(undo) IS NULL THEN
        EXECUTE format(
            'CREATE TABLE %s (%s, xid uuid NOT NULL, branch_id uuid, before %s, after %3$s, olds %3$s[], news %3$s[], CONSTRAINT %I PRIMARY KEY (%s)) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_insert_threshold = -1)',
            undo, (SELECT string_agg(definition, ', ' ORDER BY ordinal) FROM at.key(p_relation)), p_relation,
            at.name_of(base || ':pk'), wanted);
        EXECUTE format('CREATE INDEX %I ON %s (xid)', at.name_of(base || ':xid'), undo);
    END IF;
    PERFORM at.ensure_freed_indexes(p_relation);
END
$$;

-- One partial index per unique index over plain columns, over the values that undo rows have freed.
CREATE OR REPLACE FUNCTION at.ensure_freed_indexes(p_relation regclass) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    base constant text := at.base_name(p_relation);
    wanted name[];
    statement text;
    stale name;
BEGIN
    SELECT array_agg(at.name_of(base || ':freed:' || md5(at.freed_condition(u.index_id, '')))) INTO wanted
        FROM at.unique_indexes(p_relation) u WHERE u.is_plain AND NOT u.nulls_equal;
    FOR stale IN SELECT x.relname FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid
            WHERE i.indrelid = at.undo_table(p_relation)::regclass AND i.indpred IS NOT NULL
              AND x.relname <> ALL (coalesce(wanted, '{}')) LOOP
        EXECUTE format('DROP INDEX at.%I', stale);
    END LOOP;
    FOR statement IN
        SELECT format('CREATE INDEX IF NOT EXISTS %I ON %s (%s) WHERE %s',
            at.name_of(base || ':freed:' || md5(at.freed_condition(u.index_id, ''))), at.undo_table(p_relation),
            (SELECT string_agg(format('((before).%I)', a.attname), ', ' ORDER BY k.i)
             FROM pg_index x CROSS JOIN LATERAL unnest(x.indkey[0:x.indnkeyatts - 1]) WITH ORDINALITY AS k (n, i)
             JOIN pg_attribute a ON a.attrelid = x.indrelid AND a.attnum = k.n WHERE x.indexrelid = u.index_id),
            at.freed_condition(u.index_id, ''))
        FROM at.unique_indexes(p_relation) u WHERE u.is_plain AND NOT u.nulls_equal LOOP
        EXECUTE statement;
    END LOOP;
END
$$;

-- Writes the trigger functions and statements of a managed table if they are not what they should be.
CREATE OR REPLACE FUNCTION at.generate(p_relation regclass) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    reason constant text := at.why_not_manageable(p_relation);
    base constant text := at.base_name(p_relation);
    operation text;
    bodies jsonb := '{}';
    mark text;
BEGIN
    IF reason IS NOT NULL THEN
        RAISE EXCEPTION 'table % cannot be managed: %', p_relation, reason USING ERRCODE = '0A000';
    END IF;
    PERFORM at.adopt_name(p_relation);
    PERFORM at.ensure_undo_table(p_relation);
    bodies := jsonb_build_object(
        'insert', at.capture_body(p_relation, 'insert'), 'update', at.capture_body(p_relation, 'update'),
        'delete', at.capture_body(p_relation, 'delete'), 'truncate', at.truncate_body(p_relation));
    mark := md5(bodies::text || at.compare_statement(p_relation) || at.update_statement(p_relation)
                || at.verify_statement(p_relation) || at.insert_statement(p_relation)
                || at.lock_records_body(p_relation) || at.lock_body(p_relation) || at.committed_body(p_relation)
                || (SELECT fingerprint FROM at.installed));
    IF mark = (SELECT fingerprint FROM at.managed WHERE relation = p_relation) THEN
        PERFORM at.cover_partitions(p_relation);
        RETURN false;
    END IF;
    -- Undo tables are small but churned: a sequential scan would read their dead rows until the next vacuum.
    FOREACH operation IN ARRAY ARRAY['insert', 'update', 'delete', 'truncate'] LOOP
        EXECUTE format('CREATE OR REPLACE FUNCTION at.%I() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS %L',
                       at.name_of(base || ':' || operation), bodies ->> operation);
        EXECUTE format('REVOKE ALL ON FUNCTION at.%I() FROM PUBLIC', at.name_of(base || ':' || operation));
    END LOOP;
    PERFORM at.write_statements(p_relation);
    PERFORM at.write_reads(p_relation);
    UPDATE at.managed SET fingerprint = mark WHERE relation = p_relation;
    PERFORM at.cover_partitions(p_relation);
    PERFORM at.grant_undo_table(p_relation);
    RETURN true;
END
$$;

-- Takes a renamed table's objects along: undo table, its indexes and the trigger functions carry the table's name.
CREATE OR REPLACE FUNCTION at.adopt_name(p_relation regclass) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    old_name name;
    new_name constant name := at.base_name(p_relation);
    operation text;
    part record;
BEGIN
    SELECT undo_table INTO old_name FROM at.managed WHERE relation = p_relation;
    IF old_name = new_name THEN
        RETURN;
    END IF;
    UPDATE at.managed SET undo_table = new_name, fingerprint = '' WHERE relation = p_relation;
    EXECUTE format('ALTER TABLE at.%I RENAME TO %I', old_name, new_name);
    EXECUTE format('ALTER TABLE at.%I RENAME CONSTRAINT %I TO %I', new_name, at.name_of(old_name || ':pk'), at.name_of(new_name || ':pk'));
    FOR part IN SELECT x.relname FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid
            WHERE i.indrelid = format('at.%I', new_name)::regclass AND NOT i.indisprimary LOOP
        EXECUTE format('ALTER INDEX at.%I RENAME TO %I', part.relname,
                       at.name_of(replace(part.relname, old_name::text, new_name::text)));
    END LOOP;
    FOREACH operation IN ARRAY ARRAY['insert', 'update', 'delete', 'truncate'] LOOP
        EXECUTE format('ALTER FUNCTION at.%I() RENAME TO %I', at.name_of(old_name || ':' || operation),
                       at.name_of(new_name || ':' || operation));
    END LOOP;
    PERFORM at.write_fleet_functions();
END
$$;
