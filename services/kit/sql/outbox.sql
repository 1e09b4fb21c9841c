-- Messages that leave once the transaction that wrote them can no longer be undone.
-- A row is written beside the change that it tells of; the relay sends it when no undecided global transaction
-- holds it, and deletes it afterwards: at least once. A rolled-back transaction takes its rows along.
CREATE TABLE outbox (
    id         uuid        PRIMARY KEY,               -- also the message's id, by which consumers know repeats
    queue      text        NOT NULL,                  -- Dramatiq queue, or 'cache' for keys to drop
    actor      text        NOT NULL,
    args       jsonb       NOT NULL,
    delay_ms   integer     NOT NULL DEFAULT 0,
    trace_id   text,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
