"""The schema of the SQLite file, its version, and what makes it of an earlier one."""

from __future__ import annotations

import sqlite3
from typing import Final

from agentsrv.errors import ConfigurationError

APPLICATION: Final = 0x61677376  # marks the file as ours: "agsv"
SCHEMA_VERSION: Final = 3

# A task is ready (to be claimed) from its queueing to its claim: ready > 0 is its place in the
# queue, 0 says that it lost its worker and goes first.
#
# What a crash interrupted stands in `interrupted`, as JSON, from the opening after the crash to the
# next append: what follows from it is in the log then.
#
# A row of event holds what one append wrote: the encoded events, a line each, in the place of the
# last of them. A place is the task's id and the event's number in one integer, so that there is
# one tree, which holds each log in order and grows at its end.
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
SEQ_BITS: Final = 32  # of a place; those before them are the task's id
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
"""What makes the next version's schema of each one's."""


def version_of(db: sqlite3.Connection) -> int | None:
    """The version of the file's schema; ``None`` for an empty file.

    Raises:
        ConfigurationError: It is another program's, or of a version that cannot be brought up.
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
    """Make the schema of this version out of what ``version_of`` found, step by step."""
    if version is None:
        db.executescript(
            f"BEGIN;{SCHEMA}PRAGMA application_id={APPLICATION};"
            f"PRAGMA user_version={SCHEMA_VERSION};COMMIT"
        )
        return
    for old in range(version, SCHEMA_VERSION):
        db.executescript(f"BEGIN;{MIGRATIONS[old]}PRAGMA user_version={old + 1};COMMIT")
