"""The schema of the PostgreSQL store, in numbered steps that are applied when a node opens it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import asyncpg

from agentsrv.errors import ConfigurationError

OLDEST: Final = 15  # of PostgreSQL: the oldest that is tested
LOCK: Final = 0x61677376  # the advisory lock under which steps are applied: "agsv"

# A task is ready (to be claimed) from its queueing to its claim: ready > 0 is its place in the
# queue, 0 says that it lost its worker and goes first.
#
# A row of event holds what one append wrote: the encoded events, a line each, numbered by the
# last of them. At 16 events to an append that is twice as fast as a row for each, and a quarter
# smaller.
#
# A turn says when an owner had a task claimed while others were waiting, too, in the same numbers
# as the places in the queue.
#
# No index holds what every append changes (seq, at): its new version of the row stays in the page
# (HOT), which `fillfactor` keeps room for. The low `toast_tuple_target` of a task keeps its long
# columns, which never change, out of the row that is copied; that of event keeps an append whole,
# because looking elsewhere for it and compressing it cost more than the space.
#
# at and closed_at are by the database's clock, created_at and ended_at by the node's.
#
# Texts that clients make up are bytes: a text of PostgreSQL cannot hold U+0000.
#
# A row of use is what a node said last that principals use there. It is worth nothing a few
# seconds later, so it need not outlive a crash: nothing is logged, and no commit waits for a disk.
#
# How the last lease of a task ended is what `LeaseEnd` says. A node stops when its process has
# declared it, and has the backend through which it renews its lease: the server ends that at once
# when the process dies, but not when it hangs or is cut off.
#
# A writer is one node's process from its start to its end, and where its flushes are; a node is a
# writer's lease, of which it has another after it lost one.
FIRST: Final = """
CREATE SEQUENCE ready INCREMENT 10000 START 10000;
CREATE TABLE task (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    task_id text COLLATE "C" NOT NULL UNIQUE,
    owner text COLLATE "C" NOT NULL,
    status text COLLATE "C" NOT NULL,
    seq bigint NOT NULL,
    epoch integer NOT NULL DEFAULT 0,
    node bigint,
    lease_end smallint NOT NULL DEFAULT 0,
    ready bigint,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    created_at double precision NOT NULL,
    ended_at double precision,
    closed_at timestamptz,
    idempotency_key bytea,
    user_input bytea NOT NULL,
    spec bytea NOT NULL,
    state bytea
) WITH (fillfactor = 60, toast_tuple_target = 256);
CREATE INDEX task_lost ON task (id) WHERE ready = 0;
CREATE INDEX task_line ON task (owner, ready, id) WHERE ready > 0;
CREATE INDEX task_node ON task (node) WHERE node IS NOT NULL;
CREATE INDEX task_open ON task (owner) WHERE closed_at IS NULL;
CREATE INDEX task_closed ON task (owner, closed_at) WHERE closed_at IS NOT NULL;
CREATE INDEX task_ended ON task (ended_at) WHERE ended_at IS NOT NULL;
CREATE INDEX task_owner ON task (owner, id);
CREATE INDEX task_status ON task (owner, status, id);
CREATE UNIQUE INDEX task_key ON task (owner, idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE TABLE event (
    task bigint NOT NULL,
    seq bigint NOT NULL,
    body bytea NOT NULL,
    PRIMARY KEY (task, seq)
) WITH (toast_tuple_target = 4080);
CREATE TABLE turn (
    owner text COLLATE "C" PRIMARY KEY,
    served bigint NOT NULL
) WITH (fillfactor = 50);
CREATE SEQUENCE message;
CREATE TABLE inbox (
    number bigint PRIMARY KEY,
    task bigint NOT NULL,
    poster bigint,
    body bytea NOT NULL,
    reply bytea,
    withdrawn boolean NOT NULL DEFAULT false,
    at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX inbox_open ON inbox (task) WHERE reply IS NULL AND NOT withdrawn;
CREATE INDEX inbox_at ON inbox (at);
CREATE UNLOGGED TABLE use (
    writer bigint PRIMARY KEY,
    principals text[] COLLATE "C" NOT NULL,
    connections integer[] NOT NULL,
    subscriptions integer[] NOT NULL,
    rates double precision[] NOT NULL,
    at timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (fillfactor = 10);
CREATE TABLE writer (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    flush bigint NOT NULL DEFAULT 0,
    refused integer[] NOT NULL DEFAULT '{}',
    claimed bigint[] NOT NULL DEFAULT '{}'
) WITH (fillfactor = 10);
CREATE TABLE node (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    writer bigint NOT NULL,
    name text COLLATE "C" NOT NULL,
    role text COLLATE "C" NOT NULL,
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at timestamptz NOT NULL,
    beaten_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    backend integer NOT NULL DEFAULT pg_backend_pid(),
    stops boolean NOT NULL DEFAULT false,
    lag double precision NOT NULL DEFAULT 0
) WITH (fillfactor = 10);
"""
# working: the steps, separated by spaces, whose code runs although a question of theirs is open.
# NULL in nearly all rows: a step that asks nothing is not in it, nor is one that only waits.
#
# The indexes by which tasks are looked for contain the id: `statements` says why.
SECOND: Final = """
ALTER TABLE task ADD COLUMN working text COLLATE "C";
DROP INDEX task_node;
CREATE INDEX task_node ON task (node, id) WHERE node IS NOT NULL;
DROP INDEX task_open;
CREATE INDEX task_open ON task (owner, id) WHERE closed_at IS NULL;
DROP INDEX task_closed;
CREATE INDEX task_closed ON task (owner, closed_at, id) WHERE closed_at IS NOT NULL;
DROP INDEX task_ended;
CREATE INDEX task_ended ON task (ended_at, id) WHERE ended_at IS NOT NULL;
"""
STEPS: Final[Sequence[str]] = (FIRST, SECOND)
"""What makes version 1 of an empty schema, version 2 of 1, and so on; a step never changes."""


async def migrate(connection: asyncpg.Connection, steps: Sequence[str] = STEPS) -> str:
    """Apply the steps that are missing; of several nodes that start, one does it.

    Returns:
        A name that no other store has.

    Raises:
        ConfigurationError: The server or the schema is of a version that does not fit.
    """
    if connection.get_server_version().major < OLDEST:
        found = connection.get_server_version().major
        raise ConfigurationError(f"PostgreSQL is {found}; expected {OLDEST} or newer")
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock($1)", LOCK)
        if await connection.fetchval("SELECT to_regclass(current_schema || '.agentsrv')") is None:
            await connection.execute(
                "CREATE TABLE agentsrv (version integer NOT NULL, store text NOT NULL);"
                "INSERT INTO agentsrv VALUES (0, replace(gen_random_uuid()::text, '-', ''))"
            )
        version, store = await connection.fetchrow("SELECT version, store FROM agentsrv")
        if version > len(steps):
            raise ConfigurationError(f"its schema is {version}; expected {len(steps)}")
        for step in steps[version:]:
            await connection.execute(step)
        if version < len(steps):
            await connection.execute("UPDATE agentsrv SET version = $1", len(steps))
    return str(store)
