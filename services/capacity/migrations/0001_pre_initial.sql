-- The capacity database.
--
-- pools    what a listing has: so many units of each kind of pet and size. No row: such pets are not taken.
-- nights   one row for each listing, night and pool that was ever asked for: a copy of the pool's total, and what of
--          it is held (waits for payment) and booked (is paid). Made on demand, never deleted. The CHECK is the last
--          word on overselling; `fence` is the highest fencing number that wrote the night.
-- holds    one row for each order: what it has taken and how far it is. Its state says what was done, so a step
--          that comes twice changes nothing.
-- fences   numbers that only rise, handed out with the booking lock.
--
-- nights is always the sum of holds: held of those in state 0, booked of those in state 1.

CREATE TABLE pools (
    listing_id uuid    NOT NULL,
    pool       text    NOT NULL CHECK (pool ~ '^(dog|cat|other)-(S|M|L|XL)$'),
    total      integer NOT NULL CHECK (total >= 0),
    PRIMARY KEY (listing_id, pool)
);

CREATE TABLE nights (
    listing_id uuid    NOT NULL,
    night      date    NOT NULL,
    pool       text    NOT NULL,
    total      integer NOT NULL,
    held       integer NOT NULL DEFAULT 0,
    booked     integer NOT NULL DEFAULT 0,
    fence      bigint  NOT NULL DEFAULT 0,
    PRIMARY KEY (listing_id, night, pool),
    CONSTRAINT nights_never_oversold CHECK (held >= 0 AND booked >= 0 AND held + booked <= total)
);

CREATE TABLE holds (
    order_id   uuid        NOT NULL PRIMARY KEY,
    listing_id uuid        NOT NULL,
    pools      jsonb       NOT NULL,                        -- {pool: units}
    check_in   date        NOT NULL,
    check_out  date        NOT NULL CHECK (check_in < check_out),
    state      smallint    NOT NULL CHECK (state IN (0, 1, 2)),   -- held, booked, released
    fence      bigint,
    changed_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX holds_listing ON holds (listing_id, check_in);

CREATE SEQUENCE fences AS bigint;
