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

-- The same for an update of a table that foreign keys may update too (at.is_chained): a row may come several times, in
-- versions that cannot be told apart by their place. What counts is the difference of old and new images of each key
-- (see at.capture_statement); absence makes up for the missing ones where rows came or went.
CREATE OR REPLACE FUNCTION at.touched_chains(relation regclass) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT format($f$SELECT %1$s, CASE WHEN cardinality(at_d.olds) = 0 THEN (%2$s) ELSE at_d.olds[1] END AS at__before,
             CASE WHEN cardinality(at_d.olds) = 0 THEN (%2$s) ELSE at_d.news[1] END AS at__after,
             CASE WHEN cardinality(at_d.olds) > 1 THEN at_d.olds END AS at__olds,
             CASE WHEN cardinality(at_d.olds) > 1 THEN at_d.news END AS at__news
       FROM (
         SELECT %1$s, coalesce(array_agg(at_e.at__image) FILTER (WHERE NOT at_e.at__came), '{}') AS at__olds,
                coalesce(array_agg(at_e.at__image) FILTER (WHERE at_e.at__came), '{}') AS at__news
         FROM (SELECT %3$s, false AS at__came, %4$s AS at__image FROM at_old at_o
               UNION ALL SELECT %5$s, true, %6$s FROM at_new at_n) at_e
         GROUP BY %1$s) at_e
       CROSS JOIN LATERAL at.difference(
         at_e.at__olds || array_fill(NULL::%7$s, ARRAY[greatest(cardinality(at_e.at__news) - cardinality(at_e.at__olds), 0)]),
         at_e.at__news || array_fill(NULL::%7$s, ARRAY[greatest(cardinality(at_e.at__olds) - cardinality(at_e.at__news), 0)])
       ) AS at_d$f$,
        at.key_list(relation, 'at_e.%2$I'),
        format('SELECT %s FROM %s at_t WHERE %s', at.image(relation, 'at_t'), relation,
               (SELECT string_agg(format('at_t.%I %s at_e.%I', k.column_name, k.equals, k.undo_name), ' AND ')
                FROM at.key(relation) k)),
        at.key_list(relation, 'at_o.%1$I AS %2$I'), at.image(relation, 'at_o'),
        at.key_list(relation, 'at_n.%1$I AS %2$I'), at.image(relation, 'at_n'), relation);
$$;

-- Takes away what stands in both lists of images, equal bit by bit, as often as it does. NULL (no row) equals NULL.
CREATE OR REPLACE FUNCTION at.difference(INOUT olds anyarray, INOUT news anyarray)
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    i int := 1;
    j int;
BEGIN
    WHILE i <= cardinality(olds) LOOP
        j := 1;
        WHILE j <= cardinality(news) AND NOT coalesce(olds[i] *= news[j],
                olds[i] IS NOT DISTINCT FROM NULL AND news[j] IS NOT DISTINCT FROM NULL) LOOP
            j := j + 1;
        END LOOP;
        IF j <= cardinality(news) THEN
            olds := olds[:i - 1] || olds[i + 1:];
            news := news[:j - 1] || news[j + 1:];
        ELSE
            i := i + 1;
        END IF;
    END LOOP;
END
$$;

-- Merges the touched rows into the undo table, in whatever order captures come: a write that a user's trigger makes is
-- captured before the statement that fired the trigger, and the triggers of one statement with several commands (CTEs,
-- cascades) come in any order. The writes of a key are steps old -> new that form one path. Each image between is the
-- end of one step and the start of another, so it falls out of the difference of all olds and all news; what is left
-- is the first before and the last after image. Nothing is left when the path ends where it began: at the row as it is
-- now. While steps in between are still to come, what is left is kept in olds and news.
CREATE OR REPLACE FUNCTION at.capture_statement(relation regclass, operation text) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT format($f$INSERT INTO %1$s AS at_l (%2$s, xid, branch_id, before, after%10$s)
      SELECT %3$s, at__me, at__branch, at_r.at__before, at_r.at__after%11$s FROM (%4$s) at_r
      ON CONFLICT ON CONSTRAINT %5$I DO UPDATE SET
        xid = CASE WHEN at_l.xid = excluded.xid THEN at_l.xid ELSE at.refuse(%6$L, at_l.xid) END,
        branch_id = CASE WHEN at_l.branch_id = excluded.branch_id THEN at_l.branch_id END,
        (before, after, olds, news) = (
          SELECT CASE WHEN at_q.next THEN at_l.before WHEN cardinality(at_d.olds) = 0 THEN (%9$s) ELSE at_d.olds[1] END,
                 CASE WHEN at_q.next THEN excluded.after WHEN cardinality(at_d.olds) = 0 THEN (%9$s) ELSE at_d.news[1] END,
                 CASE WHEN cardinality(at_d.olds) > 1 THEN at_d.olds END,
                 CASE WHEN cardinality(at_d.olds) > 1 THEN at_d.news END
          FROM (SELECT at_l.olds IS NULL AND excluded.olds IS NULL AND %7$s AND NOT %8$s AS next OFFSET 0) at_q
          LEFT JOIN LATERAL (
            SELECT at_f.olds, at_f.news FROM at.difference(
              coalesce(at_l.olds, ARRAY[at_l.before]) || coalesce(excluded.olds, ARRAY[excluded.before]),
              coalesce(at_l.news, ARRAY[at_l.after]) || coalesce(excluded.news, ARRAY[excluded.after])) at_f
            WHERE NOT at_q.next OFFSET 0) at_d ON true)$f$,
        at.undo_table(relation), at.key_list(relation, '%2$I'), at.key_list(relation, 'at_r.%2$I'),
        at.touched_rows(relation, operation), at.name_of(at.base_name(relation) || ':pk'), relation::text,
        at.same_image('at_l.after', 'excluded.before'), at.same_image('at_l.before', 'excluded.after'),
        format('SELECT %s FROM %s at_t WHERE %s', at.image(relation, 'at_t'), relation,
               at.key_match(relation, 'excluded', 'at_t')),
        CASE WHEN operation = 'update' AND at.is_chained(relation) THEN ', olds, news' ELSE '' END,
        CASE WHEN operation = 'update' AND at.is_chained(relation) THEN ', at_r.at__olds, at_r.at__news' ELSE '' END);
