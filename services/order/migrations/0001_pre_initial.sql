-- Orders on one shard.
--
--   orders            one row an order, in its owner's bucket, partitioned by the month of its making. An order's id
--                     holds bucket and time, so a look-up by id names the whole key and reads one partition.
--   order_details     what was agreed, as it was then: wide, read rarely (vertical split)
--   order_events      what happened to an order, by whom, in which global transaction; only ever appended
--   care_logs         the days of a stay; only ever appended, each entry hashed over the one before it
--   provider_orders   the provider's index, in the provider's bucket: possibly on another shard than the order
--
-- The bucket is first in every key, so that a bucket's rows can be moved together.

CREATE TABLE orders (
    bucket         smallint    NOT NULL,
    id             uuid        NOT NULL,
    created_at     timestamptz NOT NULL,                 -- the time in the id
    owner_id       uuid        NOT NULL,
    provider_id    uuid        NOT NULL,
    listing_id     uuid        NOT NULL,
    title          text        NOT NULL,
    check_in       date        NOT NULL,
    check_out      date        NOT NULL,                 -- the stay is [check_in, check_out)
    status         smallint    NOT NULL CHECK (status BETWEEN 0 AND 10),
    total_cents    bigint      NOT NULL CHECK (total_cents >= 0),
    refund_cents   bigint      NOT NULL DEFAULT 0 CHECK (refund_cents BETWEEN 0 AND total_cents),
    currency       text        NOT NULL,
    policy         text        NOT NULL,
    instant_book   boolean     NOT NULL,
    time_zone      text        NOT NULL,                 -- of the listing, an IANA name
    pay_by         timestamptz NOT NULL,
    version        integer     NOT NULL,                 -- rises with every change; the number of the last event
    paid_at        timestamptz,
    confirmed_at   timestamptz,
    checked_in_at  timestamptz,
    checked_out_at timestamptz,
    closed_at      timestamptz,
    PRIMARY KEY (bucket, id, created_at),
    CHECK (check_in < check_out)
) PARTITION BY RANGE (created_at);
CREATE INDEX orders_of_owner ON orders (bucket, owner_id, created_at DESC, id DESC);
CREATE INDEX orders_unpaid ON orders (pay_by) WHERE status = 0;

CREATE TABLE order_details (
    bucket   smallint NOT NULL,
    order_id uuid     NOT NULL,
    pets     jsonb    NOT NULL,                          -- as they were at booking
    lines    jsonb    NOT NULL,                          -- the quote's
    pools    jsonb    NOT NULL,                          -- units by pool
    PRIMARY KEY (bucket, order_id)
);

CREATE TABLE order_events (
    bucket      smallint    NOT NULL,
    order_id    uuid        NOT NULL,
    seq         integer     NOT NULL,                    -- the order's version
    at          timestamptz NOT NULL,
    event       text        NOT NULL,
    actor_id    uuid,                                    -- null: the system
    actor_role  text        NOT NULL,
    from_status smallint,                                -- null: the order was made
    to_status   smallint    NOT NULL,
    xid         uuid,                                    -- the global transaction; null: a local one
    data        jsonb       NOT NULL,
    PRIMARY KEY (bucket, order_id, seq)
);

CREATE TABLE care_logs (
    bucket        smallint    NOT NULL,
    order_id      uuid        NOT NULL,
    seq           integer     NOT NULL,                  -- 1, 2, 3, ... without gaps
    at            timestamptz NOT NULL,
    author_id     uuid        NOT NULL,
    entry         jsonb       NOT NULL,                  -- what is hashed
    previous_hash bytea       NOT NULL,
    hash          bytea       NOT NULL,
    PRIMARY KEY (bucket, order_id, seq)
);

CREATE TABLE provider_orders (
    bucket      smallint    NOT NULL,                    -- of the provider
    order_id    uuid        NOT NULL,
    provider_id uuid        NOT NULL,
    created_at  timestamptz NOT NULL,
    owner_id    uuid        NOT NULL,
    listing_id  uuid        NOT NULL,
    title       text        NOT NULL,
    check_in    date        NOT NULL,
    check_out   date        NOT NULL,
    status      smallint    NOT NULL,                    -- a copy, written in the same global transaction
    total_cents bigint      NOT NULL,
    currency    text        NOT NULL,
    PRIMARY KEY (bucket, order_id)
);
CREATE INDEX provider_orders_of_provider ON provider_orders (bucket, provider_id, created_at DESC, order_id DESC);

-- The coordinator's undo runs with user triggers off and may take back what a rolled-back transaction appended.
CREATE FUNCTION refuse_rewriting() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% of % is refused: rows are only ever appended', TG_OP, TG_TABLE_NAME
        USING ERRCODE = 'insufficient_privilege', HINT = 'Append a new entry that corrects the old one.';
END
$$;
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON order_events FOR EACH ROW EXECUTE FUNCTION refuse_rewriting();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON care_logs FOR EACH ROW EXECUTE FUNCTION refuse_rewriting();
