"""The statements of a flush.

Lists go as arrays, one for each column, so that a statement is the same for one row and for many.
"""

# ruff: noqa: S608 - statements are put together from constants of this file only

from __future__ import annotations

from typing import Final

from agentsrv.store.base import IDEMPOTENCY_TTL

HEAD: Final = "task_id, owner, status, seq, epoch, (SELECT name FROM node WHERE id = task.node)"
COUNT: Final = "SELECT count(*) FROM task WHERE ready > 0"
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
REPLAYS: Final = f"""
SELECT place, id, spec, task.created_at > given.created_at - {IDEMPOTENCY_TTL}, {HEAD}
FROM unnest($1::integer[], $2::text[], $3::bytea[], $4::float8[])
    AS given(place, key_owner, key, created_at)
JOIN task ON owner = key_owner AND idempotency_key = key
"""
EXPIRE: Final = """
UPDATE task SET idempotency_key = NULL
FROM unnest($1::bigint[], $2::text[]) AS given(id, successor)
WHERE task.id = given.id AND NOT EXISTS (SELECT FROM task WHERE task_id = successor)
"""
HEADS: Final = f"SELECT {HEAD} FROM task WHERE task_id = ANY ($1)"
TAKEN: Final = "SELECT task_id FROM task WHERE task_id = ANY ($1)"
PLACES: Final = f"SELECT ({COUNT}), nextval('ready')"
LEASE: Final = "task_id, epoch, seq, spec, owner, losses"
CLAIMED: Final = f"SELECT {LEASE} FROM task WHERE id = ANY ($1) AND node = $2"
CLAIM: Final = f"""
WITH due AS (
    SELECT id, ready FROM task WHERE ready IS NOT NULL
    ORDER BY ready, id LIMIT $2 FOR UPDATE SKIP LOCKED
)
UPDATE task SET epoch = epoch + 1, node = $1, ready = NULL FROM due
WHERE task.id = due.id
    AND EXISTS (SELECT FROM node WHERE node.id = $1 AND expires_at > clock_timestamp())
RETURNING due.ready, task.id, {LEASE}
"""
WRITE: Final = """
WITH mark AS MATERIALIZED (
    SELECT id FROM writer WHERE id = $1 AND flush = $2 FOR UPDATE
), given AS MATERIALIZED (
    SELECT * FROM unnest($6::integer[], $7::text[], $8::integer[], $9::bigint[], $10::bigint[],
        $11::text[], $12::bigint[], $13::float8[], $14::bytea[], $15::bytea[])
    AS given(place, task_id, epoch, expected, seq, status, ready, ended_at, state, body)
), answer AS MATERIALIZED (
    SELECT * FROM unnest($16::integer[], $17::bigint[], $18::bytea[])
    AS answer(place, number, reply)
), asked AS MATERIALIZED (
    SELECT number FROM inbox
    WHERE number = ANY ($17) AND reply IS NULL AND NOT withdrawn ORDER BY number FOR UPDATE
), moved AS (
    UPDATE task SET
        seq = given.seq,
        status = given.status,
        at = clock_timestamp(),
        node = CASE WHEN given.ended_at IS NULL THEN node END,
        ready = CASE WHEN given.ended_at IS NULL THEN coalesce(given.ready, task.ready) END,
        ended_at = given.ended_at,
        closed_at = CASE WHEN given.ended_at IS NOT NULL THEN clock_timestamp() END,
        state = given.state
    FROM mark, given
    WHERE task.task_id = given.task_id AND task.epoch = given.epoch AND task.seq = expected
        AND NOT EXISTS (
            SELECT FROM answer WHERE answer.place = given.place
            AND number NOT IN (SELECT number FROM asked))
    RETURNING task.id, task.seq, place, body
), logged AS (
    INSERT INTO event SELECT id, seq, body FROM moved WHERE body IS NOT NULL
), answered AS (
    UPDATE inbox SET reply = answer.reply
    FROM mark, answer JOIN asked USING (number)
    WHERE inbox.number = answer.number
        AND (place IS NULL OR place IN (SELECT place FROM moved))
    RETURNING poster
), freed AS (
    UPDATE task SET node = NULL, ready = 0
    FROM mark, unnest($19::text[], $20::integer[]) AS given(task_id, epoch)
    WHERE task.task_id = given.task_id AND task.epoch = given.epoch AND node IS NOT NULL
)
UPDATE writer SET
    flush = $3,
    refused = $4 || ARRAY(SELECT place FROM given EXCEPT SELECT place FROM moved),
    claimed = $5
FROM mark WHERE writer.id = mark.id
RETURNING refused, ARRAY(SELECT DISTINCT poster FROM answered)
"""
