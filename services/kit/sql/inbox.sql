-- Messages that were taken: a repeated one is found here and does nothing.
CREATE TABLE inbox (
    message_id uuid        NOT NULL,
    consumer   text        NOT NULL,
    taken_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (message_id, consumer)
);
