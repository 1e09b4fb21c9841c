-- Reads: the locking read and the committed read, as one overload a managed table of at.lock and at.committed.
--
-- Data model: see model.sql. A row that is only locked has an undo row too, with equal images: whoever wants to write
-- it meets that as any other lock, a later write of the same transaction is merged into it, undo finds nothing to put
-- back. at.committed shows what undo would: each row as of the last decision about it.

-- Called once the locking read was ever used in this database: only then do plain writers above READ COMMITTED look
-- for locks that their snapshot does not show (at.plain_check).
CREATE SEQUENCE IF NOT EXISTS at.lock_used;

-- The body of at.lock_records: runs as the installer, locks the rows and writes their undo rows. A conflicting row may
-- be forgotten while this runs, so ON CONFLICT does the looking: then the row is free, and inserted after all.
CREATE OR REPLACE FUNCTION at.lock_records_body(relation regclass) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT format($f$
#variable_conflict use_variable
DECLARE
  at__me constant uuid := nullif(current_setting('at.xid', true), '')::uuid;
  at__branch constant uuid := nullif(current_setting('at.branch', true), '')::uuid;
BEGIN
  IF at__me IS NULL THEN
    RAISE EXCEPTION 'at.lock outside a branch: nobody would ever free the rows'
      USING ERRCODE = '25001', HINT = 'Call at.enter first, or use SELECT ... FOR UPDATE.';
  END IF;
  IF NOT (SELECT is_called FROM at.lock_used) THEN
    PERFORM nextval('at.lock_used');
  END IF;
  PERFORM FROM %1$s at_t JOIN unnest(at__rows) at_r ON %2$s ORDER BY %3$s FOR NO KEY UPDATE OF at_t;
  INSERT INTO %4$s AS at_l (%5$s, xid, branch_id, before, after)
    SELECT %3$s, at__me, at__branch, %6$s, %6$s FROM %1$s at_t
    WHERE EXISTS (SELECT FROM unnest(at__rows) at_r WHERE %2$s)
    ON CONFLICT ON CONSTRAINT %7$I DO UPDATE SET xid = at.refuse(%8$L, at_l.xid) WHERE at_l.xid <> excluded.xid;
END
$f$, relation, at.key_match(relation, 'at_t', 'at_r'), at.key_list(relation, 'at_t.%1$I'), at.undo_table(relation),
        at.key_list(relation, '%2$I'), at.image(relation, 'at_t'), at.name_of(at.base_name(relation) || ':pk'),
        relation::text);
$$;

-- The body of at.lock: runs as the caller, who needs the rights of SELECT FOR UPDATE, and sees what its policies allow.
CREATE OR REPLACE FUNCTION at.lock_body(relation regclass) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT format($f$
#variable_conflict use_column
BEGIN
  PERFORM FROM %1$s at_t WHERE false FOR NO KEY UPDATE;
  PERFORM at.lock_records(at__rows);
  RETURN QUERY SELECT at_t.* FROM (SELECT %2$s, row_number() OVER () AS at__place FROM unnest(at__rows) at__u) at_r
    JOIN %1$s at_t ON %3$s ORDER BY at_r.at__place;
END
$f$, relation, at.key_list(relation, '(at__u).%1$I'), at.key_match(relation, 'at_t', 'at_r'));
$$;

-- The columns of a before image as the table shows them: the key from the undo row's own columns, whose index serves
-- a search for it, and generated columns computed where the image has none.
CREATE OR REPLACE FUNCTION at.shown_columns(relation regclass) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT string_agg(CASE WHEN at.is_imaged(relation, a.attname, a.attgenerated) THEN format('at_b.%I', a.attname)
                           ELSE format('(%s)', pg_get_expr(d.adbin, d.adrelid)) END, ', ' ORDER BY a.attnum)
    FROM pg_attribute a LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
    WHERE a.attrelid = relation AND a.attnum > 0 AND NOT a.attisdropped;
$$;

