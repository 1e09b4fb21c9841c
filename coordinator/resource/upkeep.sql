-- Upkeep: managing and unmanaging tables, rights of roles, and the event triggers that follow changes of the schema.
--
-- Data model: see model.sql. Without event triggers (an installer that is no superuser may not create them) the same
-- is done by the next install.

-- Manages a table: from now on branches may write it. Repeatable.
CREATE OR REPLACE FUNCTION at.manage(relation regclass) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    reason constant text := at.why_not_manageable(relation);
BEGIN
    IF reason IS NOT NULL THEN
        RAISE EXCEPTION 'table % cannot be managed: %', relation, reason USING ERRCODE = '0A000';
    END IF;
    DELETE FROM at.exempt e WHERE e.relation = manage.relation;
    INSERT INTO at.managed VALUES (relation, at.base_name(relation), '{}', '', '', '', '', '', '', '', '')
        ON CONFLICT DO NOTHING;
    IF NOT FOUND THEN
        RETURN at.refresh_with_neighbours(relation);
    END IF;
    PERFORM at.ensure_undo_table(relation);
    PERFORM at.refresh_with_neighbours(relation);
    PERFORM at.write_fleet_functions();
    RETURN true;
END
$$;

-- Ends the management of a table. Refused while undo rows exist: with them would go the way back.
CREATE OR REPLACE FUNCTION at.unmanage(relation regclass) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    base constant text := at.base_name(relation);
    has_rows boolean;
    member regclass;
    operation text;
BEGIN
    IF NOT EXISTS (SELECT FROM at.managed m WHERE m.relation = unmanage.relation) THEN
        RETURN false;
    END IF;
    EXECUTE format('LOCK TABLE %s IN SHARE ROW EXCLUSIVE MODE', relation);
    EXECUTE format('LOCK TABLE at.%I IN ACCESS EXCLUSIVE MODE', base);
    EXECUTE format('SELECT EXISTS (SELECT FROM at.%I)', base) INTO has_rows;
    IF has_rows THEN
        RAISE EXCEPTION 'table % has rows of unsettled global transactions', relation
            USING ERRCODE = '55006', HINT = 'Settle them first; SELECT * FROM at.locks() lists them.';
    END IF;
    PERFORM at.drop_triggers(relation, ARRAY['at_capture_merge']);  -- its copies on partitions go with it
    FOR member IN SELECT * FROM at.tree(relation) LOOP
        PERFORM at.drop_triggers(member, ARRAY['at_capture_insert', 'at_capture_update', 'at_capture_delete', 'at_capture_truncate']);
    END LOOP;
    DELETE FROM at.managed m WHERE m.relation = unmanage.relation;
    PERFORM at.refresh_with_neighbours(relation);  -- guards of neighbours name the undo table
    PERFORM at.write_fleet_functions();
    FOREACH operation IN ARRAY ARRAY['insert', 'update', 'delete', 'truncate'] LOOP
        EXECUTE format('DROP FUNCTION IF EXISTS at.%I()', at.name_of(base || ':' || operation));
    END LOOP;
    PERFORM at.drop_reads(relation);
    EXECUTE format('DROP TABLE at.%I', base);
    FOR member IN SELECT * FROM at.tree(relation) LOOP
        PERFORM at.guard(member);
    END LOOP;
    RETURN true;
END
$$;

-- Lets branches write a table although nothing of it is undone.
CREATE OR REPLACE FUNCTION at.exempt_table(relation regclass) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    member regclass;
BEGIN
    IF EXISTS (SELECT FROM at.managed m WHERE m.relation = at.root(exempt_table.relation)) THEN
        RAISE EXCEPTION 'table % is managed', relation USING ERRCODE = '55000', HINT = 'Unmanage it first.';
    END IF;
    INSERT INTO at.exempt VALUES (relation) ON CONFLICT DO NOTHING;
    FOR member IN SELECT * FROM at.tree(relation) LOOP
        PERFORM at.guard(member);
    END LOOP;
    RETURN true;
