"""P8: a server that is stopped ends in time, and what it was doing goes on in its next life."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from agentsrv.client import Client
from tests.faults.clients import Reading
from tests.faults.conftest import Ledger
from tests.faults.streaming import PATIENT, Streams, account
from tests.support.server_process import ServerProcess
from tests.support.wire import ConnectionLost, Wire

pytestmark = pytest.mark.faults
DRAIN = 0.3  # seconds
GRACE = 0.5  # seconds
FEW = 3.0  # seconds beyond these two, where clients and agents behave
MORE = 12.0  # seconds where they do not: 5 for closing handshakes, 2 each for tasks and threads
PATIENCE = 25.0  # seconds after which a process that does not end is killed
AT_ONCE = 6
TASK = "words words words"
RESTARTS = 1012  # close code
LIMITS = ("--drain-timeout", str(DRAIN), "--cancel-grace", str(GRACE))


@dataclass
class Farewell:
    """What one client is told by a server that stops."""

    goaway: bool = False
    answer: str | None = None
    """To a task that came late; there is none where nothing ran that was waited for."""
    code: int | None = None

    @property
    def wrong(self) -> int:
        """How much of it was not as it should be."""
        accepted = self.answer not in (None, "shutting_down")
        return (not self.goaway) + accepted + (self.code != RESTARTS)


def hear(wire: Wire) -> Farewell:
    """Read until the server closes; when it says goaway, ask for one more task."""
    heard = Farewell()
    late = {"command": "create", "id": "late", "task_description": TASK, "execute": True}
    try:
        for body in wire.bodies():
            frame = json.loads(body)
            if frame["type"] == "goaway":
                heard.goaway = True
                wire.send(late)
            elif frame.get("id") == "late":
                heard.answer = frame.get("code", frame["type"])
    except ConnectionLost as lost:
        heard.code = lost.code
        wire.close()
    return heard


async def stop(server: ServerProcess) -> tuple[float, int, Farewell]:
    """SIGTERM; how many seconds it took, the exit status, and what a client was told."""
    with await asyncio.to_thread(Wire, server.port, timeout=30) as wire:
        wire.ask({"command": "ping"})
        hearing = asyncio.create_task(asyncio.to_thread(hear, wire))
        started = time.monotonic()
        try:
            status = await asyncio.to_thread(server.stop, PATIENCE)
        except subprocess.TimeoutExpired:
            status = -signal.SIGKILL  # it would have gone on for ever
        took = time.monotonic() - started
        return took, status, await hearing


@pytest.mark.slow
@pytest.mark.parametrize(
    ("restarts", "hard"),
    [
        pytest.param(3, 2, id="short"),
        pytest.param(100, 5, id="long", marks=[pytest.mark.soak, pytest.mark.timeout(1800)]),
    ],
)
async def test_restarts_under_load_miss_and_double_nothing(
    restarts, hard, tmp_path: Path, ledger: Ledger
):
    """SIGTERM again and again; at each ``hard`` time with agents and a client that do not stop."""
    server = ServerProcess(tmp_path, "tests.faults.pouring_app:app", *LIMITS)
    longest = {False: 0.0, True: 0.0}
    late = unwell = untold = refused = 0
    await asyncio.to_thread(server.start)
    try:
        async with Client(server.url, PATIENT) as client, asyncio.TaskGroup() as group:
            streams = Streams(client)
            async with streams.kept_up(TASK, AT_ONCE):
                for number in range(1, restarts + 1):
                    await streams.until_ended(AT_ONCE)
                    is_hard = number % hard == 0
                    with ExitStack() as stack:
                        if is_hard:
                            for agent in ("stubborn", "blocking"):
                                group.create_task(streams.run(agent))
                                times = number // hard
                                await streams.until_event(times, agent, "step_started")
                            halted = stack.enter_context(Reading(server.port, 1))
                            halted.follow([streams.streams[-1].task_id])
                            halted.stop()
                        took, status, heard = await stop(server)
                    longest[is_hard] = max(longest[is_hard], took)
                    late += took > DRAIN + GRACE + (MORE if is_hard else FEW)
                    unwell += status != 0
                    untold += heard.wrong
                    refused += heard.answer is not None
                    await asyncio.to_thread(server.start)
        with Wire(server.port) as wire:
            found = await asyncio.to_thread(account, wire, streams.streams)
    finally:
        assert await asyncio.to_thread(server.stop) == 0
    ledger.record(
        "P8",
        faults={"restarts": restarts, "with stuck agents and client": restarts // hard},
        checked={
            "tasks": found.tasks,
            "of them handed over": found.recovered,
            "events": found.events,
            "missed": found.missed,
            "doubled": found.doubled,
            "refused": refused,
            "late": late,
            "status not 0": unwell,
            "not told to clients": untold,
            "longest exit s": round(longest[False], 2),
            "with stuck ones": round(longest[True], 2),
        },
        violations=found.wrong + late + unwell + untold,
    )
    assert found.recovered > 0
    assert refused > 0


async def test_tasks_that_end_in_time_are_not_handed_over(tmp_path: Path, ledger: Ledger):
    """With a drain time-out longer than a task, its client sees it end before the close."""
    server = ServerProcess(
        tmp_path, "tests.faults.pouring_app:app", "--drain-timeout", "20", "--cancel-grace", "1"
    )

    def see_it_end() -> tuple[list[str], int | None]:
        types = []
        with Wire(server.port) as wire:
            wire.send({"command": "create", "task_description": TASK, "execute": True})
            try:
                for body in wire.bodies():
                    frame = json.loads(body)
                    types.append(frame.get("event_type", frame["type"]))
                    if types[-1] == "step_started" and types.count("step_started") == 1:
                        os.kill(server.pid, signal.SIGTERM)
            except ConnectionLost as lost:
                return types, lost.code
        raise AssertionError("the texts end by an exception")

    await asyncio.to_thread(server.start)
    try:
        started = time.monotonic()
        types, code = await asyncio.to_thread(see_it_end)
        status = await asyncio.to_thread(server.wait)
        took = time.monotonic() - started
    finally:
        server.kill()
    ledger.record(
        "P8",
        faults={"stops while a task runs": 1},
        checked={"exit s, with the task's end": round(took, 2), "events": len(types)},
        violations=sum(
            (
                types[-1] != "task_completed",
                types.count("goaway") != 1,
                "task_recovered" in types,
                code != RESTARTS,
                status != 0,
                took > FEW,
            )
        ),
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("agent", "count"), [("stubborn", 40), ("blocking", 40)], ids=["stubborn", "blocking"]
)
async def test_agents_that_never_stop_do_not_hold_the_exit(
    agent, count, tmp_path: Path, ledger: Ledger
):
    """More stuck tasks than the executor has threads: the process still ends in time."""
    server = ServerProcess(tmp_path, "tests.faults.pouring_app:app", *LIMITS)
    await asyncio.to_thread(server.start)
    try:
        async with Client(server.url, PATIENT) as client, asyncio.TaskGroup() as group:
            streams = Streams(client)
            for _ in range(count):
                group.create_task(streams.run(agent))
            await streams.until_event(count, agent, "step_started")
            took, status, heard = await stop(server)
            await asyncio.to_thread(server.start)
        with Wire(server.port) as wire:
            found = await asyncio.to_thread(account, wire, streams.streams)
    finally:
        server.kill()
    ledger.record(
        "P8",
        faults={f"tasks with a {agent} agent": count},
        checked={"exit s": round(took, 2), "missed": found.missed, "doubled": found.doubled},
        violations=found.wrong + heard.wrong + (status != 0) + (took > DRAIN + GRACE + MORE),
    )
