-- Capture: the generated trigger functions of a managed table.
--
-- Data model: see model.sql. Per table there are insert, update and delete functions, called once per statement with
-- transition tables, and one for truncate; all run as the installer, so that roles need no right on undo tables.
-- A branch merges what it touched into the undo table, one row per key; a plain writer only looks whether anybody
-- locks its keys. Then both look for values and references that an undecided transaction has set free.

-- The rows a statement touched as (key, at__before, at__after). Rows of an update cannot be paired when the key changes,
-- so they are joined on it: a changed key is a deletion of the one and an insertion of the other.
CREATE OR REPLACE FUNCTION at.touched_rows(relation regclass, operation text) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE
        WHEN operation = 'insert' THEN format(
            'SELECT %s, NULL::%s AS at__before, %s AS at__after FROM at_new at_n',
            at.key_list(relation, 'at_n.%1$I AS %2$I'), relation, at.image(relation, 'at_n'))
        WHEN operation = 'delete' THEN format(
            'SELECT %s, %s AS at__before, NULL::%s AS at__after FROM at_old at_o',
            at.key_list(relation, 'at_o.%1$I AS %2$I'), at.image(relation, 'at_o'), relation)
        WHEN at.is_chained(relation) THEN at.touched_chains(relation)
        ELSE format(
            'SELECT %s, CASE WHEN at_o.at__is THEN %s END AS at__before, CASE WHEN at_n.at__is THEN %s END AS at__after
       FROM (SELECT *, true AS at__is FROM at_old) at_o FULL JOIN (SELECT *, true AS at__is FROM at_new) at_n ON %s',
            at.key_list(relation, 'coalesce(at_o.%1$I, at_n.%1$I) AS %2$I'),
            at.image(relation, 'at_o'), at.image(relation, 'at_n'), at.key_match(relation, 'at_o', 'at_n'))
    END;
$$;

-- The same for an update of a table that foreign keys may update too (at.is_chained): a row may come several times.
-- Old and new rows are appended in pairs, so their numbers give the order of events; a key's first event says what
-- was there before, its last one what is there now.
CREATE OR REPLACE FUNCTION at.touched_chains(relation regclass) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT format(
        'WITH at_events AS (
         SELECT %1$s, 2 * row_number() OVER () AS at__pos, false AS at__came, %3$s AS at__image FROM at_old at_o
         UNION ALL
         SELECT %2$s, 2 * row_number() OVER () + 1, true, %4$s FROM at_new at_n
       ), at_first AS (SELECT DISTINCT ON (%5$s) * FROM at_events ORDER BY %5$s, at__pos)
       , at_last AS (SELECT DISTINCT ON (%5$s) * FROM at_events ORDER BY %5$s, at__pos DESC)
       SELECT %6$s, CASE WHEN NOT at_f.at__came THEN at_f.at__image END AS at__before,
              CASE WHEN at_e.at__came THEN at_e.at__image END AS at__after
       FROM at_first at_f JOIN at_last at_e ON %7$s',
        at.key_list(relation, 'at_o.%1$I AS %2$I'), at.key_list(relation, 'at_n.%1$I AS %2$I'),
        at.image(relation, 'at_o'), at.image(relation, 'at_n'), at.key_list(relation, '%2$I'),
        at.key_list(relation, 'at_f.%2$I'),
        (SELECT string_agg(format('at_f.%1$I %2$s at_e.%1$I', k.undo_name, k.equals), ' AND ') FROM at.key(relation) k));
$$;

