"""The schema of the SQLite file, its version, and the migrations from earlier versions."""

from __future__ import annotations

import sqlite3
from typing import Final

from agentsrv.errors import ConfigurationError

APPLICATION: Final = 0x61677376  # the application_id of a store: "agsv"
SCHEMA_VERSION: Final = 3

# task.ready: whether the task can be claimed; `store.base` has the table of its values.
#
# task.interrupted: the attempts that a crash interrupted, as JSON. Set by the first opening after
# the crash, deleted by the next append of a worker, which records the consequences in the log.
#
# A row of event holds the events of one append, one encoded event per line. `place` is the number
# of the task and that of the last event in one integer, so that the table is one tree that holds
# each log in order.
SCHEMA: Final = """
CREATE TABLE task (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    task_id TEXT NOT NULL UNIQUE,
    owner TEXT NOT NULL,
    status TEXT NOT NULL,
    seq INTEGER NOT NULL,
    epoch INTEGER NOT NULL DEFAULT 0,
    node TEXT,
    interrupted TEXT,
    ready INTEGER,
    user_input TEXT NOT NULL,
    created_at REAL NOT NULL,
    ended_at REAL,
    idempotency_key TEXT,
    spec BLOB NOT NULL,
    state BLOB
) STRICT;
CREATE INDEX task_ready ON task (ready) WHERE ready IS NOT NULL;
CREATE INDEX task_node ON task (node) WHERE node IS NOT NULL;
CREATE INDEX task_ended ON task (ended_at) WHERE ended_at IS NOT NULL;
CREATE INDEX task_owner ON task (owner, status, id);
CREATE UNIQUE INDEX task_key ON task (owner, idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE TABLE event (
    place INTEGER PRIMARY KEY,
    body BLOB NOT NULL
) STRICT;
"""
SEQ_BITS: Final = 32  # the lower bits of a place, for the event's number
MIGRATIONS: Final = {
    1: """
CREATE TABLE event2 (
    place INTEGER PRIMARY KEY,
    body BLOB NOT NULL
) STRICT;
INSERT INTO event2 SELECT task << 32 | seq, body FROM event ORDER BY task, seq;
DROP TABLE event;
ALTER TABLE event2 RENAME TO event;
""",
    2: """
ALTER TABLE task DROP COLUMN losses;
ALTER TABLE task ADD COLUMN interrupted TEXT;
""",
}
"""By version: the statements that turn it into the next version."""


def version_of(db: sqlite3.Connection) -> int | None:
    """The version of the file's schema; ``None`` for an empty file.

    Raises:
        ConfigurationError: The file belongs to another program, or its version cannot be migrated.
    """
    if not db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        return None
    if db.execute("PRAGMA application_id").fetchone()[0] != APPLICATION:
        raise ConfigurationError("it is another program's database")
    version = int(db.execute("PRAGMA user_version").fetchone()[0])
    if version != SCHEMA_VERSION and version not in MIGRATIONS:
        raise ConfigurationError(f"its schema is {version}; expected {SCHEMA_VERSION}")
    return version


def migrate(db: sqlite3.Connection, version: int | None) -> None:
    """Create the schema, or migrate it from ``version``, which ``version_of`` returned."""
    if version is None:
        db.executescript(
            f"BEGIN;{SCHEMA}PRAGMA application_id={APPLICATION};"
            f"PRAGMA user_version={SCHEMA_VERSION};COMMIT"
        )
        return
    for old in range(version, SCHEMA_VERSION):
        db.executescript(f"BEGIN;{MIGRATIONS[old]}PRAGMA user_version={old + 1};COMMIT")
