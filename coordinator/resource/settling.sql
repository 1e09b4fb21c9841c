-- Settling: the generated statements of phase two of a managed table.
--
-- Data model: see model.sql; at.managed keeps these texts. Parameters: $1 the xid, $2 the branches (NULL: all), $3 a
-- limit of rows, or whether to go further. Rows are put back in place where unique values allow it; the other touched
-- keys are deleted and their before images inserted, so that swapped unique values need no order.

-- The undo rows that a statement is about.
CREATE OR REPLACE FUNCTION at.scope() RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT 'at_l.xid = $1 AND ($2 IS NULL OR at_l.branch_id = ANY ($2))';
$$;

-- Only the data rows: a writer locks its data row first and meets the undo row in the trigger, so taking the undo row
-- before the data row here would be the other order, and a deadlock.
CREATE OR REPLACE FUNCTION at.lock_statement(relation regclass) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT format('SELECT count(*) FROM (SELECT FROM %s at_l JOIN %s at_t ON %s WHERE %s ORDER BY %s FOR UPDATE OF at_t) at_x',
        at.undo_table(relation), relation, at.key_match(relation, 'at_l', 'at_t'), at.scope(),
        at.key_list(relation, 'at_t.%1$I'));
$$;

-- The row as it is now: its image, or NULL where there is none. A key column is never NULL, but a composite one with a
-- NULL in it would not be IS NOT NULL.
CREATE OR REPLACE FUNCTION at.image_now(relation regclass) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT format('CASE WHEN at_t.%I IS DISTINCT FROM NULL THEN %s END',
        (SELECT k.column_name FROM at.key(relation) k WHERE k.ordinal = 1), at.image(relation, 'at_t'));
$$;

-- One problem as jsonb; `expected` and `found` are SQL expressions.
CREATE OR REPLACE FUNCTION at.problem(relation regclass, expected text, found text, error text) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT format('jsonb_build_object(''table'', %L, ''key'', jsonb_build_object(%s), ''expected'', to_jsonb(%s), ''found'', to_jsonb(%s), ''error'', %L)',
        relation::text, at.key_list(relation, '%1$L, at_l.%2$I'), expected, found, error);
$$;

CREATE OR REPLACE FUNCTION at.compare_statement(relation regclass) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT format(
        'SELECT jsonb_agg(at_x.problem) FROM (SELECT %s AS problem FROM (SELECT at_l.*, %s AS at__now FROM %s at_l LEFT JOIN %s at_t ON %s WHERE %s OFFSET 0) at_l WHERE NOT %s OR at_l.olds IS NOT NULL LIMIT $3) at_x',
        at.problem(relation, 'at_l.after', 'at_l.at__now', 'the row was changed behind the triggers'), at.image_now(relation),
        at.undo_table(relation), relation, at.key_match(relation, 'at_l', 'at_t'), at.scope(),
        at.same_image('at_l.after', 'at_l.at__now'));
$$;

-- The columns that an update in place sets: neither the key's nor those that resist (generated, identity).
CREATE OR REPLACE FUNCTION at.settable_columns(relation regclass) RETURNS name[]
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT array_agg(a.attname ORDER BY a.attnum) FROM pg_attribute a
    WHERE a.attrelid = relation AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '' AND a.attidentity <> 'a'
      AND NOT EXISTS (SELECT FROM at.key(relation) k WHERE k.column_name = a.attname);
$$;

-- The columns that decide whether a row fits beside others: those of unique and exclusion indexes, in their
-- expressions and predicates too.
CREATE OR REPLACE FUNCTION at.unique_columns(relation regclass) RETURNS name[]
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT array_agg(a.attname ORDER BY a.attnum) FROM pg_attribute a
    WHERE a.attrelid = relation AND a.attnum > 0 AND NOT a.attisdropped AND EXISTS (
        SELECT FROM at.unique_indexes(relation) u JOIN pg_index i ON i.indexrelid = u.index_id
        JOIN pg_attribute x ON x.attrelid = i.indrelid AND x.attname = a.attname  -- a partition has its own numbers
        WHERE x.attnum = ANY (i.indkey) OR EXISTS (
            SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = u.index_id
                AND d.refclassid = 'pg_class'::regclass AND d.refobjid = x.attrelid AND d.refobjsubid = x.attnum));