END
$$;

-- Renews a managed table and those that a foreign key joins to it; true when anything changed.
CREATE OR REPLACE FUNCTION at.refresh_with_neighbours(p_relation regclass) RETURNS boolean
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    SELECT coalesce(bool_or(at.generate(n.relation)), false) FROM (
        SELECT m.relation FROM at.managed m WHERE m.relation = at.root(p_relation)
        UNION SELECT m.relation FROM at.foreign_keys() f JOIN at.managed m ON m.relation = at.root(f.parent)
              WHERE at.root(f.child) = at.root(p_relation)
        UNION SELECT m.relation FROM at.foreign_keys() f JOIN at.managed m ON m.relation = at.root(f.child)
              WHERE at.root(f.parent) = at.root(p_relation)
        ORDER BY 1) n;
$$;

-- Forgets tables that were dropped, and what belonged to them. Returns how many.
CREATE OR REPLACE FUNCTION at.prune() RETURNS int
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    gone name;
    operation text;
    pruned int := 0;
BEGIN
    DELETE FROM at.exempt e WHERE NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = e.relation);
    FOR gone IN DELETE FROM at.managed m WHERE NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = m.relation)
            RETURNING m.undo_table LOOP
        EXECUTE format('DROP TABLE IF EXISTS at.%I', gone);
        FOREACH operation IN ARRAY ARRAY['insert', 'update', 'delete', 'truncate'] LOOP
            EXECUTE format('DROP FUNCTION IF EXISTS at.%I()', at.name_of(gone || ':' || operation));
        END LOOP;
        pruned := pruned + 1;
    END LOOP;
    IF pruned > 0 THEN
        PERFORM at.generate(m.relation) FROM at.managed m;
        PERFORM at.write_fleet_functions();
    END IF;
    RETURN pruned;
END
$$;

-- What every role that takes part may do: call the protocol, and see which keys are locked and, for the committed read,
-- their before images.
CREATE OR REPLACE FUNCTION at.grant_undo_table(p_relation regclass) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    granted name;
    signature text;
BEGIN
    FOR granted IN SELECT g.role_name FROM at.role_grant g JOIN pg_roles r ON r.rolname = g.role_name LOOP
        EXECUTE format('GRANT SELECT (%s, xid, branch_id, before) ON %s TO %I', at.key_list(p_relation, '%2$I'),
                       at.undo_table(p_relation), granted);
        FOREACH signature IN ARRAY at.read_signatures(p_relation) LOOP
            EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO %I', signature, granted);
        END LOOP;
    END LOOP;
END
$$;

CREATE OR REPLACE FUNCTION at.grant_role(role_name name) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    signature text;
BEGIN
    INSERT INTO at.role_grant VALUES (role_name) ON CONFLICT DO NOTHING;
    EXECUTE format('GRANT USAGE ON SCHEMA at TO %I', role_name);
    FOREACH signature IN ARRAY ARRAY[
            'enter(uuid, uuid, timestamptz)', 'keep(jsonb)', 'forget(uuid[], uuid[])', 'undo(uuid, uuid[])',
            'unsettled(int)', 'states(uuid)', 'locks(uuid)', 'purge(interval)', 'claim(text, interval)',
            'images(uuid, int)', 'resolve(uuid, uuid, text, text, jsonb)', 'doubt(uuid, text)', 'quarantines(int)', 'told(uuid)',
            'pulse(boolean)', 'heard(uuid)',
            'undo_table(regclass)', 'base_name(regclass)', 'name_of(text)',
            'lock(anyarray)', 'committed(anyelement, boolean)', 'refuse_read(regtype, text)', 'root(regclass)',
            'add_step(text, jsonb, boolean)', 'end_step(uuid)', 'take_steps(text[], int, interval, interval)',
            'finish_steps(uuid[])', 'fail_step(uuid, int, text, interval)', 'retry_steps(uuid[])', 'steps()',
            'unserved_steps(text[], interval)',
            -- A role that makes partitions of its own table clones at_capture_merge, which asks for this right.
            'refuse_unmanaged()'] LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION at.%s TO %I', signature, role_name);
    END LOOP;
    PERFORM at.grant_undo_table(m.relation) FROM at.managed m;
