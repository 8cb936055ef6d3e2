"""The statements of a flush.

Lists go as arrays, one for each column, so that a statement is the same for one row and for many.
"""

# ruff: noqa: S608 - statements are put together from constants of this file only

from __future__ import annotations

from typing import Final

from agentsrv.store.base import IDEMPOTENCY_TTL

HEAD: Final = (
    "task_id, owner, status, seq, epoch, (SELECT name FROM node WHERE id = task.node) AS name"
)
QUEUE: Final = "SELECT owner, count(*) FROM task WHERE ready > 0 GROUP BY owner"
CREATE: Final = """
WITH given AS (
    SELECT * FROM unnest($1::integer[], $2::text[], $3::text[], $4::text[], $5::bigint[],
        $6::bigint[], $7::bytea[], $8::float8[], $9::bytea[], $10::bytea[], $11::bytea[])
    AS given(place, task_id, owner, status, seq, ready, user_input, created_at, key, spec, body)
), made AS (
    INSERT INTO task
        (task_id, owner, status, seq, ready, user_input, created_at, idempotency_key, spec)
    SELECT task_id, owner, status, seq, ready, user_input, created_at, key, spec
    FROM given ORDER BY place
    ON CONFLICT DO NOTHING
    RETURNING id, task_id
), logged AS (
    INSERT INTO event SELECT id, seq, body FROM made JOIN given USING (task_id)
    WHERE body IS NOT NULL
)
SELECT place FROM made JOIN given USING (task_id)
"""
# A round trip costs more than what is looked up in it: so who waits, the next places in the queue
# and the tasks that keys stand for are looked up together.
LOOK: Final = f"""
SELECT nextval('ready'), waiting.*, used.*
FROM (SELECT array_agg(owner), array_agg(count) FROM ({QUEUE}) AS line) AS waiting, (
    SELECT array_agg(place), array_agg(id), array_agg(spec), array_agg(is_fresh),
        array_agg(task_id), array_agg(owner), array_agg(status), array_agg(seq),
        array_agg(epoch), array_agg(name)
    FROM (
        SELECT place, id, spec, {HEAD},
            task.created_at > given.created_at - {IDEMPOTENCY_TTL} AS is_fresh
        FROM unnest($1::integer[], $2::text[], $3::bytea[], $4::float8[])
            AS given(place, key_owner, key, created_at)
        JOIN task ON owner = key_owner AND idempotency_key = key
    ) AS found
) AS used
"""
EXPIRE: Final = """
UPDATE task SET idempotency_key = NULL
FROM unnest($1::bigint[], $2::text[]) AS given(id, successor)
WHERE task.id = given.id AND NOT EXISTS (SELECT FROM task WHERE task_id = successor)
"""
HEADS: Final = f"SELECT {HEAD} FROM task WHERE task_id = ANY ($1)"
TAKEN: Final = "SELECT task_id FROM task WHERE task_id = ANY ($1)"
LEASE: Final = "task_id, epoch, seq, spec, owner, lease_end, working"
CLAIMED: Final = f"SELECT {LEASE} FROM task WHERE id = ANY ($1) AND node = $2"
# Lost tasks first, then one of each owner in turn: whoever waits for its turn the longest, which
# began when it was served last, or with its first task. Owners are looked up one after the other
# in the index of lines, so that a long line costs no more than a short one. As others may claim at
# the same time, some more are looked at than are wanted.
CLAIM: Final = f"""
WITH RECURSIVE alive AS (
    SELECT FROM node WHERE id = $1 AND expires_at > clock_timestamp()
), waiting(owner) AS (
    (SELECT owner FROM task WHERE ready > 0 ORDER BY owner LIMIT 1)
    UNION ALL
    SELECT (SELECT task.owner FROM task
        WHERE ready > 0 AND task.owner > waiting.owner ORDER BY task.owner LIMIT 1)
    FROM waiting WHERE owner IS NOT NULL
), line AS (
    SELECT line.id, place, greatest(served, first) AS since FROM waiting
    LEFT JOIN turn USING (owner),
    LATERAL (
        SELECT id, row_number() OVER (ORDER BY ready, id) AS place, min(ready) OVER () AS first
        FROM (
            SELECT id, ready FROM task WHERE task.owner = waiting.owner AND ready > 0
            ORDER BY ready, id
            LIMIT least(2 * $2, greatest(0, $3 - (
                SELECT count(*) FROM task
                WHERE task.owner = waiting.owner AND closed_at IS NULL
                    AND (node IS NOT NULL OR ready = 0))))
        ) AS next
    ) AS line
    ORDER BY place, since LIMIT 2 * $2
), lost AS (
    SELECT id FROM task WHERE ready = 0 ORDER BY id LIMIT $2 FOR UPDATE SKIP LOCKED
), due AS (
    SELECT id, 0 AS place, 0 AS since FROM lost
    UNION ALL
    SELECT id, place, since FROM (
        SELECT task.id, place, since FROM line JOIN task USING (id) WHERE ready > 0
        ORDER BY place, since LIMIT $2 - (SELECT count(*) FROM lost)
        FOR UPDATE OF task SKIP LOCKED
    ) AS free
), claimed AS (
    UPDATE task SET epoch = epoch + 1, node = $1, ready = NULL FROM due, alive
    WHERE task.id = due.id
    RETURNING place, since, task.id, {LEASE}
), served AS (
    INSERT INTO turn
    SELECT owner, nextval('ready') FROM (
        SELECT DISTINCT ON (owner) owner, place, since FROM claimed
        WHERE place > 0 ORDER BY owner, place DESC
    ) AS turns
    WHERE (SELECT count(owner) FROM waiting) > 1 ORDER BY place, since
    ON CONFLICT (owner) DO UPDATE SET served = excluded.served
)
SELECT place, since, id, {LEASE} FROM claimed
"""
WRITE: Final = """
WITH mark AS MATERIALIZED (
    SELECT id FROM writer WHERE id = $1 AND flush = $2 FOR UPDATE
), given AS MATERIALIZED (
    SELECT * FROM unnest($6::integer[], $7::text[], $8::integer[], $9::bigint[], $10::bigint[],
        $11::text[], $12::bigint[], $13::float8[], $14::bytea[], $15::text[],
        $16::bytea[])
    AS given(place, task_id, epoch, expected, seq, status, ready, ended_at, state, working, body)
), answer AS MATERIALIZED (
    SELECT * FROM unnest($17::integer[], $18::bigint[], $19::bytea[])
    AS answer(place, number, reply)
), asked AS MATERIALIZED (
    SELECT number FROM inbox
    WHERE number = ANY ($18) AND reply IS NULL AND NOT withdrawn ORDER BY number FOR UPDATE
), moved AS (
    UPDATE task SET
        seq = given.seq,
        status = given.status,
        at = clock_timestamp(),
        node = CASE WHEN given.ended_at IS NULL THEN node END,
        lease_end = CASE WHEN node IS NULL THEN lease_end ELSE 2 END,
        working = CASE WHEN node IS NULL THEN task.working ELSE given.working END,
        ready = CASE WHEN given.ended_at IS NULL THEN coalesce(given.ready, task.ready) END,
        ended_at = given.ended_at,
        closed_at = CASE WHEN given.ended_at IS NOT NULL THEN clock_timestamp() END,
        state = given.state
    FROM mark, given
    WHERE task.task_id = given.task_id AND task.epoch = given.epoch AND task.seq = expected
        AND NOT EXISTS (
            SELECT FROM answer WHERE answer.place = given.place
            AND number NOT IN (SELECT number FROM asked))
    RETURNING task.id, task.seq, task.owner, task.ready, place, body
), waiting AS (
    SELECT owner, count(*) FROM (
        SELECT owner FROM task WHERE task.ready > 0 AND id NOT IN (SELECT id FROM moved)
        UNION ALL SELECT owner FROM moved WHERE moved.ready > 0
    ) AS line
    WHERE $22 GROUP BY owner
), logged AS (
    INSERT INTO event SELECT id, seq, body FROM moved WHERE body IS NOT NULL
), answered AS (
    UPDATE inbox SET reply = answer.reply
    FROM mark, answer JOIN asked USING (number)
    WHERE inbox.number = answer.number
        AND CASE WHEN place IS NULL THEN NOT EXISTS (
                SELECT FROM task WHERE task.id = inbox.task AND node IS DISTINCT FROM $23
                AND node IS NOT NULL)
            ELSE place IN (SELECT place FROM moved) END
    RETURNING poster
), freed AS (
    UPDATE task SET node = NULL, ready = 0, lease_end = lease_end % 2
    FROM mark, unnest($20::text[], $21::integer[]) AS given(task_id, epoch)
    WHERE task.task_id = given.task_id AND task.epoch = given.epoch AND node IS NOT NULL
)
UPDATE writer SET
    flush = $3,
    refused = $4 || ARRAY(SELECT place FROM given EXCEPT SELECT place FROM moved),
    claimed = $5
FROM mark WHERE writer.id = mark.id
RETURNING refused, ARRAY(SELECT DISTINCT poster FROM answered),
    (SELECT array_agg(owner) FROM waiting), (SELECT array_agg(count) FROM waiting)
"""
