"""The statements of a flush, and those that look for tasks.

Lists go as arrays, one for each column, so that a statement is the same for one row and for many.

Where rows of ``task`` are damaged, the statements that look for tasks, and do not name them, are
replaced by others that leave these rows out (``statements``). A condition alone would not do:
PostgreSQL reads the row before it looks at most conditions, and reading a damaged one fails. But
conditions on columns of an index are looked at in the index. So

- each scan of ``task`` that looks for tasks is one scan for each range of ids between damaged ones;
- where rows are locked or changed, they are those that such scans have found, by the index of ids;
- each index by which tasks are looked for contains ``id``;
- scans of the whole table, which use no index, are disabled (``connections.READER``).
"""

# ruff: noqa: S608 - statements are put together from constants of this file only

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Final, NamedTuple

from agentsrv.store.base import IDEMPOTENCY_TTL
from agentsrv.store.shared import NEWS_WITHIN

HEAD: Final = (
    "task_id, owner, status, seq, epoch, (SELECT name FROM node WHERE id = task.node) AS name"
)
REAPED: Final = 1000  # tasks taken at a time from nodes that died
# Below, {tasks} is the table of tasks, or what can be read of it.
_QUEUE: Final = "SELECT owner, count(*) FROM {tasks} WHERE ready > 0 GROUP BY owner"
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
_LOOK: Final = f"""
SELECT nextval('ready'), waiting.*, used.*
FROM (SELECT array_agg(owner), array_agg(count) FROM ({_QUEUE}) AS line) AS waiting, (
    SELECT array_agg(place), array_agg(id), array_agg(spec), array_agg(is_fresh),
        array_agg(task_id), array_agg(owner), array_agg(status), array_agg(seq),
        array_agg(epoch), array_agg(name)
    FROM (
        SELECT place, id, spec, {HEAD},
            task.created_at > given.created_at - {IDEMPOTENCY_TTL} AS is_fresh
        FROM unnest($1::integer[], $2::text[], $3::bytea[], $4::float8[])
            AS given(place, key_owner, key, created_at)
        CROSS JOIN LATERAL (
            SELECT * FROM task WHERE owner = key_owner AND idempotency_key = key OFFSET 0
        ) AS task
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
_CLAIM: Final = f"""
WITH RECURSIVE alive AS (
    SELECT FROM node WHERE id = $1 AND expires_at > clock_timestamp()
), waiting(owner) AS (
    (SELECT owner FROM {{tasks}} WHERE ready > 0 ORDER BY owner LIMIT 1)
    UNION ALL
    SELECT (SELECT task.owner FROM {{tasks}}
        WHERE ready > 0 AND task.owner > waiting.owner ORDER BY task.owner LIMIT 1)
    FROM waiting WHERE owner IS NOT NULL
), line AS (
    SELECT line.id, place, greatest(served, first) AS since FROM waiting
    LEFT JOIN turn USING (owner),
    LATERAL (
        SELECT id, row_number() OVER (ORDER BY ready, id) AS place, min(ready) OVER () AS first
        FROM (
            SELECT id, ready FROM {{tasks}} WHERE task.owner = waiting.owner AND ready > 0
            ORDER BY ready, id
            LIMIT least(2 * $2, greatest(0, $3 - (
                SELECT count(*) FROM {{tasks}}
                WHERE task.owner = waiting.owner AND closed_at IS NULL
                    AND (node IS NOT NULL OR ready = 0))))
        ) AS next
    ) AS line
    ORDER BY place, since LIMIT 2 * $2
), lost AS (
    SELECT id FROM task WHERE {{is_lost}} ORDER BY id LIMIT $2 FOR UPDATE SKIP LOCKED
), due AS (
    SELECT id, 0 AS place, 0 AS since FROM lost
    UNION ALL
    SELECT id, place, since FROM (
        SELECT task.id, place, since FROM line JOIN task USING (id) WHERE {{is_free}}
        ORDER BY place, since LIMIT $2 - (SELECT count(*) FROM lost)
        FOR UPDATE OF task SKIP LOCKED
    ) AS free
), claimed AS (
    UPDATE task SET epoch = epoch + 1, node = $1, ready = NULL FROM due, alive
    WHERE {{is_due}}
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
_WRITE: Final = """
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
        SELECT owner FROM {tasks} WHERE task.ready > 0 AND id NOT IN (SELECT id FROM moved)
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
                SELECT FROM {tasks} WHERE task.id = inbox.task AND node IS DISTINCT FROM $23
                AND node IS NOT NULL)
            ELSE place IN (SELECT place FROM moved) END
    RETURNING poster
), freed AS (
    UPDATE task SET node = NULL, ready = 0, lease_end = lease_end % 2
    FROM mark, unnest($20::text[], $21::integer[]) AS given(task_id, epoch)
    WHERE task.task_id = given.task_id AND task.epoch = given.epoch
        AND coalesce(node, 0) > 0 AND task.task_id = ANY ($20)
)
UPDATE writer SET
    flush = $3,
    refused = $4 || ARRAY(SELECT place FROM given EXCEPT SELECT place FROM moved),
    claimed = $5
FROM mark WHERE writer.id = mark.id
RETURNING refused, ARRAY(SELECT DISTINCT poster FROM answered),
    (SELECT array_agg(owner) FROM waiting), (SELECT array_agg(count) FROM waiting)
"""
# A node that beats has its row locked, and is passed over; one that is lost cannot beat any more.
#
# Its process has crashed if it had not declared that it stops, and neither its backend nor a later
# lease of it is there. Where the database was started after its last beat, nothing can be said of
# it, and it is not held for crashed.
_REAP: Final = f"""
WITH lost AS (
    SELECT task.id, node.stops OR beaten_at < pg_postmaster_start_time()
        OR EXISTS (SELECT FROM pg_stat_activity WHERE pid = node.backend)
        OR EXISTS (
            SELECT FROM node AS later WHERE later.writer = node.writer AND later.id > node.id
        ) AS lives
    FROM node JOIN task ON {{is_dead}}
    WHERE expires_at < clock_timestamp()
    LIMIT {REAPED} FOR UPDATE OF node, task SKIP LOCKED
), reaped AS (
    UPDATE task SET node = NULL, ready = 0, epoch = epoch + 1,
        lease_end = CASE WHEN lease_end < 2 THEN lease_end WHEN lives THEN 0 ELSE 1 END
    FROM lost WHERE {{is_found}} RETURNING task.id
)
SELECT count(*) FROM reaped
"""
_RECENT: Final = f"clock_timestamp() - make_interval(secs => {NEWS_WITHIN})"
_NEWS: Final = f"""
SELECT task_id, owner, seq FROM task WHERE task_id = ANY ($1)
UNION SELECT task_id, owner, seq FROM {{tasks}}
    WHERE owner = ANY ($2) AND closed_at IS NULL AND at > {_RECENT}
UNION SELECT task_id, owner, seq FROM {{tasks}}
    WHERE owner = ANY ($2) AND closed_at > {_RECENT}
"""
_INBOX: Final = """
SELECT number, task_id, body FROM {tasks} JOIN inbox ON inbox.task = task.id
WHERE node = $1 AND reply IS NULL AND NOT withdrawn ORDER BY number
"""
_NODES: Final = """
SELECT DISTINCT ON (name) name, role, extract(epoch FROM started_at)::float8,
    extract(epoch FROM expires_at - clock_timestamp())::float8,
    (SELECT count(*) FROM {tasks} WHERE node = node.id), lag
FROM node ORDER BY name, id DESC
"""
_PURGE: Final = """
WITH old AS (
    SELECT id FROM task WHERE {is_ended}
    ORDER BY ended_at LIMIT $2 FOR UPDATE SKIP LOCKED
), events AS (
    DELETE FROM event USING old WHERE task = old.id
), messages AS (
    DELETE FROM inbox USING old WHERE task = old.id
), tasks AS (
    DELETE FROM task USING old WHERE {is_old} RETURNING 1
)
SELECT count(*) FROM tasks
"""
_LOST: Final = "SELECT id FROM {tasks} WHERE ready = 0"
_DEAD: Final = """SELECT task.id FROM node JOIN {tasks} ON task.node = node.id
        WHERE expires_at < clock_timestamp()"""
_ENDED: Final = "SELECT id FROM {tasks} WHERE ended_at < $1 ORDER BY ended_at LIMIT $2"
_CONDITIONS: Final = {
    "is_lost": ("ready = 0", f"coalesce(ready, -1) = 0 AND id = ANY (ARRAY({_LOST}))"),
    "is_free": (
        "ready > 0",
        "coalesce(ready, 0) > 0 AND task.id = ANY (ARRAY(SELECT id FROM line))",
    ),
    "is_due": (
        "task.id = due.id",
        "task.id = due.id AND task.id = ANY (ARRAY(SELECT id FROM due))",
    ),
    "is_dead": (
        "task.node = node.id",
        f"coalesce(task.node, 0) = node.id AND task.id = ANY (ARRAY({_DEAD}))",
    ),
    "is_found": (
        "task.id = lost.id",
        "task.id = lost.id AND task.id = ANY (ARRAY(SELECT id FROM lost))",
    ),
    "is_ended": (
        "ended_at < $1",
        f"coalesce(ended_at, 'infinity') < $1 AND id = ANY (ARRAY({_ENDED}))",
    ),
    "is_old": (
        "task.id = old.id",
        "task.id = old.id AND task.id = ANY (ARRAY(SELECT id FROM old))",
    ),
}
"""Those of scans that lock or change rows: in a whole table, and where rows are left out.

No index but that of ids fits the second ones (hence ``coalesce``): by another one PostgreSQL may
read a row before it looks whether its id is among the given ones.
"""


class Statements(NamedTuple):
    """The statements that look for tasks."""

    queue: str
    look: str
    claim: str
    write: str
    reap: str
    news: str
    inbox: str
    nodes: str
    purge: str
    tasks: str
    """What to look in."""


_ALL: Final = (
    *(_QUEUE, _LOOK, _CLAIM, _WRITE, _REAP),
    *(_NEWS, _INBOX, _NODES, _PURGE, "{tasks}"),
)


@lru_cache(8)
def statements(damaged: Sequence[int] = ()) -> Statements:
    """The statements that leave out the tasks with these ids, in ascending order."""
    tasks = "task"
    if damaged:
        ranges = [
            f"id > {low} AND id < {high}" for low, high in pairwise((0, *damaged)) if high - low > 1
        ]
        ranges.append(f"id > {damaged[-1]}")
        scans = " UNION ALL ".join(f"SELECT * FROM task WHERE {each}" for each in ranges)
        tasks = f"({scans}) AS task"
    parts = {name: each[bool(damaged)].format(tasks=tasks) for name, each in _CONDITIONS.items()}
    parts["tasks"] = tasks
    return Statements(*(each.format(**parts) for each in _ALL))