-- Merges the touched rows into the undo table. A key met again keeps its first before image, and its after image is
-- read from the table, because captures do not come in the order of the writes: a write that a user's trigger makes is
-- captured before the statement that fired the trigger, and the triggers of one statement with several commands
-- (CTEs, cascades) come in any order. A late capture, of a write earlier than all that is known of the key, gives the
-- first before image. It is known by this: its after image is the known before image; it is not simply the next
-- write; and it comes from a shallower trigger depth with the row as it is now captured before, or from the same
-- depth with the row written before the first capture (cmin counts the commands of a transaction). Where a gap showed
-- that earlier writes of the same statement are still to come, the known before image is older: depth 0, never late.
CREATE OR REPLACE FUNCTION at.capture_statement(relation regclass, operation text) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT format($f$INSERT INTO %1$s AS at_l (%2$s, xid, branch_id, before, after, depth)
      SELECT %3$s, at__me, at__branch, at_r.at__before, at_r.at__after, pg_trigger_depth() FROM (%4$s) at_r
      ON CONFLICT ON CONSTRAINT %5$I DO UPDATE SET
        xid = CASE WHEN at_l.xid = excluded.xid THEN at_l.xid ELSE at.refuse(%6$L, at_l.xid) END,
        branch_id = CASE WHEN at_l.branch_id = excluded.branch_id THEN at_l.branch_id END,
        (before, after, depth, since) = (
          SELECT CASE WHEN at_q.late THEN excluded.before ELSE at_l.before END, at_q.now,
                 CASE WHEN at_q.late THEN excluded.depth WHEN at_q.linked THEN least(at_l.depth, excluded.depth) ELSE 0 END,
                 at_q.first_cid
          FROM (SELECT at_p.*,
                  at_l.branch_id = excluded.branch_id AND at_l.depth > 0 AND %9$s AND NOT (at_p.linked AND %8$s)
                  AND CASE WHEN excluded.depth < at_l.depth THEN coalesce(at_p.now_cid < at_l.cmin::text::bigint, true)
                           WHEN excluded.depth = at_l.depth THEN coalesce(at_p.now_cid < at_p.first_cid, true)
                           ELSE false END IS TRUE AS late
                FROM (SELECT at_c.now, at_c.now_cid, %7$s AS linked, coalesce(at_l.since, at_l.cmin::text::bigint) AS first_cid
                      FROM (SELECT) at_one LEFT JOIN LATERAL (
                        SELECT %10$s AS now, at_t.cmin::text::bigint AS now_cid FROM %6$s at_t WHERE %11$s) at_c ON true
                      OFFSET 0) at_p
                OFFSET 0) at_q)$f$,
        at.undo_table(relation), at.key_list(relation, '%2$I'), at.key_list(relation, 'at_r.%2$I'),
        at.touched_rows(relation, operation), at.name_of(at.base_name(relation) || ':pk'), relation::text,
        at.same_image('at_l.after', 'excluded.before'), at.same_image('at_p.now', 'excluded.after'),
        at.same_image('at_l.before', 'excluded.after'), at.image(relation, 'at_t'),
        at.key_match(relation, 'excluded', 'at_t'));
$$;

-- Statements that stop a plain writer at a locked key. Above READ COMMITTED its snapshot may be older than the lock,
-- while the unique index of the undo table shows every row: trying to insert the key there raises 40001.
CREATE OR REPLACE FUNCTION at.plain_check(relation regclass, operation text) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT format($f$    IF EXISTS (SELECT FROM %1$s) THEN
      SELECT at_s.xid INTO at__holder FROM (%2$s) at_s LIMIT 1;
      IF FOUND THEN
        PERFORM at.refuse(%3$L, at__holder);
      END IF;
    END IF;
$f$, at.undo_table(relation), concat_ws(' UNION ALL ',
        CASE WHEN operation <> 'insert' THEN format('SELECT at_l.xid FROM at_old at_o JOIN %s at_l ON %s',
            at.undo_table(relation), at.key_match(relation, 'at_l', 'at_o')) END,
        CASE WHEN operation <> 'delete' THEN format('SELECT at_l.xid FROM at_new at_n JOIN %s at_l ON %s',
            at.undo_table(relation), at.key_match(relation, 'at_l', 'at_n')) END), relation::text)
    || CASE WHEN operation = 'delete' THEN '' ELSE format(
$f$    IF current_setting('transaction_isolation') IN ('repeatable read', 'serializable') THEN
      INSERT INTO %1$s (%2$s, xid, depth)
        SELECT %3$s, at__nobody, 0 FROM at_new at_n %4$s
        ON CONFLICT DO NOTHING;
      DELETE FROM %1$s WHERE xid = at__nobody;
    END IF;
$f$, at.undo_table(relation), at.key_list(relation, '%2$I'), at.key_list(relation, 'at_n.%1$I'),
        CASE WHEN operation = 'update' THEN format('WHERE NOT EXISTS (SELECT FROM at_old at_o WHERE %s)',
            at.key_match(relation, 'at_o', 'at_n')) ELSE '' END) END;
$$;

