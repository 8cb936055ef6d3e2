"""Many tasks in processes, with cancels, time-outs and kills at random: nothing is left of them."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import uuid
from contextlib import suppress
from pathlib import Path

import pytest

from agentsrv.client import Client
from tests.faults.conftest import Ledger
from tests.integration.agents.isolation.test_process_function import MARK, marked, until
from tests.support.server_process import ServerProcess

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc"),
]
KINDS = ["return"] * 5 + ["cancel"] * 2 + ["time out", "kill", "exit"]
CONCURRENT = 12


def descriptors(pid: int) -> int:
    """How many the process has open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def kill_fork_server(server: int) -> int:
    """Kill the server's only child; return how many there were."""
    found = 0
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            if entry.read_text().rpartition(")")[2].split()[1] == str(server):
                os.kill(int(entry.parent.name), signal.SIGKILL)
                found += 1
    return found


@pytest.mark.parametrize(
    ("tasks", "seed"), [(100, 1), pytest.param(1000, 2, marks=pytest.mark.soak)]
)
async def test_nothing_is_left_of_many_tasks(
    tasks: int, seed: int, tmp_path: Path, ledger: Ledger
) -> None:
    """Each ends as it should, none sees another's state, no process, descriptor or file is left."""
    chance = random.Random(seed)
    mark = uuid.uuid4().hex
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    environment = {MARK: mark, "TMPDIR": str(temporary)}
    server = ServerProcess(
        tmp_path, "tests.faults.process_app:app", "--concurrency=16", environment=environment
    )
    server.start()
    wrong: list[str] = []
    killed = 0
    try:
        async with Client(server.url) as client:

            async def one(number: int, kind: str, delay: float) -> None:
                params = {"number": number, "kind": kind}
                created = await client.start("x", agent="work", params=params)
                task = created.id
                if kind == "cancel":
                    await asyncio.sleep(delay)
                    await client.task(task).cancel()
                last = [record async for record in client.task(task).events()][-1]
                output, stopped = last.data.get("final_output"), last.data.get("stopped")
                if (output != str(number)) if kind != "cancel" else (stopped is not True):
                    wrong.append(f"{number} {kind}: {last.event_type} {last.data}")

            await one(-1, "return", 0)
            before = descriptors(server.pid)
            running: set[asyncio.Task[None]] = set()
            for number in range(tasks):
                kind = KINDS[number % len(KINDS)]
                if number == tasks // 2:  # not both at once: see the theory of operation
                    await asyncio.gather(*running)
                if number < tasks // 2:
                    kind = kind.replace("kill", "kill parent")
                elif chance.random() < 0.02:
                    killed += kill_fork_server(server.pid)
                running.add(asyncio.create_task(one(number, kind, chance.random() / 2)))
                if len(running) >= CONCURRENT:
                    _, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.gather(*running)
            await one(-2, "return", 0)
            left = [f"{pid} {line[-40:]}" for pid, line in marked(mark).items()]
            assert len(left) == 2, left  # the server and the fork server
            after = descriptors(server.pid)
    finally:
        code = server.stop()
    assert wrong == []
    assert after == before
    assert code == 0
    await until(lambda: not marked(mark))
    assert not list(temporary.iterdir())
    assert '"logger":"asyncio"' not in server.log.read_text()
    ledger.record(
        "P6, P10",
        faults={kind: tasks * KINDS.count(kind) // len(KINDS) for kind in KINDS[5:]}
        | {"fork servers killed": killed},
        checked={"tasks": tasks},
        violations=len(wrong),
    )