END
$$;

-- Follows the schema: new tables are guarded, changed ones generated again, new partitions covered. Inside a branch
-- DDL is refused, temporary objects excepted.
CREATE OR REPLACE FUNCTION at.on_ddl() RETURNS event_trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    command record;
    relation regclass;
BEGIN
    IF coalesce(current_setting('at.following', true), '') <> '' THEN
        RETURN;  -- our own DDL
    END IF;
    PERFORM set_config('at.following', 'yes', true);
    FOR command IN SELECT * FROM pg_event_trigger_ddl_commands() LOOP
        CONTINUE WHEN command.schema_name IN ('pg_temp', 'at') OR command.in_extension;
        IF coalesce(current_setting('at.xid', true), '') <> '' THEN
            RAISE EXCEPTION '% inside a branch could not be undone', command.command_tag USING ERRCODE = 'AT005';
        END IF;
        IF command.command_tag = 'ALTER SCHEMA' THEN
            PERFORM at.generate(m.relation) FROM at.managed m;
        END IF;
        relation := CASE
            WHEN command.classid = 'pg_class'::regclass
                THEN coalesce((SELECT i.indrelid FROM pg_index i WHERE i.indexrelid = command.objid), command.objid) END;
        CONTINUE WHEN relation IS NULL OR NOT EXISTS (
            SELECT FROM pg_class c WHERE c.oid = relation AND c.relkind IN ('r', 'p', 'f'));
        PERFORM at.refresh_with_neighbours(relation);
        PERFORM at.guard(member) FROM at.tree(relation) AS member;
    END LOOP;
    PERFORM set_config('at.following', '', true);
END
$$;

CREATE OR REPLACE FUNCTION at.on_drop() RETURNS event_trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    dropped record;
    any_table boolean := false;
BEGIN
    IF coalesce(current_setting('at.following', true), '') <> '' OR to_regclass('at.managed') IS NULL THEN
        RETURN;
    END IF;
    FOR dropped IN SELECT * FROM pg_event_trigger_dropped_objects() WHERE NOT is_temporary
            AND schema_name IS DISTINCT FROM 'at' LOOP
        IF coalesce(current_setting('at.xid', true), '') <> '' THEN
            RAISE EXCEPTION '% inside a branch could not be undone', TG_TAG USING ERRCODE = 'AT005';
        END IF;
        any_table := any_table OR dropped.object_type IN ('table', 'foreign table', 'index', 'table constraint');
    END LOOP;
    IF any_table THEN
        PERFORM set_config('at.following', 'yes', true);
        PERFORM at.prune();
        PERFORM at.generate(m.relation) FROM at.managed m;
        PERFORM set_config('at.following', '', true);
    END IF;
END
$$;

-- Makes the event triggers where the installer may; returns whether they are there.
CREATE OR REPLACE FUNCTION at.ensure_event_triggers() RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN
        IF NOT EXISTS (SELECT FROM pg_event_trigger WHERE evtname = 'at_on_ddl') THEN
            CREATE EVENT TRIGGER at_on_ddl ON ddl_command_end EXECUTE FUNCTION at.on_ddl();
        END IF;
        IF NOT EXISTS (SELECT FROM pg_event_trigger WHERE evtname = 'at_on_drop') THEN
            CREATE EVENT TRIGGER at_on_drop ON sql_drop EXECUTE FUNCTION at.on_drop();
        END IF;
    END IF;
    RETURN EXISTS (SELECT FROM pg_event_trigger WHERE evtname = 'at_on_ddl' AND evtenabled <> 'D');
END
$$;
