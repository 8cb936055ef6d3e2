"""Copies of a store: under load from outside, of what a crash left behind, and what is refused."""

from __future__ import annotations

import itertools
import json
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Self

import pytest

from agentsrv.errors import ConfigurationError, UnavailableError
from agentsrv.store.sqlite.backup import back_up
from agentsrv.store.sqlite.inspect import open_to_read
from tests.support.server_process import ServerProcess
from tests.support.wire import Wire

APP = "tests.faults.busy_app:app"
COPIES = 3
ENDS = {"task_completed", "task_failed", "task_cancelled"}
CREATE = {"command": "create", "task_description": "x", "execute": True}


class Load:
    """Tasks, one behind the other, on a connection of its own; remembers each event that it saw."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.seen: list[tuple[str, int]] = []
        self.ended = threading.Semaphore(0)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        with Wire(self._port) as wire:
            for number in itertools.count():
                wire.send(CREATE | {"idempotency_key": f"k{number}"})
                for body in wire.bodies():
                    frame = json.loads(body)
                    if frame["type"] == "event":
                        self.seen.append((frame["task_id"], frame["seq"]))
                    if frame.get("event_type") in ENDS:
                        break
                self.ended.release()
                if self._stop.is_set():
                    return


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    """With a store in a folder of its own."""
    process = ServerProcess(tmp_path, APP)
    process.start()
    yield process
    process.kill()


def logs(process: ServerProcess, tasks: set[str]) -> dict[str, list[dict[str, Any]]]:
    """The log of each task, when it has ended."""
    found: dict[str, list[dict[str, Any]]] = {}
    with Wire(process.port) as wire:
        for task in tasks:
            wire.send({"command": "subscribe", "task_id": task})
            found[task] = []
            for body in wire.bodies():
                frame = json.loads(body)
                if frame["type"] == "event" and frame["task_id"] == task:
                    found[task].append(frame)
                    if frame["event_type"] in ENDS:
                        break
    return found


@pytest.mark.timeout(300)
def test_a_copy_under_load_has_all_that_was_told_before_it(server, tmp_path):
    """A server goes on from it, and the one that was copied has not noticed."""
    store = tmp_path / "agentsrv.db"
    told = {}
    with Load(server.port) as load:
        for number in range(COPIES):
            assert load.ended.acquire(timeout=60)
            before = list(load.seen)
            folder = tmp_path / f"restored{number}"
            folder.mkdir()
            copied = subprocess.run(
                [sys.executable, "-m", "agentsrv", "backup", folder / "agentsrv.db",
                 f"--store=sqlite:///{store}"],
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            assert copied.returncode == 0, copied.stderr
            assert "tasks: " in copied.stdout
            told[folder] = before
    assert server.stop() == 0
    for folder, before in told.items():
        assert [path.name for path in folder.iterdir()] == ["agentsrv.db"]
        restored = ServerProcess(folder, APP)
        restored.start()
        try:
            found = logs(restored, {task for task, _ in before})
        finally:
            assert restored.stop() == 0
        for task, log in found.items():
            assert [event["seq"] for event in log] == list(range(1, len(log) + 1)), task
        assert {(task, event["seq"]) for task, log in found.items() for event in log} >= {*before}
    with closing(sqlite3.connect(store)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_what_a_crash_left_in_the_log_is_in_the_copy(server, tmp_path):
    """Also where the store itself has none of it yet."""
    with Load(server.port) as load:
        assert load.ended.acquire(timeout=60)
    server.kill()
    assert (tmp_path / "agentsrv.db-wal").stat().st_size > 0
    found = back_up(tmp_path / "agentsrv.db", tmp_path / "copy.db")
    assert found.tasks == len({task for task, _ in load.seen})
    with closing(sqlite3.connect(tmp_path / "copy.db")) as db:
        (events,) = db.execute("SELECT count(*) FROM event").fetchone()
    assert events > 0
    assert stat.S_IMODE((tmp_path / "copy.db").stat().st_mode) == 0o600


def test_what_is_no_store_or_no_new_file_is_refused(tmp_path, server):
    """And nothing is left behind, nor changed."""
    server.stop()
    store, there = tmp_path / "agentsrv.db", tmp_path / "there"
    there.write_text("mine")
    other = tmp_path / "other.db"
    with closing(sqlite3.connect(other)) as db:
        db.execute("CREATE TABLE a (b)")
    before = sorted(tmp_path.iterdir())
    for source, target, sentence in (
        (store, there, "there exists; expected a name for a new file"),
        (tmp_path / "none.db", tmp_path / "new", "there is no store"),
        (other, tmp_path / "new", "another program's database"),
        (there, tmp_path / "new", "cannot be read"),
    ):
        with pytest.raises(ConfigurationError, match=sentence):
            back_up(source, target)
    with pytest.raises(OSError, match="No such file"):
        back_up(store, tmp_path / "nowhere" / "new")
    assert sorted(tmp_path.iterdir()) == before
    assert there.read_text() == "mine"


def test_a_damaged_store_gives_no_copy(tmp_path, server):
    """Where the pages of its tree are no pages any more."""
    with Load(server.port) as load:
        assert load.ended.acquire(timeout=60)
    server.stop()
    store = tmp_path / "agentsrv.db"
    data = bytearray(store.read_bytes())
    for place in range(8 * 4096, len(data) - 4096, 4096):
        data[place : place + 64] = b"\xff" * 64
    store.write_bytes(data)
    with pytest.raises(UnavailableError, match=r"damaged|cannot be copied"):
        back_up(store, tmp_path / "new")
    assert not list(tmp_path.glob("new*"))


def test_a_server_that_starts_meanwhile_is_noticed(tmp_path, server, monkeypatch):
    """It was read as a file that nobody writes."""
    server.stop()
    store = tmp_path / "agentsrv.db"

    def slowly(path: Path) -> sqlite3.Connection:
        reading = open_to_read(path)
        server.start()
        return reading

    monkeypatch.setattr("agentsrv.store.sqlite.backup.open_to_read", slowly)
    with pytest.raises(UnavailableError, match="started meanwhile"):
        back_up(store, tmp_path / "new")
    assert not list(tmp_path.glob("new*"))


@pytest.mark.parametrize("store", ["memory:", "nonsense"])
def test_only_a_file_can_be_copied(tmp_path, store):
    """By the command line, in one sentence."""
    command = [sys.executable, "-m", "agentsrv", "backup", tmp_path / "new", f"--store={store}"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "expected sqlite:///FILE" in result.stderr
    assert "Traceback" not in result.stderr
