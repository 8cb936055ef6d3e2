"""P12: what one principal sends and queues does not starve another."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agentsrv.bench.figures import percentile
from agentsrv.bench.machine import resident
from agentsrv.server.limits import DEFAULT_COMMAND_RATE
from agentsrv.settings import Settings
from tests.faults.clients import Answers
from tests.faults.conftest import Ledger
from tests.support.measure import MIB, Watch, needs_proc
from tests.support.principals import ADA_KEY, BOB_KEY, BOTH
from tests.support.server_process import ServerProcess
from tests.support.wire import Wire

pytestmark = [pytest.mark.faults, needs_proc]

LONG = (pytest.mark.soak, pytest.mark.timeout(600))
APPLICATION = "tests.faults.turns_app:app"
SLOTS = 8
QUEUED = 1000  # tasks of the flooding principal
MAX_GROWTH = 24 * MIB  # of the server's memory, by the flood: what waits in 20 connections
CREATE = {"command": "create", "execute": True}
LASTING = CREATE | {"task_description": "words words words", "subscribe": False}  # 0.6 s
SHORT = CREATE | {"task_description": "finish"}


@contextmanager
def flooding(port: int, seconds: float) -> Iterator[dict[str, float]]:
    """Flood from another process for so long; what became of it is there behind the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.faults.flooding", str(port), ADA_KEY, str(seconds)],
        stdout=subprocess.PIPE,
        text=True,
    )
    told: dict[str, float] = {}
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "flooding\n"
        yield told
        told |= json.loads(process.stdout.readline())
    finally:
        process.kill()
        process.communicate()


def queue_many(port: int) -> None:
    """Queue more than the slots take, in one go."""
    with Wire(port, token=ADA_KEY, timeout=60) as wire:
        for number in range(QUEUED):
            wire.send({**LASTING, "id": number})
        left = QUEUED
        for body in wire.bodies():
            frame = json.loads(body)
            assert frame["type"] != "error", frame
            left -= frame["type"] == "reply"
            if not left:
                return


def first_task(port: int) -> tuple[str, float]:
    """Run a task as bob; return its id, and how many seconds it took until it started."""
    started = 0.0
    with Wire(port, token=BOB_KEY, timeout=60) as wire:
        before = time.perf_counter()
        task_id = wire.ask(SHORT)["task_id"]
        for body in wire.bodies():
            frame = json.loads(body)
            if frame.get("event_type") == "task_started":
                started = time.perf_counter() - before
            if frame.get("event_type") == "task_completed":
                break
    return task_id, started


def claimed_before(turns: Path, task_id: str) -> int:
    """How many of ada's tasks were claimed between the queueing and the claim of bob's."""
    lines = [line.split() for line in turns.read_text().splitlines()]
    first, last = lines.index(["queued", "bob", task_id]), lines.index(["claimed", "bob", task_id])
    between = lines[first:last]
    waited = {task for what, owner, task in lines[:first] if (what, owner) == ("queued", "ada")}
    waited -= {task for what, _, task in lines[:first] if what == "claimed"}
    assert len(waited) > SLOTS, "the others' queue was empty"
    return sum((what, owner) == ("claimed", "ada") for what, owner, _ in between)


@pytest.mark.parametrize(
    "seconds", [pytest.param(2.0, id="short"), pytest.param(30.0, id="long", marks=LONG)]
)
def test_a_flood_by_one_principal_does_not_starve_another(
    seconds: float, tmp_path: Path, ledger: Ledger
):
    """Beside 10,000 commands a second and 1,000 tasks, another is served as ever."""
    server = ServerProcess(
        tmp_path, APPLICATION, f"--concurrency={SLOTS}", f"--principal-running={QUEUED}",
        environment={"AGENTSRV_API_KEYS": BOTH, "TURNS": str(tmp_path / "turns")},
    )  # fmt: skip
    server.start()
    try:
        task_id, alone = first_task(server.port)
        ask = {"command": "status", "task_id": task_id}
        with Answers(server.port, ask, token=BOB_KEY) as calm:
            time.sleep(seconds)
        queue_many(server.port)
        with (
            Watch(lambda: resident(server.pid)) as memory,
            flooding(server.port, seconds) as told,
            Answers(server.port, ask, token=BOB_KEY) as beside,
        ):
            time.sleep(seconds / 2)
            task_id, started = first_task(server.port)
            time.sleep(seconds / 2)
    finally:
        status = server.stop()
    passed = claimed_before(tmp_path / "turns", task_id)
    most = Settings().command_burst + DEFAULT_COMMAND_RATE * (told["seconds"] + 1)
    ledger.record(
        "P12",
        faults={
            "commands offered a second": round(told["offered"] / told["seconds"]),
            "tasks queued": QUEUED,
        },
        checked={
            "of the flood served": told["served"],
            "refused": told["refused"],
            "others refused": calm.refused + beside.refused,
            "others' p50 ms without": round(percentile(calm.seconds, 0.5) * 1000, 2),
            "with": round(percentile(beside.seconds, 0.5) * 1000, 2),
            "p99 ms without": round(percentile(calm.seconds, 0.99) * 1000, 2),
            "p99 with": round(percentile(beside.seconds, 0.99) * 1000, 2),
            "another's task starts after ms without": round(alone * 1000, 1),
            "behind the 1,000": round(started * 1000, 1),
            "tasks that were claimed before it": passed,
            "MiB of memory": round(memory.growth / MIB, 1),
        },
        violations=(status != 0)
        + calm.refused
        + beside.refused
        + (passed > 1)
        + (told["served"] > most)
        + (not told["refused"])
        + (memory.growth > MAX_GROWTH),
    )