$$;

-- That these columns are, bit by bit, as they were.
CREATE OR REPLACE FUNCTION at.unmoved(columns name[]) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT coalesce('record_image_eq(ROW(' || string_agg(format('at_t.%I', c), ', ') || '), ROW('
                    || string_agg(format('(at_l.before).%I', c), ', ') || '))', 'true') FROM unnest(columns) AS c;
$$;

-- Puts rows back in place: who waits for a row's lock meanwhile goes on with that row, while one that was deleted and
-- inserted again would be gone for it, and its write lost. $3 tells whether also where a unique value moved, which
-- fails when values changed places.
CREATE OR REPLACE FUNCTION at.update_statement(relation regclass) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE WHEN at.settable_columns(relation) IS NULL THEN 'SELECT WHERE $1 IS NULL AND $2 IS NULL AND $3 AND false' ELSE format(
        'UPDATE %s at_t SET %s FROM %s at_l WHERE %s AND %s AND at_l.before IS DISTINCT FROM NULL AND NOT %s AND %s AND ($3 OR %s)',
        relation, (SELECT string_agg(format('%1$I = (at_l.before).%1$I', c), ', ') FROM unnest(at.settable_columns(relation)) AS c),
        at.undo_table(relation), at.key_match(relation, 'at_l', 'at_t'), at.scope(),
        at.same_image(at.image(relation, 'at_t'), 'at_l.before'),
        at.unmoved((SELECT array_agg(a.attname) FROM pg_attribute a WHERE a.attrelid = relation AND a.attidentity = 'a'
                    AND NOT a.attisdropped)),
        at.unmoved(at.unique_columns(relation))) END;
$$;

-- Compares, locks and puts back in one go, for the undo in which every row was changed and none came or went: it does
-- nothing at all where another is among them, and leaves out a row that is not as the branch left it.
CREATE OR REPLACE FUNCTION at.in_place_statement(relation regclass) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE WHEN at.settable_columns(relation) IS NULL THEN '' ELSE format(
        'UPDATE %1$s at_t SET %2$s FROM %3$s at_l WHERE %4$s AND %5$s AND %6$s AND %7$s AND %8$s AND NOT EXISTS (SELECT FROM %3$s at_l WHERE %5$s AND (at_l.before IS NOT DISTINCT FROM NULL OR at_l.after IS NOT DISTINCT FROM NULL OR at_l.olds IS NOT NULL OR at_l.before OPERATOR(pg_catalog.*=) at_l.after))',
        relation, (SELECT string_agg(format('%1$I = (at_l.before).%1$I', c), ', ') FROM unnest(at.settable_columns(relation)) AS c),
        at.undo_table(relation), at.key_match(relation, 'at_l', 'at_t'), at.scope(),
        at.same_image(at.image(relation, 'at_t'), 'at_l.after'),
        at.unmoved((SELECT array_agg(a.attname) FROM pg_attribute a WHERE a.attrelid = relation AND a.attidentity = 'a'
                    AND NOT a.attisdropped)),
        at.unmoved(at.unique_columns(relation))) END;
$$;

-- Removes the rows that came with the transaction, or ($3) all that are not as they were.
CREATE OR REPLACE FUNCTION at.delete_statement(relation regclass) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT format('DELETE FROM %s at_t USING %s at_l WHERE %s AND %s AND NOT %s AND ($3 OR at_l.before IS NOT DISTINCT FROM NULL)',
        relation, at.undo_table(relation), at.key_match(relation, 'at_l', 'at_t'), at.scope(),
        at.same_image(at.image(relation, 'at_t'), 'at_l.before'));
$$;

