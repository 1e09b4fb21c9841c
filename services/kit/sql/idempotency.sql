-- Requests that carry an Idempotency-Key: one row per person and key.
-- The answer is written in the same branch as the request's effect, so the two stand or fall together.
CREATE TABLE idempotency_keys (
    bucket       smallint    NOT NULL DEFAULT 0,      -- of the person, on shards
    actor        uuid        NOT NULL,
    key          text        NOT NULL CHECK (length(key) BETWEEN 1 AND 200),
    request_hash bytea       NOT NULL,                -- SHA-256 of method, path and body
    done         boolean     NOT NULL DEFAULT false,
    status       smallint,
    body         jsonb,
    started_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (bucket, actor, key)
);
CREATE INDEX ON idempotency_keys (started_at);
