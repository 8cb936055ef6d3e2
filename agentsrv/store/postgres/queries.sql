-- The statements of the PostgreSQL store, except the schema. `sql.py` loads them.
--
--   -- name: NAME   begins a statement or a fragment.
--   :name           is a parameter. The loader numbers them: asyncpg knows $1, $2, ... only.
--   {name}          is a constant of Python or a fragment of this file, inserted at loading.
--
-- Rows are passed as arrays, one per column, and joined by `unnest`: one prepared statement serves
-- one row and many. `position` is the index of a request in its flush.
--
-- Damaged rows. PostgreSQL reads a row before it evaluates most conditions, and reading a row of a
-- damaged page fails the whole statement. Conditions on indexed columns, however, are evaluated in
-- the index. If tasks are known to be damaged, `sql.queries` therefore replaces two things:
--
--   {tasks}   is the table `task`; otherwise a UNION ALL of one index scan for each range of ids
--             between damaged tasks. Each index by which tasks are searched contains `id`.
--   {lost} and the other conditions on rows that a statement locks or changes: otherwise the
--             fragment with the suffix `_by_id`, which selects rows by the index of ids only. Its
--             `coalesce` keeps every other index from matching: by one of these, PostgreSQL could
--             read a row before it compares the id.
--
-- Scans of whole tables are disabled (`connections.READER_SETTINGS`).

-- Fragments -------------------------------------------------------------------------------------

-- name: head
task_id, owner, status, seq, epoch, (SELECT name FROM node WHERE id = task.node) AS node

-- name: lease
task_id, epoch, seq, spec, owner, lease_end, working

-- name: queue
SELECT owner, count(*) FROM {tasks} WHERE ready > 0 GROUP BY owner

-- name: lost
ready = 0

-- name: lost_by_id
coalesce(ready, -1) = 0 AND id = ANY (ARRAY(SELECT id FROM {tasks} WHERE ready = 0))

-- name: queued
ready > 0

-- name: queued_by_id
coalesce(ready, 0) > 0 AND task.id = ANY (ARRAY(SELECT id FROM line))

-- name: due
task.id = due.id

-- name: due_by_id
task.id = due.id AND task.id = ANY (ARRAY(SELECT id FROM due))

-- name: of_node
task.node = node.id

-- name: of_node_by_id
coalesce(task.node, 0) = node.id AND task.id = ANY (ARRAY(
        SELECT task.id FROM node JOIN {tasks} ON task.node = node.id
        WHERE expires_at < clock_timestamp()))

-- name: orphaned
task.id = orphan.id

-- name: orphaned_by_id
task.id = orphan.id AND task.id = ANY (ARRAY(SELECT id FROM orphan))

-- name: ended
ended_at < :before

-- name: ended_by_id
coalesce(ended_at, 'infinity') < :before AND id = ANY (ARRAY(
        SELECT id FROM {tasks} WHERE ended_at < :before ORDER BY ended_at LIMIT :limit))

-- name: old
task.id = old.id

-- name: old_by_id
task.id = old.id AND task.id = ANY (ARRAY(SELECT id FROM old))

-- name: recently
clock_timestamp() - make_interval(secs => {news_window})

-- The flush -------------------------------------------------------------------------------------

-- name: insert_writer
INSERT INTO writer DEFAULT VALUES RETURNING id

-- Waits for a transaction of a lost connection that the server is still executing.
-- name: last_flush
SELECT flush FROM writer WHERE id = :writer FOR UPDATE

-- name: flush_result
SELECT refused, claimed FROM writer WHERE id = :writer

-- What a flush needs before it can create and queue tasks: a range of places in the queue, the
-- number of waiting tasks of each owner, and the tasks whose idempotency keys are used. One
-- statement, because a round trip costs more than the lookups.
-- name: look_up_queue_and_keys
SELECT nextval('ready') AS first_place, waiting.*, used.*
FROM (
    SELECT array_agg(owner) AS owners, array_agg(count) AS counts FROM ({queue}) AS line
) AS waiting, (
    SELECT array_agg(position) AS position, array_agg(id) AS id, array_agg(spec) AS spec,
        array_agg(is_fresh) AS is_fresh, array_agg(task_id) AS task_id, array_agg(owner) AS owner,
        array_agg(status) AS status, array_agg(seq) AS seq, array_agg(epoch) AS epoch,
        array_agg(node) AS node
    FROM (
        SELECT position, id, spec, {head},
            task.created_at > given.created_at - {idempotency_ttl} AS is_fresh
        FROM unnest(:position::integer[], :owner::text[], :key::bytea[], :created_at::float8[])
            AS given(position, key_owner, key, created_at)
        CROSS JOIN LATERAL (
            SELECT * FROM task WHERE owner = key_owner AND idempotency_key = key OFFSET 0
        ) AS task
    ) AS found
) AS used

