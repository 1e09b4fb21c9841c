-- What a role and its database look like on an embedded server. Run by the superuser, in the database `postgres`.
--
-- Data model: one role for each service, of the service's name; it owns one database of its own name and may connect
-- to no other. Passwords come from the secrets folder; they are set again at each start, so a changed file takes hold.
--
-- Each statement is named; `%1$I` is the role, `%2$I` the database, and `%3$L` the password..

-- name: role-create
CREATE ROLE %1$I LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE;

-- name: role-password
ALTER ROLE %1$I PASSWORD %3$L;

-- name: database-create
CREATE DATABASE %2$I OWNER %1$I TEMPLATE template0 STRATEGY wal_log;

-- name: database-close
REVOKE ALL ON DATABASE %2$I FROM PUBLIC;
