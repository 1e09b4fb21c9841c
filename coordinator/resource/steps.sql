-- Steps: effects outside the database that belong to a global transaction, and messages that leave after its commit.
--
--   at.step   one row per step: who may carry it out (name, known to the services that registered its handlers) with
--             what (arguments), and the idempotency key that its handlers are given. It is written in a branch, and what
--             becomes of that branch's row in at.branch decides: FORGOTTEN, its commit handler is due; UNDONE or
--             QUARANTINED, its undo handler. So neither forget nor undo know of steps. While `doing`, the caller may be in
--             the middle of the effect: then undo waits until the caller cannot be any longer. The row goes when
--             the handler has succeeded. given_up_at: tried too often, a person decides.
--
-- The other tables: see model.sql.

CREATE TABLE IF NOT EXISTS at.step (
    key uuid PRIMARY KEY,
    xid uuid NOT NULL,
    branch_id uuid NOT NULL,
    name text NOT NULL,
    arguments jsonb NOT NULL,
    doing boolean NOT NULL,
    deadline timestamptz NOT NULL,
    attempts int NOT NULL DEFAULT 0,
    due_at timestamptz NOT NULL DEFAULT clock_timestamp(),  -- while a handler runs: when it is taken for dead
    error text,
    given_up_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000);

CREATE INDEX IF NOT EXISTS step_due ON at.step (due_at) WHERE given_up_at IS NULL;
CREATE INDEX IF NOT EXISTS step_xid ON at.step (xid);

-- Records a step in the current branch; returns its key. With `doing` that is the branch id: such a step has a branch of
-- its own, and a repeated call meets its own key.
CREATE OR REPLACE FUNCTION at.add_step(name text, arguments jsonb, doing boolean) RETURNS uuid
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    added uuid;
BEGIN
    INSERT INTO at.step (key, xid, branch_id, name, arguments, doing, deadline)
        SELECT CASE WHEN add_step.doing THEN b.branch_id ELSE gen_random_uuid() END, b.xid, b.branch_id,
               add_step.name, add_step.arguments, add_step.doing, b.deadline
        FROM at.branch b
        WHERE b.xid = nullif(current_setting('at.xid', true), '')::uuid
          AND b.branch_id = nullif(current_setting('at.branch', true), '')::uuid
        RETURNING key INTO added;
    IF added IS NULL THEN
        RAISE EXCEPTION 'at.add_step outside a branch: call at.enter first' USING ERRCODE = '25001';
    END IF;
    RETURN added;
END
$$;

-- Notes that the effect of a step is over, whether it succeeded or not: undo need not wait for it.
CREATE OR REPLACE FUNCTION at.end_step(key uuid) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    UPDATE at.step s SET doing = false WHERE s.key = end_step.key;
$$;

-- Takes at most `limit` decided steps of these names that are due, the longest due first, and keeps them from others for
-- `lease`. An effect that is not known to be over is undone only `grace` after the deadline.
CREATE OR REPLACE FUNCTION at.take_steps(names text[], "limit" int, lease interval, grace interval)
RETURNS TABLE (key uuid, xid uuid, name text, arguments jsonb, committed boolean, attempt int)
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    WITH due AS MATERIALIZED (
        SELECT s.key, b.state = 1 AS committed FROM at.step s
        JOIN at.branch b ON b.xid = s.xid AND b.branch_id = s.branch_id
        WHERE s.given_up_at IS NULL AND s.due_at <= clock_timestamp() AND s.name = ANY (take_steps.names) AND b.state > 0
          AND NOT (b.state = 3 AND at.in_doubt(b.xid))
          AND (b.state = 1 OR NOT s.doing OR s.deadline + take_steps.grace <= clock_timestamp())
        ORDER BY s.due_at LIMIT take_steps."limit" FOR UPDATE OF s SKIP LOCKED)
    UPDATE at.step s SET attempts = s.attempts + 1, due_at = clock_timestamp() + take_steps.lease
    FROM due WHERE s.key = due.key
    RETURNING s.key, s.xid, s.name, s.arguments, due.committed, s.attempts;
$$;

-- Removes steps: their handler has succeeded, or a person says that nothing is left to do.
CREATE OR REPLACE FUNCTION at.finish_steps(keys uuid[]) RETURNS int
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    finished int;
BEGIN
    DELETE FROM at.step s WHERE s.key = ANY (finish_steps.keys);
    GET DIAGNOSTICS finished = ROW_COUNT;
    RETURN finished;
END
$$;

-- Notes that try number `attempt` failed: the next is due after `pause`; without one the step is given up. A try whose
-- lease ran out changes nothing: somebody else has the step.
CREATE OR REPLACE FUNCTION at.fail_step(key uuid, attempt int, error text, pause interval) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    UPDATE at.step s SET error = fail_step.error, due_at = clock_timestamp() + coalesce(fail_step.pause, '0'),
                         given_up_at = CASE WHEN fail_step.pause IS NULL THEN clock_timestamp() END
    WHERE s.key = fail_step.key AND s.attempts = fail_step.attempt;
$$;

-- Tries steps again that were given up, or are waiting for their next try.
CREATE OR REPLACE FUNCTION at.retry_steps(keys uuid[]) RETURNS int
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    retried int;
BEGIN
    UPDATE at.step s SET given_up_at = NULL, attempts = 0, due_at = clock_timestamp() WHERE s.key = ANY (retry_steps.keys);
    GET DIAGNOSTICS retried = ROW_COUNT;
    RETURN retried;
END
$$;

-- All steps that are not over: UNDECIDED, COMMITTING, UNDOING or GIVEN_UP.
CREATE OR REPLACE FUNCTION at.steps()
RETURNS TABLE (key uuid, xid uuid, branch_id uuid, name text, arguments jsonb, state text, attempts int, error text,
               due_at timestamptz, created_at timestamptz)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT s.key, s.xid, s.branch_id, s.name, s.arguments,
           CASE WHEN s.given_up_at IS NOT NULL THEN 'GIVEN_UP' WHEN b.state = 0 OR b.state = 3 AND at.in_doubt(b.xid) THEN 'UNDECIDED'
                WHEN b.state = 1 THEN 'COMMITTING' ELSE 'UNDOING' END,
           s.attempts, s.error, s.due_at, s.created_at
    FROM at.step s JOIN at.branch b ON b.xid = s.xid AND b.branch_id = s.branch_id ORDER BY s.created_at, s.key;
$$;

-- Decided steps that nobody has taken for `age`, of other names than these: no process that runs knows their handlers.
CREATE OR REPLACE FUNCTION at.unserved_steps(names text[], age interval) RETURNS TABLE (name text, steps bigint)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT s.name, count(*) FROM at.step s JOIN at.branch b ON b.xid = s.xid AND b.branch_id = s.branch_id
    WHERE s.given_up_at IS NULL AND s.name <> ALL (unserved_steps.names) AND b.state > 0
      AND NOT (b.state = 3 AND at.in_doubt(b.xid))
      AND greatest(s.due_at, b.settled_at) < clock_timestamp() - unserved_steps.age
    GROUP BY s.name ORDER BY s.name;
$$;