-- Takes keys that have expired from their tasks, so that the successors can have them.
-- name: expire_keys
UPDATE task SET idempotency_key = NULL
FROM unnest(:id::bigint[], :successor::text[]) AS given(id, successor)
WHERE task.id = given.id AND NOT EXISTS (SELECT FROM task WHERE task_id = successor)

-- Returns the positions of the tasks that were created. The others conflict with an existing task
-- id, or with an idempotency key that another node used a moment ago.
-- name: create_tasks
WITH given AS (
    SELECT * FROM unnest(:position::integer[], :task_id::text[], :owner::text[], :status::text[],
        :seq::bigint[], :ready::bigint[], :user_input::bytea[], :created_at::float8[],
        :key::bytea[], :spec::bytea[], :body::bytea[])
    AS given(position, task_id, owner, status, seq, ready, user_input, created_at, key, spec, body)
), made AS (
    INSERT INTO task
        (task_id, owner, status, seq, ready, user_input, created_at, idempotency_key, spec)
    SELECT task_id, owner, status, seq, ready, user_input, created_at, key, spec
    FROM given ORDER BY position
    ON CONFLICT DO NOTHING
    RETURNING id, task_id
), logged AS (
    INSERT INTO event SELECT id, seq, body FROM made JOIN given USING (task_id)
    WHERE body IS NOT NULL
)
SELECT position FROM made JOIN given USING (task_id)

-- name: existing_ids
SELECT task_id FROM task WHERE task_id = ANY (:task_ids)

-- Leases up to :limit tasks to the node, if its own lease is valid: lost tasks first, then one
-- task of each owner in turn. The owner with the longest wait is next; its wait began when it was
-- served last, or with its first task. Owners are read one after the other from the index
-- `task_line`, so that a long line costs no more than a short one. `line` has up to twice as many
-- tasks as are wanted, because other nodes may claim some of them at the same time.
--
-- An owner has at most :max_running tasks that are leased or lost.
-- name: claim_tasks
WITH RECURSIVE alive AS (
    SELECT FROM node WHERE id = :node AND expires_at > clock_timestamp()
), waiting(owner) AS (
    (SELECT owner FROM {tasks} WHERE ready > 0 ORDER BY owner LIMIT 1)
    UNION ALL
    SELECT (SELECT task.owner FROM {tasks}
        WHERE ready > 0 AND task.owner > waiting.owner ORDER BY task.owner LIMIT 1)
    FROM waiting WHERE owner IS NOT NULL
), line AS (
    SELECT line.id, place, greatest(served, first) AS since FROM waiting
    LEFT JOIN turn USING (owner),
    LATERAL (
        SELECT id, row_number() OVER (ORDER BY ready, id) AS place, min(ready) OVER () AS first
        FROM (
            SELECT id, ready FROM {tasks} WHERE task.owner = waiting.owner AND ready > 0
            ORDER BY ready, id
            LIMIT least(2 * :limit, greatest(0, :max_running - (
                SELECT count(*) FROM {tasks}
                WHERE task.owner = waiting.owner AND closed_at IS NULL
                    AND (node IS NOT NULL OR ready = 0))))
        ) AS next
    ) AS line
    ORDER BY place, since LIMIT 2 * :limit
), lost AS (
    SELECT id FROM task WHERE {lost} ORDER BY id LIMIT :limit FOR UPDATE SKIP LOCKED
), due AS (
    SELECT id, 0 AS place, 0 AS since FROM lost
    UNION ALL
    SELECT id, place, since FROM (
        SELECT task.id, place, since FROM line JOIN task USING (id) WHERE {queued}
        ORDER BY place, since LIMIT :limit - (SELECT count(*) FROM lost)
        FOR UPDATE OF task SKIP LOCKED
    ) AS free
), claimed AS (
    UPDATE task SET epoch = epoch + 1, node = :node, ready = NULL FROM due, alive
    WHERE {due}
    RETURNING place, since, task.id, {lease}
), served AS (
    INSERT INTO turn
    SELECT owner, nextval('ready') FROM (
        SELECT DISTINCT ON (owner) owner, place, since FROM claimed
        WHERE place > 0 ORDER BY owner, place DESC
    ) AS turns
    WHERE (SELECT count(owner) FROM waiting) > 1 ORDER BY place, since
    ON CONFLICT (owner) DO UPDATE SET served = excluded.served
)
SELECT place, since, id, {lease} FROM claimed