-- The columns of a unique index in a subquery over rows `source` (which names the table's columns): at__u1, at__u2, ...
-- with the index's predicate.
CREATE OR REPLACE FUNCTION at.index_values(index_id oid, source text, extra text) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT format('SELECT %s%s FROM %s%s',
        extra, string_agg(format('(%s) AS at__u%s', pg_get_indexdef(i.indexrelid, k, false), k), ', ' ORDER BY k), source,
        coalesce(' WHERE ' || pg_get_expr(i.indpred, i.indrelid), ''))
    FROM pg_index i CROSS JOIN LATERAL generate_series(1, i.indnkeyatts) AS k
    WHERE i.indexrelid = index_id GROUP BY i.indexrelid, i.indrelid, i.indpred;
$$;

-- For a unique index over plain columns: the condition that an undo row has freed its value. The partial index on the
-- undo table has it as predicate, so that only freed values cost an index entry.
CREATE OR REPLACE FUNCTION at.freed_condition(index_id oid, alias text) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT string_agg(format('(%1$sbefore).%2$I IS DISTINCT FROM (%1$safter).%2$I', alias, a.attname), ' OR ' ORDER BY k.i)
    FROM pg_index x CROSS JOIN LATERAL unnest(x.indkey[0:x.indnkeyatts - 1]) WITH ORDINALITY AS k (n, i)
    JOIN pg_attribute a ON a.attrelid = x.indrelid AND a.attnum = k.n WHERE x.indexrelid = index_id;
$$;

-- Queries for values of new rows that an undecided transaction has freed on a unique index: undo needs them back.
CREATE OR REPLACE FUNCTION at.freed_value_checks(relation regclass) RETURNS SETOF text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE WHEN u.is_plain AND NOT u.nulls_equal THEN format(
        'SELECT at_l.xid FROM at_new at_n JOIN %s at_l ON %s WHERE (%s) AND at_l.xid IS DISTINCT FROM at__me',
        at.undo_table(relation),
        (SELECT string_agg(format('(at_l.before).%1$I %2$s at_n.%1$I', a.attname, at.equality(x.indclass[k.i - 1])),
                           ' AND ' ORDER BY k.i)
         FROM pg_index x CROSS JOIN LATERAL unnest(x.indkey[0:x.indnkeyatts - 1]) WITH ORDINALITY AS k (n, i)
         JOIN pg_attribute a ON a.attrelid = x.indrelid AND a.attnum = k.n WHERE x.indexrelid = u.index_id),
        at.freed_condition(u.index_id, 'at_l.'))
    ELSE format('SELECT at_v.at__xid AS xid FROM (%s) at_v JOIN (%s) at_w ON %s',
        at.index_values(u.index_id, format('(SELECT at_i.xid AS at__xid, (at_i.before).* FROM %s at_i
            WHERE at_i.before IS DISTINCT FROM NULL AND at_i.xid IS DISTINCT FROM at__me AND NOT %s) at_b',
            at.undo_table(relation), at.same_image('at_i.before', 'at_i.after')), 'at__xid, '),
        at.index_values(u.index_id, 'at_new', ''),
        (SELECT string_agg(CASE WHEN u.nulls_equal THEN format(
                    '(at_v.at__u%1$s %2$s at_w.at__u%1$s OR at_v.at__u%1$s IS NULL AND at_w.at__u%1$s IS NULL)', k, e)
                ELSE format('at_v.at__u%1$s %2$s at_w.at__u%1$s', k, e) END, ' AND ' ORDER BY k)
         FROM pg_index x CROSS JOIN LATERAL generate_series(1, x.indnkeyatts) AS k
         CROSS JOIN LATERAL at.equality(x.indclass[k - 1]) AS e WHERE x.indexrelid = u.index_id)) END
    FROM at.unique_indexes(relation) u WHERE u.is_unique;
$$;

