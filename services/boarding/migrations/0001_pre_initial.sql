-- Listings. What a search reads is in `listings`; long text and rules are in `listing_details` (vertical split).
CREATE TABLE listings (
    id           uuid             PRIMARY KEY,
    provider_id  uuid             NOT NULL,
    title        text             NOT NULL,
    city         text             NOT NULL,
    latitude     double precision NOT NULL CHECK (latitude BETWEEN -90 AND 90),
    longitude    double precision NOT NULL CHECK (longitude BETWEEN -180 AND 180),
    price_cents  bigint           NOT NULL CHECK (price_cents > 0),
    pools        text[]           NOT NULL,              -- kinds of pets that are taken: dog-M, cat-S, ...
    instant_book boolean          NOT NULL,
    policy       text             NOT NULL CHECK (policy IN ('same_day', 'one_day', 'three_day', 'seven_day')),
    time_zone    text             NOT NULL,
    audit_status smallint         NOT NULL CHECK (audit_status BETWEEN -1 AND 3),
    rating_count integer          NOT NULL DEFAULT 0,
    rating_x100  integer          NOT NULL DEFAULT 0,
    created_at   timestamptz      NOT NULL DEFAULT clock_timestamp(),
    updated_at   timestamptz      NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX listings_of_provider ON listings (provider_id, id);
CREATE INDEX listings_found ON listings (city, price_cents) WHERE audit_status = 1;
CREATE INDEX listings_by_state ON listings (audit_status, id);

CREATE TABLE listing_details (
    listing_id  uuid  PRIMARY KEY,
    description text  NOT NULL,
    address     text  NOT NULL,
    house_rules text  NOT NULL,
    schedule    jsonb NOT NULL,
    prices      jsonb NOT NULL
);

-- Nights on which the provider takes nobody.
CREATE TABLE blocked_dates (
    listing_id uuid NOT NULL,
    night      date NOT NULL,
    PRIMARY KEY (listing_id, night)
);
