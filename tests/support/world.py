"""A whole orchestrator in a simulated loop: memory store, one worker, one subscriber."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from agentsrv.agents.agent import Agent, AgentFunction, AgentOptions
from agentsrv.agents.registry import Registry
from agentsrv.delivery.broker import EventBroker
from agentsrv.delivery.subscriptions import Subscriber
from agentsrv.engine.commands import CommandHandler
from agentsrv.engine.endings import LOSS
from agentsrv.engine.environment import OutputLimits, TaskEnvironment
from agentsrv.engine.store_events import StoreEvents
from agentsrv.engine.worker import Worker
from agentsrv.errors import AgentsrvError
from agentsrv.models.commands import Cancel, Create, Execute, Respond, Send, Subscribe
from agentsrv.models.events import Record, decode
from agentsrv.models.plan import ExecutionPlan, Step
from agentsrv.store.base import Store
from agentsrv.store.memory import MemoryStore
from tests.support.simulation import now

OWNER = "somebody"


class Reader:
    """A sink that keeps everything, and may be told to have no room."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.frames: list[bytes] = []
        self.marks: list[tuple[str, int]] = []
        self.refusals: list[AgentsrvError] = []
        self.has_room = True
        self._news = asyncio.Event()

    def deliver(self, events: Sequence[bytes]) -> None:
        """See ``Sink.deliver``."""
        self.frames.extend(events)
        self.records.extend(decode(event) for event in events)
        self._news.set()

    def caught_up(self, task_id: str, seq: int) -> None:
        """See ``Sink.caught_up``."""
        self.marks.append((task_id, seq))
        self._news.set()

    def refused(self, task_id: str, refusal: AgentsrvError) -> None:
        """See ``Sink.refused``."""
        self.refusals.append(refusal)
        self._news.set()

    def of(self, task_id: str) -> list[Record]:
        """What was delivered of one task."""
        return [record for record in self.records if record.task_id == task_id]

    def types(self, task_id: str) -> list[str]:
        """The types of what was delivered of one task."""
        return [record.event_type for record in self.of(task_id)]

    async def until(
        self, task_id: str, event_type: str | None = None, step_id: str | None = None
    ) -> Record:
        """Wait for an event of that type (and step), or for the terminal one."""
        while True:
            for record in self.of(task_id):
                wanted = (
                    record.is_terminal if event_type is None else record.event_type == event_type
                )
                if wanted and step_id in (None, record.data.get("step_id")):
                    return record
            self._news.clear()
            await self._news.wait()


class World:
    """The parts, and short ways to use them."""

    def __init__(
        self,
        store: Store | None = None,
        registry: Registry | None = None,
        *,
        concurrency: int = 10,
        grace: float = 5.0,
        node: str = "node-1",
        clock: Callable[[], float] = now,
    ) -> None:
        self.store: Store = store or MemoryStore()
        self.registry = registry or Registry()
        self.environment = TaskEnvironment(
            node=node,
            store=self.store,
            registry=self.registry,
            search=no_passages,
            now=clock,
            grace=grace,
            limits=OutputLimits(step=1000, task=3000),
        )
        self.worker = Worker(self.environment, concurrency)
        self.command_handler = CommandHandler(
            self.store, self.registry, self.worker, now=clock, grace=grace
        )
        self.broker = EventBroker(self.store)
        self.listener = StoreEvents(self.broker, self.worker)
        self.reader = Reader()
        self.subscriber = Subscriber(self.broker, self.reader, OWNER)

    async def open(self) -> None:
        """Open the store, and hear of it."""
        await self.store.open(self.listener)

    def agent(self, run: AgentFunction, **options: Any) -> None:
        """Register an agent; by default it is retried after 0.1, 0.2 and 0.4 s."""
        options = {"retry_base": 0.1, "retry_jitter": False, **options}
        typed: AgentOptions = options  # type: ignore[assignment]
        self.registry.add(Agent.of(run, **typed))

    async def create(self, *steps: Step, execute: bool = True, **fields: Any) -> str:
        """Create a task with a plan of these steps, executed and followed."""
        if steps:
            fields["plan"] = ExecutionPlan(steps=steps)
        command = Create(task_description="do it", execute=execute, **fields)
        with self.subscriber.answering() as answer:
            result = await self.command_handler.create(OWNER, command, answer)
        return str(result["task_id"])

    async def execute(self, task_id: str) -> dict[str, Any]:
        """Execute a pending task and follow it."""
        with self.subscriber.answering() as answer:
            return await self.command_handler.execute(OWNER, Execute(task_id=task_id), answer)

    async def cancel(self, task_id: str, **fields: Any) -> dict[str, Any]:
        """Cancel a task."""
        with self.subscriber.answering() as answer:
            command = Cancel(task_id=task_id, **fields)
            return await self.command_handler.cancel(OWNER, command, answer)

    async def respond(self, input_id: str, value: Any = None, **fields: Any) -> dict[str, Any]:
        """Answer a question."""
        with self.subscriber.answering() as answer:
            command = Respond(input_id=input_id, value=value, **fields)
            return await self.command_handler.respond(OWNER, command, answer)

    async def send(self, task_id: str, message: Any) -> dict[str, Any]:
        """Give a task's steps a message."""
        with self.subscriber.answering() as answer:
            command = Send(task_id=task_id, message=message)
            return await self.command_handler.send(OWNER, command, answer)

    async def subscribe(self, task_id: str, after_seq: int = 0) -> dict[str, Any]:
        """Follow a task."""
        with self.subscriber.answering() as answer:
            command = Subscribe(task_id=task_id, after_seq=after_seq)
            return await self.command_handler.subscribe(OWNER, command, answer)

    async def status(self, task_id: str) -> dict[str, Any]:
        """The task's snapshot."""
        return await self.command_handler.status(OWNER, task_id)

    async def log(self, task_id: str) -> list[Record]:
        """The task's whole log, as it is stored."""
        return [decode(body) for body in await self.store.read(task_id, 0, 100_000)]


@asynccontextmanager
async def running(world: World) -> AsyncIterator[World]:
    """Let the worker claim; drain at the end."""
    await world.open()
    world.worker.start()
    try:
        yield world
    finally:
        await world.worker.drain(0.001)


async def crashed(world: World, task: str, event_type: str, step_id: str | None = None) -> World:
    """Let the worker die at that event; return a world that has only the store of it."""
    await world.reader.until(task, event_type, step_id)
    die(world)
    return World(world.store, world.registry)


def die(world: World) -> None:
    """Stop the worker as a crash would: without another word in the log."""
    assert world.worker._loop_task is not None
    world.worker._loop_task.cancel()
    for runner in list(world.worker._live.values()):
        runner.stop(LOSS)


async def no_passages(query: str, limit: int) -> list[Any]:
    """An empty knowledge base."""
    del query, limit
    return []


def step(name: str, agent: str, *after: str, **fields: Any) -> Step:
    """A step of a plan."""
    return Step(step_id=name, agent=agent, depends_on=after, **fields)


def check_log(log: Sequence[Record]) -> None:
    """What holds for the log of every task that has ended."""
    assert [record.seq for record in log] == list(range(1, len(log) + 1))
    assert [record.is_terminal for record in log].count(True) == 1
    assert log[-1].is_terminal
