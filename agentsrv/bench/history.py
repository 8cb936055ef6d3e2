"""Probes of a store that has seen much: speed and start beside many events, and a long replay."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from agentsrv.bench import load
from agentsrv.bench.app import EVENTS, MESSAGE
from agentsrv.bench.capacity import ACTIVE, MIB
from agentsrv.bench.machine import resident
from agentsrv.bench.sizes import Bench
from agentsrv.bench.wire import EventCounter, command
from agentsrv.models import events as e
from agentsrv.models.states import TaskStatus
from agentsrv.server.auth.identity import ANONYMOUS
from agentsrv.store.base import Append, NewTask
from agentsrv.store.sqlite.store import SqliteStore

BATCH: Final = 500  # tasks, or events of one task, that are written at a time
LOOK: Final = 0.05  # seconds between two looks at the server's memory


async def stored(bench: Bench) -> None:
    """A server whose store holds the logs of ended tasks."""
    total = bench.sizes.widths.get(ACTIVE, 500)
    for count in bench.sizes.stored:
        await fill(bench.file, count // EVENTS)
        megabytes = bench.file.stat().st_size / 1e6
        async with bench.own.server() as target:
            await load.run(target, ACTIVE, total)
            runs = [await load.run(target, ACTIVE, total) for _ in range(bench.sizes.rounds)]
        key, label = f"stored.{count}", f"{count:,} events ({megabytes:,.0f} MB):"
        bench.report.add(f"{key}.start", f"{label} seconds to start", [target.started_in])
        rates = [run.tasks_per_second for run in runs]
        bench.report.add(f"{key}.tasks", f"{label} tasks/s, {ACTIVE} at a time", rates)


async def replay(bench: Bench) -> None:
    """The log of one ended task, read from its beginning by one client."""
    count = bench.sizes.replayed
    rates, growths = [], []
    task_id = await fill_one(bench.file, count)
    async with bench.own.server() as target:
        for _ in range(bench.sizes.rounds):
            client = await EventCounter().open(target)
            watch = asyncio.create_task(_peak(target.pid))
            before = time.perf_counter()
            client.send(command("subscribe", task_id=task_id))
            await client.until(count)
            rates.append(count / (time.perf_counter() - before))
            watch.cancel()
            growths.append(await watch / MIB)
            client.close()
    bench.report.add("replay.events", f"{count:,} events of one task: events/s", rates)
    if target.pid is not None:
        bench.report.add("replay.memory", "growth of the server meanwhile, MiB", growths)


async def fill(file: Path, tasks: int) -> None:
    """Make a store with so many completed tasks of ``EVENTS`` events, by the store itself."""
    store = SqliteStore(file)
    await store.open()
    for first in range(0, tasks, BATCH):
        ids = [f"{number:016x}" for number in range(first, min(first + BATCH, tasks))]
        await asyncio.gather(*(store.create(_new(task_id)) for task_id in ids))
        await asyncio.gather(*(store.append(_rest(task_id, 1, EVENTS)) for task_id in ids))
    await store.close()


async def fill_one(file: Path, events: int) -> str:
    """Make a store with one completed task of so many events; return its id."""
    task_id = f"{0:016x}"
    store = SqliteStore(file)
    await store.open()
    await store.create(_new(task_id))
    for last in range(1, events, BATCH):
        await store.append(_rest(task_id, last, min(last + BATCH, events), events))
    await store.close()
    return task_id


def _new(task_id: str) -> NewTask:
    return NewTask(
        task_id=task_id,
        owner=ANONYMOUS,
        status=TaskStatus.PENDING,
        user_input="measure",
        created_at=time.time(),
        spec=b'{"command":"create","task_description":"measure"}',
        events=[_encoded(task_id, 1, e.TaskCreated("measure", None, {}, {}))],
    )


def _rest(task_id: str, after: int, last: int, end: int = EVENTS) -> Append:
    """The events behind ``after`` up to ``last``; the task ends with number ``end``."""
    events = [
        _encoded(task_id, seq, e.StepProgress("step_001", 1, seq, end, MESSAGE))
        for seq in range(after + 1, last + 1)
    ]
    if last == end:
        events[-1] = _encoded(task_id, end, e.TaskCompleted("completed", "done", False, [], 0.1))  # noqa: FBT003
    status = TaskStatus.COMPLETED if last == end else TaskStatus.PENDING
    return Append(
        task_id=task_id,
        owner=ANONYMOUS,
        epoch=0,
        expected=after,
        events=events,
        status=status,
        at=time.time(),
    )


def _encoded(task_id: str, seq: int, event: e.Event) -> bytes:
    return e.encode(event, task_id, seq, e.format_timestamp(time.time()))


async def _peak(pid: int | None) -> float:
    """Bytes by which the process grew, at most, until this is cancelled."""
    if pid is None:
        return 0.0
    before = peak = resident(pid)
    with suppress(asyncio.CancelledError):
        while True:
            await asyncio.sleep(LOOK)
            peak = max(peak, resident(pid))
    return peak - before
