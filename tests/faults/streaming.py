"""A program that keeps tasks running over ``agentsrv.client.Client``, and what it should have seen."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from agentsrv.client import Client, Options, Reconnect, Record
from agentsrv.errors import AgentsrvError
from tests.support.wire import Wire

PATIENT = Options(reconnect=Reconnect(base=0.02, cap=0.2, attempts=10_000, first_attempts=100))
REFUSED = 0.05  # seconds before a refused command is given again


@dataclass
class Stream:
    """One task: what it is to do, and what came of it."""

    description: str
    task_id: str
    events: list[Record] = field(default_factory=list)


class Streams:
    """Runs tasks one after the other, several at a time, and keeps all their events."""

    def __init__(self, client: Client) -> None:
        self.streams: list[Stream] = []
        self.ended = 0
        self._client = client
        self._news = asyncio.Event()
        self._over = False

    async def run(self, description: str, params: Mapping[str, Any] | None = None) -> Stream:
        """Run one task to its end; what is refused for now is asked again."""
        stream = Stream(description, await self._create(description, params))
        self.streams.append(stream)
        async with aclosing(self._client.task(stream.task_id).events()) as events:
            async for record in events:
                stream.events.append(record)
                self._tell()
        self.ended += 1
        self._tell()
        return stream

    @asynccontextmanager
    async def kept_up(self, description: str, at_once: int) -> AsyncIterator[Streams]:
        """Keep so many tasks running within the block; wait for their ends on leaving it."""
        self._over = False
        async with asyncio.TaskGroup() as group:
            for _ in range(at_once):
                group.create_task(self._repeat(description))
            yield self
            self._over = True

    async def until_ended(self, more: int) -> None:
        """Wait until ``more`` tasks than now have ended."""
        wanted = self.ended + more
        while self.ended < wanted:
            await self._next()

    async def until_event(self, stream_count: int, description: str, event_type: str) -> None:
        """Wait until so many tasks of a description have had an event of a type."""
        while (
            sum(
                any(record.event_type == event_type for record in stream.events)
                for stream in self.streams
                if stream.description == description
            )
            < stream_count
        ):
            await self._next()

    async def _create(self, description: str, params: Mapping[str, Any] | None) -> str:
        while True:
            try:
                task = await self._client.start(description, params=params, subscribe=False)
                return task.id
            except AgentsrvError as error:
                if not error.retryable:
                    raise
                await asyncio.sleep(REFUSED)

    async def _repeat(self, description: str) -> None:
        while not self._over:
            await self.run(description)

    async def _next(self) -> None:
        self._news.clear()
        await self._news.wait()

    def _tell(self) -> None:
        self._news.set()


@dataclass
class Account:
    """What was missed or doubled, over all tasks."""

    tasks: int = 0
    events: int = 0
    recovered: int = 0
    """Tasks that went on in another life of the server."""
    missed: int = 0
    doubled: int = 0

    @property
    def wrong(self) -> int:
        """All that should not have happened."""
        return self.missed + self.doubled


def account(wire: Wire, streams: list[Stream]) -> Account:
    """Compare what was seen with what the server's log says, and the log with what must be."""
    found = Account(tasks=len(streams))
    for stream in streams:
        log = [json.loads(body) for body in wire.log(stream.task_id)]
        seen = Counter(record.seq for record in stream.events)
        found.events += len(stream.events)
        found.doubled += sum(count - 1 for count in seen.values())
        found.missed += sum(frame["seq"] not in seen for frame in log)
        found.missed += [frame["seq"] for frame in log] != list(range(1, len(log) + 1))
        found.missed += [r.seq for r in stream.events] != sorted(r.seq for r in stream.events)
        told = {(r.seq, r.event_type, json.dumps(r.data, sort_keys=True)) for r in stream.events}
        logged = {
            (frame["seq"], frame["event_type"], json.dumps(frame["data"], sort_keys=True))
            for frame in log
        }
        found.missed += len(told - logged)  # seen, and not there any more
        kinds = Counter(frame["event_type"] for frame in log)
        steps = Counter(
            frame["data"]["step_id"] for frame in log if frame["event_type"] == "step_completed"
        )
        found.recovered += kinds["task_recovered"] > 0
        found.missed += kinds["task_completed"] == 0 or log[-1]["event_type"] != "task_completed"
        found.missed += kinds["task_cancelled"] + kinds["task_cancelling"]
        found.doubled += max(0, kinds["task_completed"] - 1)
        found.missed += len(stream.description.split()) - len(steps)
        found.doubled += sum(count - 1 for count in steps.values())
        found.missed += log[-1]["data"].get("final_output") != _expected(stream.description)
    total = wire.ask({"command": "list", "limit": 1})["total"]
    found.missed += max(0, len(streams) - total)
    found.doubled += max(0, total - len(streams))
    return found


def _expected(description: str) -> str:
    """What a task of ``tests.faults.pouring_app`` writes in its last step."""
    names = description.split()
    if names[-1] == "words":
        return "".join(f"s{len(names) - 1}:{number} " for number in range(10))
    return {"finish": "done", "stubborn": "at last", "blocking": "at last"}[names[-1]]
