"""The plug is pulled: what was seen is there, what was done is not done again."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect

from tests.faults.conftest import Ledger
from tests.faults.load import NO_SERVER
from tests.faults.slow_app import TRACE
from tests.support.measure import eventually
from tests.support.server_process import ServerProcess

pytestmark = pytest.mark.faults
TASKS = 10
Events = dict[str, dict[int, dict[str, Any]]]


async def watch(url: str, seen: Events, *, create: int) -> None:
    """Create tasks or follow those that were seen; return when all have ended or the server has."""
    with suppress(*NO_SERVER):
        await follow(url, seen, create=create)


async def follow(url: str, seen: Events, *, create: int) -> None:
    """Keep all events of the tasks until each has ended."""
    async with connect(url) as socket:
        for number in range(create):
            command = {"command": "create", "id": number, "task_description": "x", "execute": True}
            await socket.send(json.dumps(command))
        for task, events in seen.items():
            command = {"command": "subscribe", "task_id": task, "after_seq": max(events, default=0)}
            await socket.send(json.dumps(command))
        async for message in socket:
            frame = json.loads(message)
            if frame["type"] == "reply" and frame["command"] == "create":
                seen.setdefault(frame["task_id"], {})
            elif frame["type"] == "event":
                events = seen.setdefault(frame["task_id"], {})
                assert frame["seq"] not in events, f"doubled: {frame}"
                events[frame["seq"]] = frame
            if len(seen) == TASKS and all(map(ended, seen.values())):
                return


def ended(events: dict[int, dict[str, Any]]) -> bool:
    """Whether the last event that was seen is the task's last."""
    return bool(events) and events[max(events)]["event_type"] == "task_completed"


async def test_tasks_go_on_after_kill_9(tmp_path: Path, ledger: Ledger) -> None:
    """Ten tasks, the server killed three times: nothing seen is lost, no finished step runs again."""
    trace = tmp_path / "trace"
    server = ServerProcess(tmp_path, "tests.faults.slow_app:app", environment={TRACE: str(trace)})
    seen: Events = {}
    kills = 0
    server.start()
    watching = asyncio.create_task(watch(server.url, seen, create=TASKS))
    try:
        assert await asyncio.to_thread(eventually, lambda: len(seen) == TASKS, 60)
        for _ in range(3):
            await asyncio.sleep(0.25)
            await asyncio.to_thread(server.kill)
            kills += 1
            await watching
            await asyncio.to_thread(server.start)
            watching = asyncio.create_task(watch(server.url, seen, create=0))
        async with asyncio.timeout(60):
            await watching
        log = {}
        async with connect(server.url) as socket:
            await socket.recv()
            for task in seen:
                log[task] = await whole_log(socket, task)
    finally:
        assert await asyncio.to_thread(server.stop) == 0
    assert len(seen) == TASKS
    lost = 0
    for task, events in seen.items():
        assert sorted(events) == list(range(1, len(events) + 1))
        lost += sum(log[task][seq - 1] != event for seq, event in events.items())
        kinds = [event["event_type"] for event in log[task]]
        assert kinds.count("task_completed") == 1
        assert kinds[-1] == "task_completed"
        completed = Counter(
            event["data"]["step_id"]
            for event in log[task]
            if event["event_type"] == "step_completed"
        )
        assert completed == {"a": 1, "b": 1, "c": 1}
        final = log[task][-1]["data"]["final_output"]
        assert final == "".join(f"c:{number} " for number in range(10))
    # An attempt whose end was not yet journaled when the plug was pulled may end a second time.
    attempts = Counter(trace.read_text().split())
    assert len(attempts) == 3 * TASKS
    assert max(attempts.values()) <= 1 + kills
    told = sum(map(len, seen.values()))
    ledger.record(
        "P1, P2, P5",
        faults={"kills": kills},
        checked={"tasks": TASKS, "events": told, "lost": lost},
        violations=lost,
    )


async def whole_log(socket: Any, task: str) -> list[dict[str, Any]]:
    """All events of a task that has ended."""
    await socket.send(json.dumps({"command": "subscribe", "task_id": task}))
    events = []
    while True:
        frame = json.loads(await socket.recv())
        if frame["type"] == "event":
            events.append(frame)
        if frame["type"] == "caught_up":
            return events
