"""What happens to the file below an SQLite store: each a context that begins and ends it.

Each takes the path of the database, whose store is open in this process or in another one.

LOCKED   the database cannot be written for a while; it can be read
MOVED    it is not in its place for a while: nothing of it may be told
LASTING  it is not in its place any more, until the server is started again
"""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Final

from agentsrv.store.sqlite.schema import APPLICATION

Condition = Callable[[Path], AbstractContextManager[None]]

HOLD: Final = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
for statement in sys.argv[2:]:
    db.execute(statement).fetchall()
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def held(path: Path, *statements: str) -> Iterator[int]:
    """Another program, which has executed the statements and leaves its transaction open."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path), *statements],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"held\n"
        yield process.pid
    finally:
        process.stdin.close()
        process.wait(30)
        process.stdout.close()


@contextmanager
def write_locked(path: Path) -> Iterator[None]:
    """Another program has begun to write."""
    with held(path, "BEGIN IMMEDIATE"):
        yield


@contextmanager
def exclusively_locked(path: Path) -> Iterator[None]:
    """Another program writes exclusively, as VACUUM does while it copies."""
    with held(path, "BEGIN EXCLUSIVE"):
        yield


@contextmanager
def being_changed(path: Path) -> Iterator[None]:
    """Another program changes rows, and has not committed."""
    with held(path, "BEGIN", "UPDATE task SET user_input = user_input"):
        yield


@contextmanager
def without_log(path: Path) -> Iterator[None]:
    """Somebody has deleted the write-ahead log and its index."""
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink()
    yield


@contextmanager
def renamed(path: Path) -> Iterator[None]:
    """The database has another name for a while."""
    other = path.with_name("moved.db")
    path.rename(other)
    yield
    other.rename(path)


@contextmanager
def folder_renamed(path: Path) -> Iterator[None]:
    """The folder has another name for a while."""
    folder, other = path.parent, path.parent.with_name("moved")
    folder.rename(other)
    yield
    other.rename(folder)


@contextmanager
def log_renamed(path: Path) -> Iterator[None]:
    """The write-ahead log has another name for a while, and another file its own."""
    log, other = path.with_name(f"{path.name}-wal"), path.with_name("moved-wal")
    log.rename(other)
    log.touch()
    yield
    other.replace(log)


@contextmanager
def deleted(path: Path) -> Iterator[None]:
    """The database is deleted."""
    path.unlink()
    yield


@contextmanager
def folder_deleted(path: Path) -> Iterator[None]:
    """The folder is deleted with all that is in it."""
    shutil.rmtree(path.parent)
    yield


@contextmanager
def replaced(path: Path) -> Iterator[None]:
    """Another database is moved to its place."""
    other = path.with_name("other.db")
    _make_other(other, "DELETE")
    other.replace(path)
    yield


@contextmanager
def overwritten(path: Path) -> Iterator[None]:
    """A backup is copied over it: the inode stays, the content does not."""
    other = path.with_name("other.db")
    _make_other(other, "DELETE")
    _overwrite(path, other.read_bytes())
    yield


@contextmanager
def overwritten_with_log(path: Path) -> Iterator[None]:
    """A database of another program, which also has a write-ahead log, is copied over it."""
    other = path.with_name("other.db")
    _make_other(other, "WAL", application=1)
    _overwrite(path, other.read_bytes())
    yield


@contextmanager
def emptied(path: Path) -> Iterator[None]:
    """It is truncated."""
    path.write_bytes(b"")
    yield


def _overwrite(path: Path, content: bytes) -> None:
    """Put ``content`` into the file; at no time is it shorter, as if it had been cut off."""
    with path.open("r+b", buffering=0) as file:
        file.write(content)
        file.truncate()


def _make_other(path: Path, mode: str, application: int = APPLICATION) -> None:
    db = sqlite3.connect(path)
    db.execute(f"PRAGMA journal_mode={mode}")
    db.execute(f"PRAGMA application_id={application}")
    db.execute("CREATE TABLE other (x)")
    db.commit()
    db.close()


LOCKED: Final[dict[str, Condition]] = {
    "write lock": write_locked,
    "exclusive lock": exclusively_locked,
    "uncommitted change": being_changed,
}
MOVED: Final[dict[str, Condition]] = {
    "renamed for a while": renamed,
    "folder renamed for a while": folder_renamed,
    "log replaced for a while": log_renamed,
}
LASTING: Final[dict[str, Condition]] = {
    "deleted": deleted,
    "folder deleted": folder_deleted,
    "replaced": replaced,
    "overwritten by a backup": overwritten,
    "overwritten by another program's": overwritten_with_log,
    "truncated": emptied,
}
