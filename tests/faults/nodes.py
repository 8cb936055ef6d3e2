"""Real nodes that share a PostgreSQL schema, to be killed; what is run on them."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import asyncpg

from agentsrv.client import Client
from agentsrv.errors import UnavailableError
from agentsrv.models.events import Record, parse_timestamp
from agentsrv.models.plan import ExecutionPlan
from tests.faults.cluster_app import TRACE
from tests.support.server_process import ServerProcess
from tests.support.world import check_log, step

T = TypeVar("T")

APPLICATION: Final = "tests.faults.cluster_app:app"
NAMES: Final = ("a", "b", "c")
AT_ONCE: Final = 6  # tasks of a load
STEPS: Final = 3  # of each of them
STUCK: Final = 120.0  # seconds that no task of a load takes, whatever is done to the nodes
AGAIN: Final = 0.1  # seconds until a command is given again that could not be carried out


class Database(Protocol):
    """What nodes share."""

    def dsn(self, schema: str = "public") -> str:
        """How to reach a schema in it."""


class Cluster:
    """Nodes that share a schema, and serve the same application."""

    def __init__(self, folder: Path, dsn: str, application: str = APPLICATION) -> None:
        self.folder = folder
        self.dsn = dsn
        self.application = application
        self.nodes: dict[str, ServerProcess] = {}
        self.trace = folder / "trace"

    def launch(self, name: str, *options: str) -> ServerProcess:
        """Begin to start a node; a later option counts more, such as another ``--store``."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        node = self.nodes[name] = ServerProcess(
            folder,
            self.application,
            f"--store={self.dsn}",
            f"--node={name}",
            "--drain-timeout=0.2",
            *options,
            environment={TRACE: str(self.trace)},
        )
        node.launch()
        return node

    def start(self, *names: str, options: Sequence[str] = ()) -> None:
        """Start nodes, and wait until all accept connections."""
        for name in names:
            self.launch(name, *options)
        for name in names:
            assert self.nodes[name].wait_until_ready(), self.nodes[name].log.read_text()

    def url(self, name: str) -> str:
        """Where a node listens."""
        return self.nodes[name].url


@asynccontextmanager
async def made_cluster(
    server: Database, folder: Path, application: str = APPLICATION
) -> AsyncIterator[Cluster]:
    """A cluster without nodes as yet; all of them are killed at the end."""
    schema = f"t{time.monotonic_ns()}"
    connection = await asyncpg.connect(server.dsn())
    await connection.execute(f"CREATE SCHEMA {schema}")
    await connection.close()
    made = Cluster(folder, server.dsn(schema), application)
    try:
        yield made
    finally:
        for node in made.nodes.values():
            node.kill()


async def told(client: Client, task: str, begun: asyncio.Queue[str] | None = None) -> list[Record]:
    """All events of a task, however often the connection is lost; tells when the first is there."""
    log: list[Record] = []
    async for record in client.task(task).events():
        log.append(record)
        if begun is not None and len(log) == 1:
            begun.put_nowait(task)
    return log


async def first(client: Client, task: str, event_type: str) -> Record:
    """The first event of that type."""
    async for record in client.task(task).events():
        if record.event_type == event_type:
            return record
    raise AssertionError(f"there is no {event_type}")


async def execute(client: Client, *, words: int = 50, **fields: Any) -> str:
    """Create a task and execute it; return its id."""
    params = {"words": words} if "plan" in fields else {}
    return (await client.start("x", params=params, subscribe=False, **fields)).id


def chain(steps: int, agent: str = "counter") -> ExecutionPlan:
    """Counters, one after the other."""
    return ExecutionPlan(
        steps=tuple(step(f"s{n}", agent, *([f"s{n - 1}"] if n else [])) for n in range(steps))
    )