-- Writes all appends, replies and released leases of a flush, and records the flush in the
-- writer's row. Returns no row, and writes nothing, unless :previous_flush is the last flush of
-- the writer. Otherwise it returns the positions of the refused requests, the nodes whose messages
-- were answered, and, if :counts_queue, the number of waiting tasks of each owner.
--
--   this_flush  locks the writer's row and checks the number of the last flush
--   open_message  locks the messages that the flush answers, if they are still open
--   moved       locks and advances the heads whose epoch and number match, unless a message that
--               the append answers is no longer open
--   logged      inserts the events of the heads that moved
--   answered    stores the replies: with an append if it moved, without one unless another node
--               holds the task's lease
--   freed       releases leases
--
-- `ready`: an append that queues its task sets a place; one that ends the task sets NULL.
-- `lease_end` = 2 (OPEN) records that the lease has written; % 2 on release makes it ORDERLY.
-- name: write_flush
WITH this_flush AS MATERIALIZED (
    SELECT id FROM writer WHERE id = :writer AND flush = :previous_flush FOR UPDATE
), append AS MATERIALIZED (
    SELECT * FROM unnest(:append_position::integer[], :append_task_id::text[],
        :append_epoch::integer[], :append_expected::bigint[], :append_seq::bigint[],
        :append_status::text[], :append_ready::bigint[], :append_ended_at::float8[],
        :append_state::bytea[], :append_working::text[], :append_body::bytea[])
    AS append(position, task_id, epoch, expected, seq, status, ready, ended_at, state, working,
        body)
), reply AS MATERIALIZED (
    SELECT * FROM unnest(:reply_position::integer[], :reply_number::bigint[],
        :reply_body::bytea[])
    AS reply(position, number, body)
), open_message AS MATERIALIZED (
    SELECT number FROM inbox
    WHERE number = ANY (:reply_number) AND reply IS NULL AND NOT withdrawn
    ORDER BY number FOR UPDATE
), moved AS (
    UPDATE task SET
        seq = append.seq,
        status = append.status,
        at = clock_timestamp(),
        node = CASE WHEN append.ended_at IS NULL THEN node END,
        lease_end = CASE WHEN node IS NULL THEN lease_end ELSE 2 END,
        working = CASE WHEN node IS NULL THEN task.working ELSE append.working END,
        ready = CASE WHEN append.ended_at IS NULL THEN coalesce(append.ready, task.ready) END,
        ended_at = append.ended_at,
        closed_at = CASE WHEN append.ended_at IS NOT NULL THEN clock_timestamp() END,
        state = append.state
    FROM this_flush, append
    WHERE task.task_id = append.task_id AND task.epoch = append.epoch AND task.seq = expected
        AND NOT EXISTS (
            SELECT FROM reply WHERE reply.position = append.position
            AND number NOT IN (SELECT number FROM open_message))
    RETURNING task.id, task.seq, task.owner, task.ready, position, body
), waiting AS (
    SELECT owner, count(*) FROM (
        SELECT owner FROM {tasks} WHERE task.ready > 0 AND id NOT IN (SELECT id FROM moved)
        UNION ALL SELECT owner FROM moved WHERE moved.ready > 0
    ) AS line
    WHERE :counts_queue GROUP BY owner
), logged AS (
    INSERT INTO event SELECT id, seq, body FROM moved WHERE body IS NOT NULL
), answered AS (
    UPDATE inbox SET reply = reply.body
    FROM this_flush, reply JOIN open_message USING (number)
    WHERE inbox.number = reply.number
        AND CASE WHEN position IS NULL THEN NOT EXISTS (
                SELECT FROM {tasks} WHERE task.id = inbox.task AND node IS DISTINCT FROM :node
                AND node IS NOT NULL)
            ELSE position IN (SELECT position FROM moved) END
    RETURNING poster
), freed AS (
    UPDATE task SET node = NULL, ready = 0, lease_end = lease_end % 2
    FROM this_flush,
        unnest(:release_task_id::text[], :release_epoch::integer[]) AS release(task_id, epoch)
    WHERE task.task_id = release.task_id AND task.epoch = release.epoch
        AND coalesce(node, 0) > 0 AND task.task_id = ANY (:release_task_id)
)
UPDATE writer SET
    flush = :this_flush,
    refused = :refused || ARRAY(SELECT position FROM append EXCEPT SELECT position FROM moved),
    claimed = :claimed
