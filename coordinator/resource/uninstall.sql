-- Takes everything away again. Run after every table was unmanaged (which refuses while undo rows exist).
--
-- Data model: see model.sql.

DROP EVENT TRIGGER IF EXISTS at_on_ddl;
DROP EVENT TRIGGER IF EXISTS at_on_drop;

DO $$
DECLARE
    guarded regclass;
BEGIN
    FOR guarded IN SELECT DISTINCT tgrelid::regclass FROM pg_trigger WHERE tgname IN ('at_guard', 'at_guard_truncate') LOOP
        PERFORM at.drop_triggers(guarded, ARRAY['at_guard', 'at_guard_truncate']);
    END LOOP;
END
$$;

DROP SCHEMA at CASCADE;
