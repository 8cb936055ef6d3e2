import asyncio
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from agentsrv.models.states import TaskStatus
from agentsrv.store.sqlite.store import SqliteStore
from tests.support.store_tasks import head_of, log_of, numbers

ROOT = Path(__file__).parents[2]


@pytest.mark.faults
@pytest.mark.parametrize(
    "kills", [20, pytest.param(1000, marks=[pytest.mark.soak, pytest.mark.timeout(1800)])]
)
def test_what_was_acknowledged_survives_a_kill(tmp_path, kills):
    """After each kill -9 of a writing process the file has everything that was acknowledged."""
    path = tmp_path / "agentsrv.db"
    seeded = random.Random(20)
    acknowledged = lost = ghosts = 0
    with subprocess.Popen(
        [sys.executable, "-m", "tests.faults.sqlite_killed", str(path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        for _ in range(kills):
            parent.stdin.write("go\n")
            parent.stdin.flush()
            told: dict[str, int] = {}
            name, child = parent.stdout.readline().split()
            assert name == "pid"
            after = seeded.randrange(1, 300)  # acknowledged writes
            for line in iter(parent.stdout.readline, "dead\n"):
                assert line, "the writer ended by itself"
                name, number = line.split()
                told[name] = int(number)
                acknowledged += 1
                after -= 1
                if after == 0:
                    os.kill(int(child), signal.SIGKILL)
            found = asyncio.run(reopened(path, told))
            lost += sum(max(0, seq - found[task_id]) for task_id, seq in told.items())
            ghosts += sum(found[task_id] > seq for task_id, seq in told.items())
        parent.stdin.close()
        assert parent.wait(30) == 0
    print(f"\nkills {kills}, acknowledged {acknowledged}, lost {lost}; durable unheard {ghosts}")
    assert acknowledged > kills
    assert lost == 0


async def reopened(path: Path, told: dict[str, int]) -> dict[str, int]:
    """The length of each task's log, which has no hole and is where its head says."""
    store = SqliteStore(path)
    await store.open()
    try:
        found = {}
        for task_id in told:
            log = await log_of(store, task_id)
            assert log == numbers(1, len(log))
            head = await head_of(store, task_id)
            assert head.seq == len(log)
            assert head.status is (TaskStatus.RUNNING if len(log) > 1 else TaskStatus.PENDING)
            assert await store.find_key("ann", task_id) == task_id
            found[task_id] = len(log)
        assert store._file._db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return found
    finally:
        await store.close()
