-- Accounts on one shard. Every row has a bucket: of its user, or, for a login, of the login itself.
-- What is read with every request is in `users`; what is seldom read, and personal, is in `user_details` (vertical split);
-- what proves somebody's identity is in `user_credentials` and `user_sessions`.
CREATE TABLE users (
    bucket     smallint    NOT NULL,
    id         uuid        NOT NULL,
    username   text        NOT NULL,
    name       text        NOT NULL,
    role       smallint    NOT NULL CHECK (role BETWEEN 0 AND 2),
    status     smallint    NOT NULL CHECK (status BETWEEN 0 AND 2),
    applied_at timestamptz,                          -- asked to become a provider, and not answered yet
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (bucket, id)
);
CREATE INDEX users_pending ON users (created_at, id) WHERE status = 0;
CREATE INDEX users_applied ON users (created_at, id) WHERE applied_at IS NOT NULL;

CREATE TABLE user_details (
    bucket      smallint NOT NULL,
    user_id     uuid     NOT NULL,
    email       text,
    phone       text,
    address     text,
    bio         text,
    application text,
    PRIMARY KEY (bucket, user_id)
);

CREATE TABLE user_credentials (
    bucket        smallint    NOT NULL,
    user_id       uuid        NOT NULL,
    password_hash text        NOT NULL,
    changed_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (bucket, user_id)
);

-- A login is unique over all shards, because its bucket follows from it.
CREATE TABLE user_logins (
    bucket  smallint NOT NULL,
    kind    text     NOT NULL CHECK (kind IN ('username', 'email', 'phone')),
    value   text     NOT NULL,
    user_id uuid     NOT NULL,
    PRIMARY KEY (bucket, kind, value)
);

-- Refresh tokens: each is used once; a used one that comes again ends its family.
CREATE TABLE user_sessions (
    bucket     smallint    NOT NULL,
    user_id    uuid        NOT NULL,
    token_hash bytea       NOT NULL,
    family     uuid        NOT NULL,
    used_at    timestamptz,
    expires_at timestamptz NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (bucket, user_id, token_hash)
);
