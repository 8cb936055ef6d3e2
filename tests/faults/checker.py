"""Checks of whole logs: what must hold in each of them, however often the server was killed."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson

from agentsrv.errors import AgentsrvError
from agentsrv.models import events as e
from agentsrv.models.task import TaskState
from agentsrv.store.replay import MIN_SNAPSHOT_EVENTS
from agentsrv.store.sqlite.schema import SEQ_BITS
from tests.faults import busy_app


@dataclass(frozen=True, slots=True)
class Stored:
    """A task as it lies in the store's file."""

    task_id: str
    status: str
    seq: int
    user_input: str
    state: bytes | None
    log: Sequence[bytes]


class Violations(list[str]):
    """Broken promises, each in a sentence."""

    def expect(self, holds: object, sentence: str) -> None:
        """Add ``sentence`` unless what it denies ``holds``."""
        if not holds:
            self.append(sentence)

    def __str__(self) -> str:
        return "".join(f"\n  {sentence}" for sentence in self[:20])


def read_store(path: Path) -> dict[str, Stored]:
    """All tasks in the file of a server that has ended, with their logs."""
    db = sqlite3.connect(path)
    try:
        if not db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            return {}  # it ended before it had made the schema
        logs: dict[int, list[bytes]] = defaultdict(list)
        rows = db.execute("SELECT place, body FROM event ORDER BY place")
        for place, body in rows:
            logs[place >> SEQ_BITS] += body.split(b"\n")
        rows = db.execute("SELECT id, task_id, status, seq, user_input, state FROM task")
        return {
            task_id: Stored(task_id, status, seq, user_input, state, logs.get(number, []))
            for number, task_id, status, seq, user_input, state in rows
        }
    finally:
        db.close()


def read_copy(folder: Path) -> dict[str, Stored]:
    """Read a store that stays as it is, with its write-ahead log."""
    if not (folder / "agentsrv.db").exists():
        return {}
    with tempfile.TemporaryDirectory() as copy:
        for file in folder.glob("agentsrv.db*"):
            shutil.copy(file, copy)
        return read_store(Path(copy) / "agentsrv.db")


def is_intact(path: Path) -> bool:
    """Whether SQLite finds nothing wrong with the file, and no event without its task."""
    db = sqlite3.connect(path)
    try:
        verdict = db.execute("PRAGMA integrity_check").fetchall()
        orphans = db.execute(
            f"SELECT count(*) FROM event WHERE place >> {SEQ_BITS} NOT IN (SELECT id FROM task)"  # noqa: S608
        )
        return verdict == [("ok",)] and orphans.fetchone() == (0,)
    except sqlite3.DatabaseError:  # so damaged that it cannot be examined
        return False
    finally:
        db.close()


def check_log(stored: Stored, *, ended: bool = True, output: str | None = None) -> Violations:
    """What is wrong with one task's log; with ``ended``, its terminal event is expected.

    A completed task's ``output`` is by default the one of the busy application.
    """
    wrong = Violations()
    task = stored.task_id
    records = [e.decode(body) for body in stored.log]
    found = [record.seq for record in records]
    wrong.expect(found == [*range(1, len(found) + 1)], f"{task}: a hole or a double: {found}")
    wrong.expect(stored.seq == len(found), f"{task}: at {stored.seq}, but {len(found)} events")
    wrong.expect({record.task_id for record in records} == {task}, f"{task}: a foreign event")
    terminal = [record.seq for record in records if record.is_terminal]
    wrong.expect(terminal in ([len(found)], []), f"{task}: terminal events {terminal}")
    wrong.expect(terminal or not ended, f"{task}: stuck in {stored.status} after {found[-1:]}")
    try:
        state = TaskState.fold(task, stored.log)
    except AgentsrvError as error:
        wrong.append(f"{task}: {error}")
        return wrong
    wrong.expect(state.status == stored.status, f"{task}: {stored.status}, log: {state.status}")
    if terminal and len(found) >= MIN_SNAPSHOT_EVENTS:
        snapshot = orjson.loads(stored.state or b"null")
        wrong.expect(snapshot == state.snapshot(), f"{task}: the kept snapshot is another")
    wrong += check_steps(task, records)
    if state.status == "completed":
        expected = busy_app.final_output(task, state.agent) if output is None else output
        whole = state.final_output == expected
        wrong.expect(whole, f"{task}: final_output is {state.final_output!r}")
    return wrong


def check_steps(task: str, records: Iterable[e.Record]) -> Violations:
    """Whether steps complete once, attempts count on, and text has neither hole nor double."""
    wrong = Violations()
    attempts: Counter[str] = Counter()
    written: Counter[tuple[str, int]] = Counter()
    settled: set[str] = set()
    needs: dict[str, set[str]] = {}
    for record in records:
        data, kind = record.data, record.event_type
        if kind == "plan_created":
            wrong.expect(not needs, f"{task}: planned twice")
            needs = {step["step_id"]: set(step["depends_on"]) for step in data["steps"]}
        if "step_id" not in data:
            continue
        step = data["step_id"]
        wrong.expect(step not in settled, f"{task}/{step}: {kind} after its end")
        if kind == "step_started":
            attempts[step] += 1
            wrong.expect(data["attempt"] == attempts[step], f"{task}/{step}: odd {dict(data)}")
            wrong.expect(needs[step] <= settled, f"{task}/{step}: started too early")
        elif kind == "step_lost":  # also of an attempt whose start was not committed
            wrong.expect(data["attempt"] - attempts[step] in (0, 1), f"{task}/{step}: odd {data}")
            attempts[step] = data["attempt"]
        elif kind == "partial_output":
            key = step, data["attempt"]
            wrong.expect(data["offset"] == written[key], f"{task}/{step}: odd {dict(data)}")
            written[key] += len(data["output"])
        if kind in ("step_completed", "step_failed", "step_cancelled", "step_skipped"):
            settled.add(step)
    return wrong


def check_trace(trace: Path, stores: Mapping[str, Stored]) -> tuple[int, Violations]:
    """Whether attempts began only as the logs allow; return also how many began.

    An attempt whose ``step_started`` was lost with the server begins once more under its
    number, but none begins behind the attempt that completed. All have one key.
    """
    wrong = Violations()
    completed = {
        (task, record.data["step_id"]): record.data["attempt"]
        for task, stored in stores.items()
        for record in map(e.decode, stored.log)
        if record.event_type == "step_completed"
    }
    keys: dict[tuple[str, str], set[str]] = defaultdict(set)
    lines = trace.read_text().splitlines() if trace.exists() else []
    for line in lines:
        task, step, attempt, key = line.split()
        keys[task, step].add(key)
        last = completed.get((task, step), int(attempt))
        wrong.expect(int(attempt) <= last, f"{task}/{step}: attempt {attempt} after {last}")
    for step_of, found in keys.items():
        wrong.expect(len(found) == 1, f"{step_of}: more than one key: {found}")
    everything = [key for found in keys.values() for key in found]
    wrong.expect(len(set(everything)) == len(everything), "two steps share a key")
    return len(lines), wrong