@dataclass
class Told:
    """What somebody was told of a task, and when each of its events came."""

    task_id: str
    records: list[Record] = field(default_factory=list)
    at: list[float] = field(default_factory=list)

    @property
    def is_wrong(self) -> bool:
        """Whether an event is missing or doubled, a step ran again, or the end is no success."""
        try:
            check_log(self.records)
        except AssertionError:
            return True
        done = Counter(r.data["step_id"] for r in self.records if r.event_type == "step_completed")
        has_failed = self.records[-1].event_type != "task_completed"
        return has_failed or done != Counter(f"s{n}" for n in range(STEPS))

    def silence_behind(self, moment: float) -> float | None:
        """Seconds from a moment within to the next event."""
        if not self.at or not self.at[0] < moment < self.at[-1]:
            return None
        return next(at for at in self.at if at >= moment) - moment


class Load:
    """Tasks of three steps: a few are always under way, each followed from its start to its end.

    What is answered ``unavailable`` is asked again; a task that is stuck fails the test.
    """

    def __init__(self, *clients: Client, agent: str = "counter", words: int = 25) -> None:
        self.told: list[Told] = []
        self.refused = 0
        self._clients = clients
        self._plan = chain(STEPS, agent)
        self._words = words
        self._is_over = False
        self._news = asyncio.Event()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Begin tasks within the block; leaving it waits until the last has ended."""
        async with asyncio.TaskGroup() as group:
            for number in range(AT_ONCE):
                client = self._clients[number % len(self._clients)]
                group.create_task(self._work(client))
            yield
            self._is_over = True

    @property
    def violations(self) -> int:
        """How many tasks were not told as they should be."""
        return sum(told.is_wrong for told in self.told)

    @property
    def events(self) -> int:
        """How many were told."""
        return sum(len(told.records) for told in self.told)

    @property
    def longest_silence(self) -> float:
        """Seconds between two events of a task, at most."""
        gaps = (after - before for told in self.told for before, after in pairwise(told.at))
        return max(gaps)

    def recoveries(self) -> list[Record]:
        """Each time that a task went on elsewhere."""
        every = (record for told in self.told for record in told.records)
        return [record for record in every if record.event_type == "task_recovered"]

    def silences(self, moments: Sequence[float]) -> list[float]:
        """Seconds from each of the moments to the next event of each task that was under way."""
        found = (told.silence_behind(moment) for told in self.told for moment in moments)
        return [silence for silence in found if silence is not None]

    async def goes_on(self) -> None:
        """Wait until somebody is told of something."""
        self._news.clear()
        async with asyncio.timeout(STUCK):
            await self._news.wait()

    async def differs(self, client: Client) -> int:
        """How many of the tasks somebody else is told otherwise, now that they have ended."""
        again = [await told(client, each.task_id) for each in self.told]
        return sum(now != then.records for now, then in zip(again, self.told, strict=True))

    async def _work(self, client: Client) -> None:
        while not self._is_over:
            async with asyncio.timeout(STUCK):
                create = partial(
                    execute,
                    client,
                    plan=self._plan,
                    words=self._words,
                    idempotency_key=uuid.uuid4().hex,
                )
                told = Told(await self._insist(create))
                self.told.append(told)
                await self._insist(partial(self._follow, client, told))

    async def _insist(self, call: Callable[[], Awaitable[T]]) -> T:
        while True:
            try:
                return await call()
            except UnavailableError:
                self.refused += 1
                await asyncio.sleep(AGAIN)

    async def _follow(self, client: Client, told: Told) -> None:
        after = len(told.records)
        async for record in client.task(told.task_id).events(after_seq=after):
            told.records.append(record)
            told.at.append(time.monotonic())
            self._news.set()


def wait(at: Sequence[float], record: Record) -> float:
    """Seconds from the last fault before it."""
    when = parse_timestamp(record.timestamp)
    return min(when - each for each in at if each < when)


async def fetch(url: str, path: str) -> tuple[int, str]:
    """The status and the text of a page of a node."""
    host, _, port = url.removeprefix("ws://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
    status = await reader.readline()
    text = await reader.read()
    writer.close()
    return int(status.split()[1]), text.decode()


async def measured(url: str, name: str) -> float:
    """What a node's metric shows; the sum where it has labels."""
    _, text = await fetch(url, "/metrics")
    lines = [line for line in text.splitlines() if line.partition("{")[0].split()[:1] == [name]]
    return sum(float(line.split()[-1]) for line in lines)
