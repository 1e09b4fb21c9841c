-- Reviews of completed stays. A row without published_at is hidden: neither side sees the other's before its own is in.
CREATE TABLE reviews (
    id           uuid        PRIMARY KEY,
    order_id     uuid        NOT NULL,
    direction    text        NOT NULL CHECK (direction IN ('of_listing', 'of_owner')),
    author_id    uuid        NOT NULL,
    subject_id   uuid        NOT NULL,
    listing_id   uuid        NOT NULL,
    rating       smallint    NOT NULL CHECK (rating BETWEEN 1 AND 5),
    text         text        NOT NULL,
    reply        text,
    written_at   timestamptz NOT NULL,
    published_at timestamptz,
    replied_at   timestamptz,
    UNIQUE (order_id, direction)
);
CREATE INDEX reviews_of_listing ON reviews (listing_id, published_at, id);
CREATE INDEX reviews_of_subject ON reviews (subject_id, published_at, id);
CREATE INDEX reviews_hidden ON reviews (written_at) WHERE published_at IS NULL;

-- Who thinks that a review breaks the rules, and why.
CREATE TABLE reports (
    review_id   uuid        NOT NULL,
    reporter_id uuid        NOT NULL,
    reason      text        NOT NULL,
    reported_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (review_id, reporter_id)
);
