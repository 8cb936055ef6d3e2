-- The schema of the PostgreSQL store, in numbered steps. Step n turns version n - 1 into version n.
-- A step that was released never changes.

-- name: version_1
-- Places in the queue. One value gives a flush 10,000 places; it has at most 2,000 requests.
CREATE SEQUENCE ready INCREMENT 10000 START 10000;
-- A task.
--
--   node        the lease of the node that runs the task; NULL if no node does
--   ready       whether the task can be claimed: > 0 is its place in the queue, 0 means that it lost
--               its worker and comes first, NULL that it is leased, has ended or is not queued yet
--   lease_end   how the last lease ended, see `LeaseEnd`
--   at          time of the last append; it and closed_at are by the database's clock, created_at
--               and ended_at by the node's
--   closed_at   when the terminal event was written
--
-- No index contains the columns that every append changes (seq, at). The row's new version stays
-- in its page (HOT update), where `fillfactor` reserves space. The low `toast_tuple_target` moves
-- the long columns, which never change, out of the row that is copied.
--
-- Texts of clients are bytea: PostgreSQL's text cannot contain U+0000.
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
-- A row holds the events of one append, one encoded event per line. `seq` is the number of the
-- last one. With 16 events per append, this is twice as fast as a row per event and a quarter
-- smaller. The high `toast_tuple_target` keeps an append in its row: storing and compressing it
-- elsewhere costs more than the space.
CREATE TABLE event (
    task bigint NOT NULL,
    seq bigint NOT NULL,
    body bytea NOT NULL,
    PRIMARY KEY (task, seq)
) WITH (toast_tuple_target = 4080);
-- When an owner was last served while other owners waited, as a value of the sequence `ready`.
CREATE TABLE turn (
    owner text COLLATE "C" PRIMARY KEY,
    served bigint NOT NULL
) WITH (fillfactor = 50);
-- Messages to the nodes that run tasks, see `SharedStore.post`. `poster` is the sender's lease.
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
-- The usage of principals that a node published last. It is outdated after a few seconds, so it
-- need not survive a crash: the table is not logged.
CREATE UNLOGGED TABLE use (
    writer bigint PRIMARY KEY,
    principals text[] COLLATE "C" NOT NULL,
    connections integer[] NOT NULL,
    subscriptions integer[] NOT NULL,
    rates double precision[] NOT NULL,
    at timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (fillfactor = 10);
-- A process of a node, from its start to its end, with the number and the result of its last flush.
CREATE TABLE writer (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    flush bigint NOT NULL DEFAULT 0,
    refused integer[] NOT NULL DEFAULT '{}',
    claimed bigint[] NOT NULL DEFAULT '{}'
) WITH (fillfactor = 10);
-- A lease of a writer. After a writer loses its lease, it gets a new row. `backend` is the database
-- process of the connection that renews the lease: PostgreSQL ends it at once if the node's process
-- dies, but not if it hangs or is cut off. `stops` is set when the node announces its stop.
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

-- `working`: the steps, separated by spaces, whose code runs although they have an open question.
-- NULL in nearly all rows: steps without a question, and steps that only wait, are not listed.
--
-- Indexes by which tasks are searched contain the id; the head of queries.sql says why.
-- name: version_2
ALTER TABLE task ADD COLUMN working text COLLATE "C";
DROP INDEX task_node;
CREATE INDEX task_node ON task (node, id) WHERE node IS NOT NULL;
DROP INDEX task_open;
CREATE INDEX task_open ON task (owner, id) WHERE closed_at IS NULL;
DROP INDEX task_closed;
CREATE INDEX task_closed ON task (owner, closed_at, id) WHERE closed_at IS NOT NULL;
DROP INDEX task_ended;
CREATE INDEX task_ended ON task (ended_at, id) WHERE ended_at IS NOT NULL;