CREATE OR REPLACE FUNCTION at.insert_statement(relation regclass) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT format('INSERT INTO %s (%s) OVERRIDING SYSTEM VALUE SELECT %s FROM %s at_l WHERE %s AND at_l.before IS DISTINCT FROM NULL AND NOT EXISTS (SELECT FROM %s at_t WHERE %s)',
        relation, at.stored_list(relation, '%1$I'), at.stored_list(relation, '(at_l.before).%1$I'),
        at.undo_table(relation), at.scope(), relation, at.key_match(relation, 'at_l', 'at_t'));
$$;

-- What must hold once rows are restored, as conditions of a problem: none is missing, none that should be gone is
-- there, and no foreign key is broken (their triggers are off in undo, and exempt tables know no locks).
CREATE OR REPLACE FUNCTION at.verify_conditions(relation regclass) RETURNS TABLE (condition text, error text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT format('(at_l.before IS DISTINCT FROM NULL) <> EXISTS (SELECT FROM %s at_t WHERE %s)',
                  relation, at.key_match(relation, 'at_l', 'at_t')), 'the restored row is not there'
    UNION ALL
    SELECT format('at_l.before IS DISTINCT FROM NULL AND %s AND NOT EXISTS (SELECT FROM %s at_p WHERE %s)',
                  (SELECT string_agg(format('(at_l.before).%I IS DISTINCT FROM NULL', c), ' AND ') FROM unnest(f.child_columns) AS c),
                  f.parent, at.fk_match('at_p.%I', f.parent_columns, '(at_l.before).%I', f.child_columns, f.equals)),
           format('the restored row would break foreign key %s', f.name)
    FROM at.foreign_keys() f WHERE f.child = verify_conditions.relation AND f.validated
    UNION ALL
    SELECT format('at_l.after IS DISTINCT FROM NULL AND NOT EXISTS (SELECT FROM %s at_t WHERE %s) AND EXISTS (SELECT FROM %s at_c WHERE %s)',
                  relation,
                  (SELECT string_agg(format('at_t.%1$I IS NOT DISTINCT FROM (at_l.after).%1$I', p), ' AND ')
                   FROM unnest(f.parent_columns) AS p),
                  f.child, at.fk_match('(at_l.after).%I', f.parent_columns, 'at_c.%I', f.child_columns, f.equals)),
           format('a row of %s would lose what foreign key %s points at', f.child, f.name)
    FROM at.foreign_keys() f WHERE f.parent = verify_conditions.relation;
$$;

CREATE OR REPLACE FUNCTION at.verify_statement(relation regclass) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT format('SELECT jsonb_agg(at_x.problem) FROM (%s LIMIT $3) at_x', string_agg(format(
        'SELECT %s AS problem FROM %s at_l WHERE %s AND %s',
        at.problem(relation, 'at_l.before', 'at_l.after', v.error), at.undo_table(relation), at.scope(), v.condition),
        ' UNION ALL '))
    FROM at.verify_conditions(relation) v;
$$;

-- The columns of at.managed that are generated, in their order, for one table.
CREATE OR REPLACE FUNCTION at.write_statements(p_relation regclass) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    UPDATE at.managed SET
        columns = at.column_names(p_relation),
        lock_sql = at.lock_statement(p_relation),
        compare_sql = at.compare_statement(p_relation),
        update_sql = at.update_statement(p_relation),
        delete_sql = at.delete_statement(p_relation),
        insert_sql = at.insert_statement(p_relation),
        verify_sql = at.verify_statement(p_relation),
        drop_sql = format('DELETE FROM %s at_l WHERE %s', at.undo_table(p_relation), at.scope()),
        in_place_sql = at.in_place_statement(p_relation),
        references_sql = CASE WHEN (SELECT count(*) FROM at.verify_conditions(p_relation)) > 1
                              THEN at.verify_statement(p_relation) ELSE '' END
    WHERE relation = p_relation;
$$;

-- Writes the functions that name every undo table: at.forget_rows, at.forget_shared_rows and at.touched, static so that
-- their plans are kept.
CREATE OR REPLACE FUNCTION at.write_fleet_functions() RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    header constant text := 'LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS ';
    deletes text;
    partial_deletes text;
    shared_locks text;
    shared_deletes text;
    looks text;
BEGIN
    SELECT string_agg(format('    DELETE FROM at.%I WHERE xid = ANY (p_xids);', undo_table), E'\n' ORDER BY undo_table),
           string_agg(format('    DELETE FROM at.%I WHERE xid = ANY (p_xids) AND branch_id = ANY (p_branches);', undo_table),
                      E'\n' ORDER BY undo_table),
           string_agg(format('  PERFORM FROM at.%I WHERE xid = ANY (p_xids) AND branch_id IS NULL FOR UPDATE;', undo_table),
                      E'\n' ORDER BY undo_table),
           string_agg(format('  DELETE FROM at.%I WHERE xid = ANY (alone) AND branch_id IS NULL;', undo_table),
                      E'\n' ORDER BY undo_table),
           string_agg(format('  IF EXISTS (SELECT FROM at.%I WHERE xid = p_xid) THEN found_tables := found_tables || %L::regclass; END IF;',
                             undo_table, relation::text), E'\n' ORDER BY undo_table)
        INTO deletes, partial_deletes, shared_locks, shared_deletes, looks FROM at.managed;
    -- Only at.forget calls these two, and has set what they need.
    EXECUTE 'CREATE OR REPLACE FUNCTION at.forget_rows(p_xids uuid[], p_branches uuid[]) RETURNS void LANGUAGE plpgsql AS '
        || quote_literal(format(E'\nBEGIN\n  IF p_branches IS NULL THEN\n%s\n  ELSE\n%s\n  END IF;\nEND\n',
            coalesce(deletes, '    NULL;'), coalesce(partial_deletes, '    NULL;')));
    -- A branch that is writing a shared row is waited for first; only then its own row in at.branch can be seen.
    EXECUTE 'CREATE OR REPLACE FUNCTION at.forget_shared_rows(p_xids uuid[], p_branches uuid[]) RETURNS void LANGUAGE plpgsql AS '
        || quote_literal(format(E'\nDECLARE\n  alone uuid[];\nBEGIN\n%s\n  alone := ARRAY(SELECT x FROM unnest(p_xids) AS x '
            'WHERE NOT EXISTS (SELECT FROM at.branch b WHERE b.xid = x AND b.state < 1 AND b.branch_id <> ALL (p_branches)));\n%s\nEND\n',
            coalesce(shared_locks, '  NULL;'), coalesce(shared_deletes, '  NULL;')));
    EXECUTE 'CREATE OR REPLACE FUNCTION at.touched(p_xid uuid) RETURNS regclass[] '
        || header || quote_literal(format(E'\nDECLARE\n  found_tables regclass[] := ''{}'';\nBEGIN\n%s\n  RETURN found_tables;\nEND\n', looks));
    REVOKE ALL ON FUNCTION at.forget_rows(uuid[], uuid[]), at.forget_shared_rows(uuid[], uuid[]), at.touched(uuid) FROM PUBLIC;
END
$$;

-- What an earlier installation wrote under this name.
DROP FUNCTION IF EXISTS at.forget_rows(uuid[], uuid[], uuid[]);

CREATE OR REPLACE FUNCTION at.locks(of_xid uuid DEFAULT NULL)
RETURNS TABLE (table_name text, key jsonb, xid uuid, branch_id uuid, before jsonb, after jsonb)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    m at.managed;
BEGIN
    FOR m IN SELECT * FROM at.managed ORDER BY relation::text LOOP
        RETURN QUERY EXECUTE format(
            'SELECT %L, jsonb_build_object(%s), at_l.xid, at_l.branch_id, to_jsonb(at_l.before), to_jsonb(at_l.after) FROM at.%I at_l WHERE $1 IS NULL OR at_l.xid = $1',
            m.relation::text, at.key_list(m.relation, '%1$L, at_l.%2$I'), m.undo_table) USING of_xid;
    END LOOP;
END
$$;
