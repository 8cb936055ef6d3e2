"""A whole orchestrator in a simulated loop: memory store, one worker, one subscriber."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from agentsrv.agents.agent import Agent, AgentFunction, AgentOptions
from agentsrv.agents.registry import Registry
from agentsrv.delivery.broker import EventBroker
from agentsrv.delivery.subscriptions import Hold, Subscriber
from agentsrv.engine.commands import CommandHandler, new_task_id
from agentsrv.engine.endings import Handover
from agentsrv.engine.environment import OutputLimits, TaskEnvironment
from agentsrv.engine.inputs import task_of
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
        return str((await create(self, self.subscriber, OWNER, command))["task_id"])

    async def execute(self, task_id: str) -> dict[str, Any]:
        """Execute a pending task and follow it."""
        return await execute(self, self.subscriber, task_id)

    async def cancel(self, task_id: str, **fields: Any) -> dict[str, Any]:
        """Cancel a task."""
        with Hold(self.subscriber, task_id):
            return await self.command_handler.cancel(OWNER, Cancel(task_id=task_id, **fields))

    async def respond(self, input_id: str, value: Any = None, **fields: Any) -> dict[str, Any]:
        """Answer a question."""
        command = Respond(input_id=input_id, value=value, **fields)
        with Hold(self.subscriber, task_of(input_id)):
            return await self.command_handler.respond(OWNER, command)

    async def send(self, task_id: str, message: Any) -> dict[str, Any]:
        """Give a task's steps a message."""
        with Hold(self.subscriber, task_id):
            return await self.command_handler.send(OWNER, Send(task_id=task_id, message=message))

    async def subscribe(self, task_id: str, after_seq: int = 0) -> dict[str, Any]:
        """Follow a task."""
        return await subscribe(self, self.subscriber, task_id, after_seq)

    async def status(self, task_id: str) -> dict[str, Any]:
        """The task's snapshot."""
        return await self.command_handler.status(OWNER, task_id)

    async def log(self, task_id: str) -> list[Record]:
        """The task's whole log, as it is stored."""
        return [decode(body) for body in await self.store.read(task_id, 0, 100_000)]


async def create(
    world: World, subscriber: Subscriber, principal: str, command: Create
) -> dict[str, Any]:
    """Create a task for a connection, as the server does."""
    follows = command.execute and command.subscribe
    with Hold(subscriber, new_task_id(), after=0 if follows else None) as hold:
        outcome = await world.command_handler.create(principal, command, hold.task_id)
        hold.accept(outcome)
    return outcome.reply


async def execute(world: World, subscriber: Subscriber, task_id: str) -> dict[str, Any]:
    """Execute a task for a connection, which follows it."""
    after = None if subscriber.follows(task_id) else 0
    with Hold(subscriber, task_id, after) as hold:
        outcome = await world.command_handler.execute(OWNER, Execute(task_id=task_id))
        hold.accept(outcome)
    return outcome.reply


async def subscribe(
    world: World, subscriber: Subscriber, task_id: str, after_seq: int = 0, principal: str = OWNER
) -> dict[str, Any]:
    """Follow a task for a connection."""
    with Hold(subscriber, task_id, after_seq) as hold:
        command = Subscribe(task_id=task_id, after_seq=after_seq)
        outcome = await world.command_handler.subscribe(principal, command)
        hold.accept(outcome)
    return outcome.reply


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
    """Stop the worker as a crash does: no event is appended."""
    assert world.worker._loop_task is not None
    world.worker._loop_task.cancel()
    for runner in list(world.worker._live.values()):
        runner.stop(Handover.LOSS)


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
