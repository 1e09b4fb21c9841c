-- The payment database.
--
-- wallets         a person's money. No row: none yet.
-- escrows         money paid for one order that is not the provider's yet: one row for each order.
-- ledger_entries  the truth that the two are sums of. A transfer is two or more lines that add up to zero, written
--                 by one statement; lines are never changed or removed (an undo of the coordinator runs without these
--                 triggers). An order has at most one transfer of each kind.
--
-- Accounts: 'wallet' (account_id is the person), 'escrow' (account_id is the order), and two of the house, which have
-- no row of their own, so that nobody waits for them: 'external' (the world outside) and 'commission' (what we earned).

CREATE TABLE wallets (
    user_id       uuid        NOT NULL PRIMARY KEY,
    balance_cents bigint      NOT NULL DEFAULT 0,
    opened_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT wallets_never_negative CHECK (balance_cents >= 0)
);

CREATE TABLE escrows (
    order_id      uuid        NOT NULL PRIMARY KEY,
    owner_id      uuid        NOT NULL,
    charged_cents bigint      NOT NULL,
    balance_cents bigint      NOT NULL,
    opened_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT escrows_never_overdrawn CHECK (balance_cents BETWEEN 0 AND charged_cents)
);

CREATE TABLE ledger_entries (
    transfer_id  uuid        NOT NULL,                -- a UUIDv7: sorts by time
    line         smallint    NOT NULL,
    kind         text        NOT NULL CHECK (kind IN ('top_up', 'charge', 'refund', 'settlement')),
    order_id     uuid        CHECK ((order_id IS NULL) = (kind = 'top_up')),
    account_kind text        NOT NULL CHECK (account_kind IN ('wallet', 'escrow', 'external', 'commission')),
    account_id   uuid        CHECK ((account_id IS NOT NULL) = (account_kind IN ('wallet', 'escrow'))),
    amount_cents bigint      NOT NULL CHECK (amount_cents <> 0),
    created_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (transfer_id, line),
    CONSTRAINT ledger_entries_once UNIQUE (order_id, kind, line)
);
CREATE INDEX ledger_entries_account ON ledger_entries (account_id, transfer_id, line);

CREATE FUNCTION ledger_must_balance() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM made GROUP BY transfer_id HAVING sum(amount_cents) <> 0) THEN
        RAISE EXCEPTION 'the lines of a transfer must add up to zero' USING ERRCODE = 'check_violation';
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER ledger_must_balance AFTER INSERT ON ledger_entries
    REFERENCING NEW TABLE AS made FOR EACH STATEMENT EXECUTE FUNCTION ledger_must_balance();

CREATE FUNCTION ledger_is_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'ledger entries are never changed or removed: write the counterpart' USING ERRCODE = 'restrict_violation';
END
$$;
CREATE TRIGGER ledger_is_append_only BEFORE UPDATE OR DELETE ON ledger_entries
    FOR EACH STATEMENT EXECUTE FUNCTION ledger_is_append_only();
