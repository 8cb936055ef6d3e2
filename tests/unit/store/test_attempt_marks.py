"""The marks file: what a process leaves of its attempts, whatever others do to the file."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from agentsrv.store.attempt_marks import SLOT_SIZE, SLOTS_PER_EXTENSION, AttemptMarks, Mark
from agentsrv.store.queue import QueueLimits
from agentsrv.store.sqlite.log import SqliteLog

HARM: dict[str, Callable[[Path], object]] = {
    "nothing": lambda path: path.stat(),
    "truncated": lambda path: os.truncate(path, 0),
    "cut within a slot": lambda path: os.truncate(path, SLOT_SIZE + 7),
    "overwritten": lambda path: path.write_bytes(b"\xff" * 10),
    "longer": lambda path: os.truncate(path, 3 * SLOTS_PER_EXTENSION * SLOT_SIZE),
}


def left_behind(path: Path) -> list[Mark]:
    """What the next process finds."""
    marks = AttemptMarks()
    try:
        return marks.open(path)
    finally:
        marks.close()


@pytest.mark.parametrize("harm", HARM)
def test_another_program_may_change_the_file(harm, tmp_path):
    """The marks that are made and taken away afterwards are right, and nothing faults."""
    path = tmp_path / "db.running"
    marks = AttemptMarks()
    assert marks.open(path) == []
    marks.clear()
    marks.leave(marks.enter("early", "a", 1))
    slots = [marks.enter("t", f"s{number}", number) for number in range(SLOTS_PER_EXTENSION // 2)]
    HARM[harm](path)
    for slot in slots:
        marks.leave(slot)
    later = [marks.enter("later", "a", number) for number in range(SLOTS_PER_EXTENSION + 1)]
    assert -1 not in later
    assert len(set(later)) == SLOTS_PER_EXTENSION + 1
    for slot in later[1:]:
        marks.leave(slot)
    marks.close()
    assert Mark("later", "a", 0) in left_behind(path)
    assert [mark for mark in left_behind(path) if mark.task_id in ("t", "early")] == []


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_a_disk_that_fails_stops_nothing(error, tmp_path, monkeypatch):
    """The attempts run without marks; marks are made again when the disk takes them."""
    marks = AttemptMarks()
    marks.open(tmp_path / "db.running")
    marks.clear()
    kept = marks.enter("kept", "a", 1)

    def fail(*_: object) -> int:
        raise OSError(error, os.strerror(error))

    with monkeypatch.context() as failing:
        failing.setattr(os, "pwrite", fail)
        failing.setattr(os, "ftruncate", fail)
        assert marks.enter("t", "a", 1) == -1
        marks.leave(kept)
        marks.leave(-1)
    assert marks.enter("t", "a", 2) >= 0
    with monkeypatch.context() as failing:
        failing.setattr(os, "ftruncate", fail)
        marks.announce_stop()
    assert marks.enter("t", "a", 3) == -1
    marks.close()


def test_a_declared_stop_leaves_nothing(tmp_path):
    """Also where the table had grown."""
    marks = AttemptMarks()
    marks.open(tmp_path / "db.running")
    marks.clear()
    for number in range(SLOTS_PER_EXTENSION + 1):
        marks.enter("t", "a", number)
    marks.announce_stop()
    marks.close()
    assert left_behind(tmp_path / "db.running") == []


@pytest.mark.parametrize("first", ["path", "link", "relative", "folder"])
@pytest.mark.parametrize("second", ["path", "link", "relative", "folder"])
def test_each_name_of_a_database_has_the_same_marks(first, second, tmp_path, monkeypatch):
    """They are beside the database itself, as SQLite's own files are."""
    data = tmp_path / "data"
    data.mkdir()
    (tmp_path / "link.db").symlink_to(data / "agentsrv.db")
    (tmp_path / "other").symlink_to(data)
    monkeypatch.chdir(data)
    names = {
        "path": data / "agentsrv.db",
        "link": tmp_path / "link.db",
        "relative": Path("agentsrv.db"),
        "folder": tmp_path / "other" / "agentsrv.db",
    }
    log = SqliteLog(names[first], QueueLimits())
    log.open()
    log.marks.enter("t1", "a", 1)
    log.close()
    assert left_behind(data / "agentsrv.db.running") == [Mark("t1", "a", 1)]
    again = SqliteLog(names[second], QueueLimits())
    again.open()
    again.close()
    assert left_behind(data / "agentsrv.db.running") == []
    assert {path.name for path in tmp_path.iterdir()} == {"data", "link.db", "other"}


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_a_file_that_never_ends_is_refused(make, tmp_path):
    """To read it would hold the start, and every stop."""
    path = tmp_path / "db.running"
    make(path)
    marks = AttemptMarks()
    with pytest.raises(OSError, match="not a regular file"):
        marks.open(path)
    marks.close()
