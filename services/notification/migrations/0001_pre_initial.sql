-- What people were told. `id` is the message's: one that is delivered twice is stored, and shown, once.
-- `number` rises with every row, so a reader can tell what is new and whether anything is missing.
CREATE TABLE notifications (
    number     bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id         uuid        NOT NULL,
    recipient  uuid        NOT NULL,
    kind       text        NOT NULL,
    title      text        NOT NULL,
    text       text        NOT NULL,
    order_id   uuid,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    read_at    timestamptz,
    UNIQUE (id, recipient)
);
CREATE INDEX notifications_of ON notifications (recipient, number);

-- What somebody does not want by e-mail: {"care_log": false}.
CREATE TABLE preferences (
    user_id uuid  PRIMARY KEY,
    email   jsonb NOT NULL
);
