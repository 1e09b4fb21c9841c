-- The guard: what lives in each shard so that a client with an old map cannot write where a bucket no longer lives.
--
--   sharding.self(shard)                   one row: the name of this shard
--   sharding.bucket(bucket, state, epoch)  one row per bucket: owned (writes pass), moved (was here), absent (never was)
--
-- SH001  this shard does not own the bucket of the row. Read the map again and go there; nothing was written.
-- SH002  an UPDATE would change the bucket of a row.
--
-- A writer holds two locks on its bucket until it commits. The advisory lock queues fairly, so whoever fences the bucket is
-- not starved by overlapping writers; the row lock makes a writer under REPEATABLE READ or SERIALIZABLE fail with 40001
-- when its snapshot is older than the fence. Either alone is wrong.
--
-- The trigger is an ORIGIN trigger: replication and repairs that run with session_replication_role = replica pass.

CREATE SCHEMA IF NOT EXISTS sharding;

CREATE TABLE IF NOT EXISTS sharding.self (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    shard    text    NOT NULL
);

CREATE TABLE IF NOT EXISTS sharding.bucket (
    bucket smallint PRIMARY KEY CHECK (bucket BETWEEN 0 AND 1023),
    state  text     NOT NULL CHECK (state IN ('owned', 'moved', 'absent')),
    epoch  bigint   NOT NULL
);

-- The twin of sharding.buckets.bucket_of in Python: SHA-256, its first 16 bits, the low ten of them.
CREATE OR REPLACE FUNCTION sharding.bucket_of(key bytea) RETURNS smallint
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN (((get_byte(sha256(key), 0) & 3) << 8) | get_byte(sha256(key), 1))::smallint;

CREATE OR REPLACE FUNCTION sharding.bucket_of(key text) RETURNS smallint
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN sharding.bucket_of(convert_to(key, 'UTF8'));

CREATE OR REPLACE FUNCTION sharding.guard() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    target   smallint := CASE WHEN TG_OP = 'DELETE' THEN OLD.bucket ELSE NEW.bucket END;
    standing text;
BEGIN
    IF TG_OP = 'UPDATE' AND NEW.bucket IS DISTINCT FROM OLD.bucket THEN
        RAISE EXCEPTION 'the bucket of a row never changes: % would go from bucket % to %',
            TG_TABLE_NAME, OLD.bucket, NEW.bucket USING ERRCODE = 'SH002';
    END IF;
    IF target IS NULL OR target NOT BETWEEN 0 AND 1023 THEN
        RAISE EXCEPTION 'a row of % needs a bucket from 0 to 1023, not %', TG_TABLE_NAME, coalesce(target::text, 'NULL')
            USING ERRCODE = 'check_violation';
    END IF;
    PERFORM pg_advisory_xact_lock_shared(7204513, target);
    SELECT state INTO standing FROM sharding.bucket WHERE bucket = target FOR SHARE;
    IF standing IS DISTINCT FROM 'owned' THEN
        RAISE EXCEPTION 'bucket % is not on shard % (%)',
            target, (SELECT shard FROM sharding.self), coalesce(standing, 'unknown')
            USING ERRCODE = 'SH001', DETAIL = target::text;
    END IF;
    IF TG_OP = 'DELETE' THEN
        RETURN OLD;
    END IF;
    RETURN NEW;
END
$$;

-- Fences buckets, or takes them in: waits for the transactions that write them, then sets their state until commit and
-- after. Buckets are locked in rising order, so two fences cannot block one another.
CREATE OR REPLACE FUNCTION sharding.set_state(buckets smallint[], new_state text, new_epoch bigint) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    target smallint;
BEGIN
    FOR target IN SELECT DISTINCT b FROM unnest(buckets) AS b ORDER BY b LOOP
        PERFORM pg_advisory_xact_lock(7204513, target);
        UPDATE sharding.bucket SET state = new_state, epoch = new_epoch WHERE bucket = target;
    END LOOP;
END
$$;

REVOKE ALL ON FUNCTION sharding.set_state(smallint[], text, bigint) FROM PUBLIC;