-- Queries for new rows that point at a row which an undecided transaction has made: undo would take it away.
CREATE OR REPLACE FUNCTION at.parent_checks(relation regclass) RETURNS TABLE (undo_table text, query text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT at.undo_table(m.relation), format(
        'SELECT at_l.xid FROM at_new at_n JOIN %s at_l ON %s WHERE at_l.xid IS DISTINCT FROM at__me AND (%s)',
        at.undo_table(m.relation),
        CASE WHEN f.parent_columns = (SELECT array_agg(k.column_name ORDER BY k.ordinal) FROM at.key(m.relation) k)
             THEN at.fk_match('at_l.%I', (SELECT array_agg(k.undo_name ORDER BY k.ordinal) FROM at.key(m.relation) k),
                              'at_n.%I', f.child_columns, f.equals)
             ELSE at.fk_match('(at_l.after).%I', f.parent_columns, 'at_n.%I', f.child_columns, f.equals) END,
        (SELECT string_agg(format('(at_l.before).%1$I IS DISTINCT FROM (at_l.after).%1$I', p), ' OR ')
         FROM unnest(f.parent_columns) AS p))
    FROM at.foreign_keys() f JOIN at.managed m ON f.parent IN (SELECT at.tree(m.relation))
    WHERE f.child IN (SELECT at.tree(parent_checks.relation)) ORDER BY f.name, f.parent::text;
$$;

-- Queries for vanished rows that a row which an undecided transaction removed pointed at: undo brings that one back.
CREATE OR REPLACE FUNCTION at.child_checks(relation regclass, operation text) RETURNS TABLE (undo_table text, query text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT at.undo_table(m.relation), format(
        'SELECT at_l.xid FROM at_old at_o JOIN %s at_l ON %s WHERE at_l.xid IS DISTINCT FROM at__me AND (%s)%s',
        at.undo_table(m.relation),
        at.fk_match('at_o.%I', f.parent_columns, '(at_l.before).%I', f.child_columns, f.equals),
        (SELECT string_agg(format('(at_l.before).%1$I IS DISTINCT FROM (at_l.after).%1$I', c), ' OR ')
         FROM unnest(f.child_columns) AS c),
        CASE WHEN operation = 'update' THEN format(' AND NOT EXISTS (SELECT FROM at_new at_n WHERE %s)',
            (SELECT string_agg(format('at_n.%1$I IS NOT DISTINCT FROM at_o.%1$I', p), ' AND ')
             FROM unnest(f.parent_columns) AS p)) ELSE '' END)
    FROM at.foreign_keys() f JOIN at.managed m ON f.child IN (SELECT at.tree(m.relation))
    WHERE f.parent IN (SELECT at.tree(child_checks.relation)) ORDER BY f.name, f.child::text;
$$;

-- One guard as statements: nothing is asked while the undo table is empty.
CREATE OR REPLACE FUNCTION at.guard_statement(relation regclass, undo_table text, query text, what text) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT format($f$  IF EXISTS (SELECT FROM %1$s) THEN
    %2$s LIMIT 1 INTO at__holder;
    IF FOUND THEN
      PERFORM at.refuse(%3$L, at__holder, %4$L);
    END IF;
  END IF;
$f$, undo_table, query, relation::text, what);
$$;

-- The body of the trigger function for insert, update or delete.
CREATE OR REPLACE FUNCTION at.capture_body(relation regclass, operation text) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT format($f$
#variable_conflict use_variable
DECLARE
  at__me constant uuid := nullif(current_setting('at.xid', true), '')::uuid;
  at__branch constant uuid := nullif(current_setting('at.branch', true), '')::uuid;
  at__nobody constant uuid := '00000000-0000-0000-0000-000000000000';
  at__holder uuid;
BEGIN
  IF at__me IS NOT NULL THEN
    %s;
  ELSE
%s  END IF;
%s  RETURN NULL;
END
$f$, at.capture_statement(relation, operation), at.plain_check(relation, operation), concat(
        CASE WHEN operation <> 'delete' THEN concat(
            (SELECT string_agg(at.guard_statement(relation, at.undo_table(relation), c, 'unique value'), '')
             FROM at.freed_value_checks(relation) c),
            (SELECT string_agg(at.guard_statement(relation, c.undo_table, c.query, 'referenced row'), '')
             FROM at.parent_checks(relation) c)) END,
        CASE WHEN operation <> 'insert' THEN
            (SELECT string_agg(at.guard_statement(relation, c.undo_table, c.query, 'referencing row'), '')
             FROM at.child_checks(relation, operation) c) END));
$$;

-- The body for truncate: it cannot be captured, and must not take rows that somebody locks.
CREATE OR REPLACE FUNCTION at.truncate_body(relation regclass) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT format($f$
DECLARE
  at__holder uuid;
BEGIN
  IF coalesce(current_setting('at.xid', true), '') <> '' THEN
    RAISE EXCEPTION 'TRUNCATE on table %% inside a branch could not be undone', %1$L
      USING ERRCODE = 'AT005', HINT = 'Use DELETE.';
  END IF;
  SELECT at_l.xid INTO at__holder FROM %2$s at_l LIMIT 1;
  IF FOUND THEN
    PERFORM at.refuse(%1$L, at__holder);
  END IF;
  RETURN NULL;
END
$f$, relation::text, at.undo_table(relation));
$$;