FROM this_flush WHERE writer.id = this_flush.id
RETURNING refused, ARRAY(SELECT DISTINCT poster FROM answered) AS posters,
    (SELECT array_agg(owner) FROM waiting) AS owners,
    (SELECT array_agg(count) FROM waiting) AS counts

-- name: heads
SELECT {head} FROM task WHERE task_id = ANY (:task_ids)

-- name: claimed_leases
SELECT {lease} FROM task WHERE id = ANY (:ids) AND node = :node

-- Reading ---------------------------------------------------------------------------------------

-- name: read_head
SELECT {head} FROM task WHERE task_id = :task_id

-- name: find_ids
SELECT task_id FROM {tasks}
WHERE task_id >= :prefix AND task_id < :end AND owner = :owner LIMIT 2

-- name: find_key
SELECT task_id FROM task WHERE owner = :owner AND idempotency_key = :key

-- Rows up to the one with the last wanted event, which may contain later events, too.
-- name: read_events
SELECT position, event.seq, event.body
FROM unnest(:task_id::text[], :after::bigint[], :limit::bigint[])
    WITH ORDINALITY AS span(task_id, after, wanted, position)
JOIN task USING (task_id)
CROSS JOIN LATERAL (
    SELECT seq, body FROM event WHERE event.task = task.id AND seq > after AND seq <= (
        SELECT coalesce(min(seq), after + wanted) FROM event
        WHERE event.task = task.id AND seq >= after + wanted)
) AS event
ORDER BY position, seq

-- name: read_spec
SELECT spec FROM task WHERE task_id = :task_id

-- name: read_state
SELECT state FROM task WHERE task_id = :task_id

-- name: count_tasks
SELECT count(*) FROM {tasks} WHERE owner = :owner

-- name: count_tasks_by_status
SELECT count(*) FROM {tasks} WHERE owner = :owner AND status = :status

-- name: list_tasks
SELECT id, task_id, status, user_input, created_at FROM {tasks}
WHERE owner = :owner AND id < :before ORDER BY id DESC LIMIT :limit

-- name: list_tasks_by_status
SELECT id, task_id, status, user_input, created_at FROM {tasks}
WHERE owner = :owner AND status = :status AND id < :before ORDER BY id DESC LIMIT :limit

-- Several nodes ---------------------------------------------------------------------------------

-- name: read_news
SELECT task_id, owner, seq FROM task WHERE task_id = ANY (:task_ids)
UNION SELECT task_id, owner, seq FROM {tasks}
    WHERE owner = ANY (:owners) AND closed_at IS NULL AND at > {recently}
UNION SELECT task_id, owner, seq FROM {tasks}
    WHERE owner = ANY (:owners) AND closed_at > {recently}

-- name: next_message
SELECT nextval('message')

-- name: post_message
INSERT INTO inbox (number, task, poster, body)
SELECT :number, id, :poster, :body FROM task WHERE task_id = :task_id
ON CONFLICT DO NOTHING

-- name: lease_holder
SELECT node FROM task WHERE task_id = :task_id

-- name: withdraw_message
UPDATE inbox SET withdrawn = true WHERE number = :number RETURNING reply

-- name: read_replies
SELECT number, reply FROM inbox WHERE number = ANY (:numbers) AND reply IS NOT NULL

-- name: read_inbox
SELECT number, task_id, body FROM {tasks} JOIN inbox ON inbox.task = task.id
WHERE node = :node AND reply IS NULL AND NOT withdrawn ORDER BY number

-- name: share_usage
WITH published AS (
    INSERT INTO use
    VALUES (:writer, :principals, :connections, :subscriptions, :rate)
    ON CONFLICT (writer) DO UPDATE SET principals = excluded.principals,
        connections = excluded.connections, subscriptions = excluded.subscriptions,
        rates = excluded.rates, at = excluded.at
)
SELECT principals, connections, subscriptions, rates FROM use
WHERE writer <> :writer AND at > clock_timestamp() - make_interval(secs => {usage_ttl})

