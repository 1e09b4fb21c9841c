-- What administrators did: only ever appended to. `number` has no gaps and `hash` covers the entry and the hash before it.
CREATE TABLE audit_log (
    number  bigint      PRIMARY KEY,
    at      timestamptz NOT NULL,
    actor   uuid        NOT NULL,
    action  text        NOT NULL,
    subject text        NOT NULL,
    reason  text        NOT NULL,
    xid     uuid,
    hash    bytea       NOT NULL
);

-- A rolled-back decision is taken out by the coordinator's undo, which runs with triggers off; nobody else may.
CREATE FUNCTION audit_log_is_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the audit log is only ever appended to' USING ERRCODE = 'insufficient_privilege';
END
$$;
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON audit_log
    FOR EACH ROW EXECUTE FUNCTION audit_log_is_append_only();

-- The head of the chain: one row, written by every entry.
CREATE TABLE audit_head (
    one    boolean PRIMARY KEY DEFAULT true CHECK (one),
    number bigint  NOT NULL,
    hash   bytea   NOT NULL
);
INSERT INTO audit_head (number, hash) VALUES (0, decode(repeat('00', 32), 'hex'));
