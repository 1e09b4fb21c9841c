-- Text building blocks: what the catalog says about a managed table, as pieces of generated SQL.
--
-- Data model: see model.sql. All functions here only read the catalog. Names are quoted, types and relations schema-
-- qualified (the search path is pg_catalog alone), operators named with their schema. Names used in the generated
-- SQL are at_l for a row of the undo table, at_t for one of the table itself, at_o and at_n for the transition tables.

-- A name for an object in schema at: `wanted`, or its beginning with a hash when it is longer than 63 bytes.
CREATE OR REPLACE FUNCTION at.name_of(wanted text) RETURNS name
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    head text := wanted;
BEGIN
    IF octet_length(wanted) <= 63 THEN
        RETURN wanted;
    END IF;
    WHILE octet_length(head) > 50 LOOP
        head := left(head, -1);
    END LOOP;
    RETURN head || '#' || left(md5(wanted), 12);
END
$$;

-- The unquoted name of the undo table, schema.table, from which all names that belong to a table are made.
CREATE OR REPLACE FUNCTION at.base_name(relation regclass) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT at.name_of(n.nspname || '.' || c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.oid = base_name.relation;
$$;

-- The quoted, qualified name of the undo table.
CREATE OR REPLACE FUNCTION at.undo_table(relation regclass) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT format('at.%I', at.base_name(undo_table.relation));
$$;

CREATE OR REPLACE FUNCTION at.column_names(relation regclass) RETURNS name[]
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT array_agg(a.attname ORDER BY a.attnum) FROM pg_attribute a
    WHERE a.attrelid = column_names.relation AND a.attnum > 0 AND NOT a.attisdropped;
$$;

-- The relation and, for a partitioned table, every partition below it.
CREATE OR REPLACE FUNCTION at.tree(relation regclass) RETURNS SETOF regclass
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT tree.relation UNION SELECT t.relid FROM pg_partition_tree(tree.relation) t;
$$;

-- The equality operator of a btree operator class, as OPERATOR(schema.=).
CREATE OR REPLACE FUNCTION at.equality(opclass oid) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT format('OPERATOR(%I.%s)', n.nspname, o.oprname)
    FROM pg_opclass oc
    JOIN pg_amop ao ON ao.amopfamily = oc.opcfamily AND ao.amopstrategy = 3
                   AND ao.amoplefttype = oc.opcintype AND ao.amoprighttype = oc.opcintype
    JOIN pg_operator o ON o.oid = ao.amopopr
    JOIN pg_namespace n ON n.oid = o.oprnamespace
    WHERE oc.oid = equality.opclass;
$$;

-- The primary key: one row per column with its name in the table and in the undo table, and how to compare it.
CREATE OR REPLACE FUNCTION at.key(relation regclass)
RETURNS TABLE (ordinal int, column_name name, undo_name name, definition text, equals text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT k.ordinal::int, a.attname, u.undo_name,
           format('%I %s%s NOT NULL', u.undo_name, format_type(a.atttypid, a.atttypmod),
                  CASE WHEN co.oid IS NOT NULL THEN format(' COLLATE %I.%I', cn.nspname, co.collname) ELSE '' END),
           at.equality(i.indclass[k.ordinal - 1])
    FROM pg_index i
    CROSS JOIN LATERAL unnest(i.indkey[0:i.indnkeyatts - 1]) WITH ORDINALITY AS k (attnum, ordinal)
    JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
    LEFT JOIN pg_collation co ON co.oid = a.attcollation
    LEFT JOIN pg_namespace cn ON cn.oid = co.collnamespace
    CROSS JOIN LATERAL (
        SELECT CASE WHEN a.attname IN ('xid', 'branch_id', 'before', 'after', 'olds', 'news')
                    THEN 'key_' || a.attname ELSE a.attname END::name AS undo_name
    ) u
    WHERE i.indrelid = key.relation AND i.indisprimary
    ORDER BY k.ordinal;
$$;

-- `a.x = b.x AND ...` over the key; an alias of the undo table (at_l, excluded) uses the undo table's names.
CREATE OR REPLACE FUNCTION at.key_match(relation regclass, a text, b text) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT string_agg(format('%s.%I %s %s.%I',
        a, CASE WHEN a IN ('at_l', 'excluded') THEN k.undo_name ELSE k.column_name END, k.equals,
        b, CASE WHEN b IN ('at_l', 'excluded') THEN k.undo_name ELSE k.column_name END), ' AND ' ORDER BY k.ordinal)
    FROM at.key(relation) k;
$$;

-- The key columns in order, each formatted with `template` (%1$I name in the table, %2$I name in the undo table).
CREATE OR REPLACE FUNCTION at.key_list(relation regclass, template text, separator text DEFAULT ', ') RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT string_agg(format(template, k.column_name, k.undo_name), separator ORDER BY k.ordinal)
    FROM at.key(relation) k;
$$;

-- The stored (not generated) columns, each formatted with `template` (%1$I name).
CREATE OR REPLACE FUNCTION at.stored_list(relation regclass, template text, with_key boolean DEFAULT true) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT string_agg(format(template, a.attname), ', ' ORDER BY a.attnum) FROM pg_attribute a
    WHERE a.attrelid = relation AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
      AND (with_key OR NOT EXISTS (SELECT FROM at.key(relation) k WHERE k.column_name = a.attname));
$$;

-- Whether a column stands in images: those that undo writes, and stored generated ones that guards look at.
CREATE OR REPLACE FUNCTION at.is_imaged(relation regclass, column_name name, generated "char") RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE generated WHEN '' THEN true WHEN 's' THEN
        coalesce(column_name = ANY (at.unique_columns(relation)), false)
        OR EXISTS (SELECT FROM at.foreign_keys() f
                   WHERE f.child IN (SELECT at.tree(relation)) AND column_name = ANY (f.child_columns)
                      OR f.parent IN (SELECT at.tree(relation)) AND column_name = ANY (f.parent_columns))
        ELSE false END;
$$;

-- The row of `alias` as an image: the table's row type, every column by name, other generated columns NULL.
CREATE OR REPLACE FUNCTION at.image(relation regclass, alias text) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT format('ROW(%s)::%s', string_agg(
        CASE WHEN at.is_imaged(relation, a.attname, a.attgenerated) THEN format('%s.%I', alias, a.attname) ELSE 'NULL' END,
        ', ' ORDER BY a.attnum), relation)
    FROM pg_attribute a WHERE a.attrelid = relation AND a.attnum > 0 AND NOT a.attisdropped;
$$;

-- Whether two images are the same bit by bit, NULL (no row) being the same as NULL. IS NULL would be true for a row
-- of NULLs too, and *= gives NULL for NULL.
CREATE OR REPLACE FUNCTION at.same_image(a text, b text) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT format('coalesce(%1$s OPERATOR(pg_catalog.*=) %2$s, %1$s IS NOT DISTINCT FROM NULL AND %2$s IS NOT DISTINCT FROM NULL)', a, b);
$$;

-- Whether a foreign key's action may update rows of the table: then one statement can bring several versions of one
-- row into one transition table, because actions add to the tables of the statement that caused them.
CREATE OR REPLACE FUNCTION at.is_chained(relation regclass) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT EXISTS (SELECT FROM pg_constraint f WHERE f.contype = 'f'
        AND f.conrelid IN (SELECT at.tree(relation))
        AND (f.confupdtype IN ('c', 'n', 'd') OR f.confdeltype IN ('n', 'd')));
$$;

-- The unique and exclusion indexes besides the primary key: for a partitioned table those of the root, which stand for
-- their parts, and those that a partition has for itself.
CREATE OR REPLACE FUNCTION at.unique_indexes(relation regclass)
RETURNS TABLE (index_id oid, is_plain boolean, is_unique boolean, nulls_equal boolean)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT i.indexrelid, i.indexprs IS NULL AND i.indpred IS NULL AND i.indisunique AND NOT i.indisexclusion,
           i.indisunique AND NOT i.indisexclusion, i.indnullsnotdistinct
    FROM pg_index i
    WHERE i.indrelid IN (SELECT at.tree(unique_indexes.relation)) AND (i.indisunique OR i.indisexclusion)
      AND NOT i.indisprimary AND NOT EXISTS (SELECT FROM pg_inherits h WHERE h.inhrelid = i.indexrelid)
    ORDER BY i.indexrelid::regclass::text;
$$;

-- Foreign keys that touch the relation from either side, as lists of columns. Constraints on partitions that stem
-- from one on their root are left out.
CREATE OR REPLACE FUNCTION at.foreign_keys()
RETURNS TABLE (name name, child regclass, child_columns name[], parent regclass, parent_columns name[],
               equals text[], validated boolean)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT f.conname, f.conrelid, c.names, f.confrelid, p.names, e.operators, f.convalidated
    FROM pg_constraint f
    CROSS JOIN LATERAL (
        SELECT array_agg(a.attname ORDER BY k.i) AS names FROM unnest(f.conkey) WITH ORDINALITY AS k (n, i)
        JOIN pg_attribute a ON a.attrelid = f.conrelid AND a.attnum = k.n) c
    CROSS JOIN LATERAL (
        SELECT array_agg(a.attname ORDER BY k.i) AS names FROM unnest(f.confkey) WITH ORDINALITY AS k (n, i)
        JOIN pg_attribute a ON a.attrelid = f.confrelid AND a.attnum = k.n) p
    CROSS JOIN LATERAL (
        SELECT array_agg(format('OPERATOR(%I.%s)', n.nspname, o.oprname) ORDER BY k.i) AS operators
        FROM unnest(f.conpfeqop) WITH ORDINALITY AS k (op, i)
        JOIN pg_operator o ON o.oid = k.op JOIN pg_namespace n ON n.oid = o.oprnamespace) e
    WHERE f.contype = 'f' AND f.conparentid = 0
      AND coalesce((to_jsonb(f) ->> 'conenforced')::boolean, true);
$$;

-- `parent.r = child.f AND ...` of a foreign key; either side is an SQL expression with %I for the column.
CREATE OR REPLACE FUNCTION at.fk_match(parent text, parent_columns name[], child text, child_columns name[],
                                       equals text[]) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT string_agg(format(parent, p) || ' ' || e || ' ' || format(child, c), ' AND ' ORDER BY i)
    FROM unnest(parent_columns, child_columns, equals) WITH ORDINALITY AS u (p, c, e, i);
$$;
