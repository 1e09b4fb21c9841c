-- The pet database.
--
-- pets            a pet, narrow: what lists and bookings read. Never removed, only marked: old orders name it.
-- vaccinations    what was given, and how long it holds.
-- care_plans      the longer texts about one pet, apart from the row that lists read.
-- claims          one row for each order: which pets on which nights, and whether they were given back.
-- claimed_nights  a pet's presence: one order for each pet and night. The primary key is the rule.

CREATE TABLE pets (
    id                 uuid        NOT NULL PRIMARY KEY,          -- a UUIDv7: sorts by time
    owner_id           uuid        NOT NULL,
    name               text        NOT NULL,
    species            text        NOT NULL CHECK (species IN ('cat', 'dog', 'other')),
    breed              text,
    gender             smallint    NOT NULL DEFAULT 0 CHECK (gender IN (0, 1, 2)),   -- unknown, male, female
    birth_date         date,
    birth_is_estimate  boolean     NOT NULL DEFAULT false,        -- the owner told an age, not a date
    weight_g           integer     NOT NULL CHECK (weight_g > 0),
    description        text,
    created_at         timestamptz NOT NULL,
    updated_at         timestamptz NOT NULL,
    deleted_at         timestamptz
);
CREATE INDEX pets_owner ON pets (owner_id, id);

CREATE TABLE vaccinations (
    id         uuid NOT NULL PRIMARY KEY,
    pet_id     uuid NOT NULL,
    vaccine    text NOT NULL,
    given_on   date NOT NULL,
    expires_on date NOT NULL CHECK (expires_on >= given_on),
    note       text
);
CREATE INDEX vaccinations_pet ON vaccinations (pet_id);

CREATE TABLE care_plans (
    pet_id     uuid        NOT NULL PRIMARY KEY,
    feeding    text,
    medicines  jsonb       NOT NULL DEFAULT '[]',
    vet        jsonb,
    contact    jsonb,
    updated_at timestamptz NOT NULL
);

CREATE TABLE claims (
    order_id   uuid        NOT NULL PRIMARY KEY,
    owner_id   uuid        NOT NULL,
    pet_ids    uuid[]      NOT NULL,
    check_in   date        NOT NULL,
    check_out  date        NOT NULL CHECK (check_in < check_out),
    released   boolean     NOT NULL DEFAULT false,
    changed_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE TABLE claimed_nights (
    pet_id   uuid NOT NULL,
    night    date NOT NULL,
    order_id uuid NOT NULL,
    PRIMARY KEY (pet_id, night)
);
CREATE INDEX claimed_nights_order ON claimed_nights (order_id);