-- name: list_nodes
SELECT DISTINCT ON (name) name, role, extract(epoch FROM started_at)::float8 AS started_at,
    extract(epoch FROM expires_at - clock_timestamp())::float8 AS expires_in,
    (SELECT count(*) FROM {tasks} WHERE node = node.id) AS running, lag
FROM node ORDER BY name, id DESC

-- Leases of nodes -------------------------------------------------------------------------------

-- name: insert_node
INSERT INTO node (writer, name, role, expires_at)
VALUES (:writer, :name, :role, clock_timestamp() + make_interval(secs => :ttl)) RETURNING id

-- Returns no row if the lease has expired.
-- name: renew_node
UPDATE node SET expires_at = clock_timestamp() + make_interval(secs => :ttl), lag = :lag,
    beaten_at = clock_timestamp(), backend = pg_backend_pid()
WHERE id = :node AND expires_at > clock_timestamp() RETURNING id

-- name: announce_stop
UPDATE node SET stops = true WHERE id = :node

-- name: release_tasks
UPDATE task SET node = NULL, ready = 0, lease_end = lease_end % 2 WHERE node = :node

-- name: delete_node
DELETE FROM node WHERE id = :node

-- name: delete_usage
DELETE FROM use WHERE writer = :writer

-- Takes tasks from nodes whose leases have expired, and returns how many. A node that is renewing
-- its lease has its row locked and is skipped; an expired lease cannot be renewed.
--
-- The process of a node crashed if it had not announced its stop, and neither its database backend
-- nor a later lease of it exists. If the database was started after the last renewal, that cannot
-- be known, and the end does not count as a crash.
-- name: reclaim_tasks
WITH orphan AS (
    SELECT task.id, node.stops OR beaten_at < pg_postmaster_start_time()
        OR EXISTS (SELECT FROM pg_stat_activity WHERE pid = node.backend)
        OR EXISTS (
            SELECT FROM node AS later WHERE later.writer = node.writer AND later.id > node.id
        ) AS lives
    FROM node JOIN task ON {of_node}
    WHERE expires_at < clock_timestamp()
    LIMIT {max_reclaimed} FOR UPDATE OF node, task SKIP LOCKED
), reclaimed AS (
    UPDATE task SET node = NULL, ready = 0, epoch = epoch + 1,
        lease_end = CASE WHEN lease_end < 2 THEN lease_end WHEN lives THEN 0 ELSE 1 END
    FROM orphan WHERE {orphaned} RETURNING task.id
)
SELECT count(*) FROM reclaimed

-- Retention -------------------------------------------------------------------------------------

-- name: delete_old_rows
DELETE FROM node WHERE expires_at < clock_timestamp() - interval '{node_retention}'
    AND NOT EXISTS (SELECT FROM task WHERE task.node = node.id);
DELETE FROM use WHERE at < clock_timestamp() - interval '{node_retention}';
DELETE FROM writer WHERE NOT EXISTS (SELECT FROM node WHERE node.writer = writer.id);
DELETE FROM inbox WHERE at < clock_timestamp() - interval '{message_retention}'
    AND (withdrawn OR reply IS NOT NULL)

-- name: purge_tasks
WITH old AS (
    SELECT id FROM task WHERE {ended}
    ORDER BY ended_at LIMIT :limit FOR UPDATE SKIP LOCKED
), events AS (
    DELETE FROM event USING old WHERE task = old.id
), messages AS (
    DELETE FROM inbox USING old WHERE task = old.id
), tasks AS (
    DELETE FROM task USING old WHERE {old} RETURNING 1
)
SELECT count(*) FROM tasks

-- The search for damaged rows (`damage.py`) -------------------------------------------------------

-- name: last_task_number
SELECT last_value FROM task_id_seq

-- Reads rows of tasks and the columns that a worker needs; with :all, every stored column.
-- name: probe_tasks
SELECT count(*), max(seq), count(md5(spec)) FILTER (WHERE ready IS NOT NULL OR :all),
    count(md5(state)) FILTER (WHERE :all)
FROM task WHERE id > :low AND id <= :high

-- name: probe_events
SELECT count(md5(body)) FROM event WHERE task > :low AND task <= :high

-- name: first_events
SELECT body FROM event WHERE task = :number ORDER BY seq LIMIT 1

-- name: task_id_of_number
SELECT task_id FROM task WHERE id = :number