-- The body of at.committed, which the planner takes apart: a condition on its rows reaches the indexes of both parts.
CREATE OR REPLACE FUNCTION at.committed_body(relation regclass) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT format($f$
  SELECT at_t.* FROM %1$s at_t
  WHERE NOT EXISTS (SELECT FROM %2$s at_l WHERE %3$s AND %4$s)
  UNION ALL
  SELECT %5$s FROM (SELECT %6$s FROM %2$s at_l WHERE at_l.before IS DISTINCT FROM NULL AND %4$s) at_b
$f$, relation, at.undo_table(relation), at.key_match(relation, 'at_l', 'at_t'),
        'NOT (own AND (at_l.xid::pg_catalog.text OPERATOR(pg_catalog.=) pg_catalog.current_setting(''at.xid'', true)) IS TRUE)',
        at.shown_columns(relation),
        (SELECT string_agg(CASE WHEN k.undo_name IS NULL THEN format('(at_l.before).%1$I AS %1$I', a.attname)
                                ELSE format('at_l.%I AS %I', k.undo_name, a.attname) END, ', ' ORDER BY a.attnum)
         FROM pg_attribute a LEFT JOIN at.key(relation) k ON k.column_name = a.attname
         WHERE a.attrelid = relation AND a.attnum > 0 AND NOT a.attisdropped
           AND at.is_imaged(relation, a.attname, a.attgenerated)));
$$;

-- The signatures of a managed table's read functions.
CREATE OR REPLACE FUNCTION at.read_signatures(relation regclass) RETURNS text[]
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT ARRAY[format('at.lock_records(%s[])', relation), format('at.lock(%s[])', relation),
                 format('at.committed(%s, boolean)', relation)];
$$;

-- Writes the read functions of a managed table.
CREATE OR REPLACE FUNCTION at.write_reads(relation regclass) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    signature text;
BEGIN
    EXECUTE format('CREATE OR REPLACE FUNCTION at.lock_records(at__rows %s[]) RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS %L',
                   relation, at.lock_records_body(relation));
    EXECUTE format('CREATE OR REPLACE FUNCTION at.lock(at__rows %1$s[]) RETURNS SETOF %1$s LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS %2$L',
                   relation, at.lock_body(relation));
    EXECUTE format('CREATE OR REPLACE FUNCTION at.committed(row_type %1$s, own boolean DEFAULT false) RETURNS SETOF %1$s LANGUAGE sql STABLE AS %2$L',
                   relation, at.committed_body(relation));
    FOREACH signature IN ARRAY at.read_signatures(relation) LOOP
        EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', signature);
    END LOOP;
END
$$;

CREATE OR REPLACE FUNCTION at.drop_reads(relation regclass) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    signature text;
BEGIN
    FOREACH signature IN ARRAY at.read_signatures(relation) LOOP
        EXECUTE format('DROP FUNCTION IF EXISTS %s', signature);
    END LOOP;
END
$$;

-- Refuses a read of what is not managed: PostgreSQL takes the overload of the table where there is one.
CREATE OR REPLACE FUNCTION at.refuse_read(row_type regtype, what text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    relation constant regclass := (SELECT nullif(t.typrelid, 0) FROM pg_type t WHERE t.oid = row_type);
BEGIN
    IF relation IS NULL THEN
        RAISE EXCEPTION '% takes rows of a managed table, not %', what, row_type USING ERRCODE = '42804';
    END IF;
    RAISE EXCEPTION '% cannot read table %', what, relation
        USING ERRCODE = 'AT005', DETAIL = 'The table is not managed.',
              HINT = CASE WHEN at.root(relation) <> relation THEN format('Read the partitioned table %s.', at.root(relation))
                          ELSE format('Manage it (SELECT at.manage(%L)).', relation) END;
END
$$;

CREATE OR REPLACE FUNCTION at.lock(at__rows anyarray) RETURNS SETOF anyelement
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM at.refuse_read((SELECT t.typelem FROM pg_type t WHERE t.oid = pg_typeof(at__rows)), 'at.lock');
END
$$;

CREATE OR REPLACE FUNCTION at.committed(row_type anyelement, own boolean DEFAULT false) RETURNS SETOF anyelement
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM at.refuse_read(pg_typeof(row_type), 'at.committed');
END
$$;