$$;

-- The same for a statement that touched one row, and no key of it before: then there is nothing to merge and nothing to
-- pair, and the statement above, with all that it carries for other cases, need not even be started. Inserts no row in
-- any other case. NULL for an update of a table that foreign keys may update too: there, one capture may be a step of
-- several.
CREATE OR REPLACE FUNCTION at.capture_one(relation regclass, operation text) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE WHEN operation <> 'update' OR NOT at.is_chained(relation) THEN format(
        'INSERT INTO %s (%s, xid, branch_id, before, after) SELECT %s, at__me, at__branch, %s, %s FROM %s WHERE %s
      ON CONFLICT ON CONSTRAINT %I DO NOTHING',
        at.undo_table(relation), at.key_list(relation, '%2$I'),
        at.key_list(relation, CASE operation WHEN 'insert' THEN 'at_n.%1$I' ELSE 'at_o.%1$I' END),
        CASE operation WHEN 'insert' THEN format('NULL::%s', relation) ELSE at.image(relation, 'at_o') END,
        CASE operation WHEN 'delete' THEN format('NULL::%s', relation) ELSE at.image(relation, 'at_n') END,
        CASE operation WHEN 'insert' THEN 'at_new at_n' WHEN 'delete' THEN 'at_old at_o'
             ELSE format('at_old at_o JOIN at_new at_n ON %s', at.key_match(relation, 'at_o', 'at_n')) END,
        concat_ws(' AND ',
            CASE WHEN operation <> 'insert' THEN '(SELECT count(*) FROM (SELECT FROM at_old LIMIT 2) at_c) = 1' END,
            CASE WHEN operation <> 'delete' THEN '(SELECT count(*) FROM (SELECT FROM at_new LIMIT 2) at_c) = 1' END),
        at.name_of(at.base_name(relation) || ':pk')) END;
$$;

-- Statements that stop a plain writer at a locked key. Above READ COMMITTED its snapshot may be older than the lock,
-- while the unique index of the undo table shows every row: trying to insert the key there raises 40001. Of a row that
-- was there before PostgreSQL does so itself, unless the holder only locked it: the sequence, which knows no snapshots,
-- tells whether at.lock was ever used here. (The writer holds the row: a lock before it is through, one after it waits.)
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
    || CASE WHEN operation = 'delete' THEN '' ELSE format($f$    IF current_setting('transaction_isolation') IN ('repeatable read', 'serializable') THEN
%s    END IF;
$f$, at.probe(relation, format('SELECT %s, at__nobody FROM at_new at_n %s', at.key_list(relation, 'at_n.%1$I'),
        CASE WHEN operation = 'update' THEN format('WHERE NOT EXISTS (SELECT FROM at_old at_o WHERE %s)',
            at.key_match(relation, 'at_o', 'at_n')) ELSE '' END))) END
    || CASE WHEN operation = 'insert' THEN '' ELSE format($f$    IF current_setting('transaction_isolation') IN ('repeatable read', 'serializable')
       AND (SELECT is_called FROM at.lock_used) THEN
%s    END IF;
$f$, at.probe(relation, format('SELECT %s, at__nobody FROM at_old at_o', at.key_list(relation, 'at_o.%1$I')))) END;
$$;

-- Tries to insert keys into the undo table, and takes them out again.
CREATE OR REPLACE FUNCTION at.probe(relation regclass, keys text) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT format($f$      INSERT INTO %1$s (%2$s, xid)
        %3$s
        ON CONFLICT DO NOTHING;
      DELETE FROM %1$s WHERE xid = at__nobody;
$f$, at.undo_table(relation), at.key_list(relation, '%2$I'), keys);
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
                    '(at_v.at__u%1$s %2$s at_w.at__u%1$s OR at_v.at__u%1$s IS NOT DISTINCT FROM NULL AND at_w.at__u%1$s IS NOT DISTINCT FROM NULL)', k, e)
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
%s  ELSE
%s  END IF;
%s  RETURN NULL;
END
$f$, CASE WHEN at.capture_one(relation, operation) IS NULL
         THEN format(E'    %s;\n', at.capture_statement(relation, operation))
         ELSE format(E'    %s;\n    IF NOT FOUND THEN\n    %s;\n    END IF;\n',
                     at.capture_one(relation, operation), at.capture_statement(relation, operation)) END,
    at.plain_check(relation, operation), concat(
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
