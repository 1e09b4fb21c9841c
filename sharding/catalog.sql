-- The catalog: the one truth about which shard holds which bucket. One database for a fleet, made highly available.
--
--   sharding.shard(id)                        the shards by name; addresses are settings, not data
--   sharding.placement(bucket, shard, epoch)  one row per bucket, always all of 0..1023;
--                                             epoch = the map's version at which the bucket came to this shard
--   sharding.map_version(version)             one row; rises with every statement that changes placements
--
-- Channel `shard_map`: the new version as text, sent with the commit of a change.

CREATE SCHEMA IF NOT EXISTS sharding;

CREATE TABLE IF NOT EXISTS sharding.shard (
    id         text PRIMARY KEY CHECK (id <> ''),
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE IF NOT EXISTS sharding.placement (
    bucket smallint PRIMARY KEY CHECK (bucket BETWEEN 0 AND 1023),
    shard  text     NOT NULL REFERENCES sharding.shard (id),
    epoch  bigint   NOT NULL
);

CREATE TABLE IF NOT EXISTS sharding.map_version (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    version  bigint  NOT NULL
);

-- Whoever changes placements, by function or by hand, raises the version: no client keeps a map that looks current.
CREATE OR REPLACE FUNCTION sharding.raise_version() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    raised bigint;
BEGIN
    UPDATE sharding.map_version SET version = version + 1 RETURNING version INTO raised;
    PERFORM pg_notify('shard_map', raised::text);
    RETURN NULL;
END
$$;

CREATE OR REPLACE TRIGGER raise_version
    AFTER INSERT OR UPDATE OR DELETE ON sharding.placement
    FOR EACH STATEMENT EXECUTE FUNCTION sharding.raise_version();

-- Places buckets[i] on shards[i] if the map is still at `expected`, and says whether it did; it did nothing when somebody
-- else was first.
CREATE OR REPLACE FUNCTION sharding.place(buckets smallint[], shards text[], expected bigint) RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    found_version bigint;
BEGIN
    SELECT version INTO found_version FROM sharding.map_version FOR UPDATE;
    IF found_version IS DISTINCT FROM expected THEN
        RETURN false;
    END IF;
    INSERT INTO sharding.shard (id) SELECT DISTINCT s FROM unnest(shards) AS s ON CONFLICT DO NOTHING;
    UPDATE sharding.placement AS p
    SET shard = change.shard,
        epoch = CASE WHEN p.shard = change.shard THEN p.epoch ELSE expected + 1 END
    FROM unnest(buckets, shards) AS change (bucket, shard)
    WHERE p.bucket = change.bucket;
    RETURN true;
END
$$;

REVOKE ALL ON FUNCTION sharding.place(smallint[], text[], bigint) FROM PUBLIC;
