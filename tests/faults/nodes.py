"""Real nodes that share a PostgreSQL schema, to be killed; what is run on them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg

from agentsrv.client import Client
from agentsrv.models.events import Record
from agentsrv.models.plan import ExecutionPlan
from tests.faults.cluster_app import TRACE
from tests.faults.process import ServerProcess
from tests.orchestrator.world import step
from tests.postgres import Postgres

APPLICATION = "tests.faults.cluster_app:app"


class Cluster:
    """Nodes that share a schema."""

    def __init__(self, folder: Path, dsn: str) -> None:
        self.folder = folder
        self.dsn = dsn
        self.nodes: dict[str, ServerProcess] = {}
        self.trace = folder / "trace"

    def launch(self, name: str, *options: str) -> ServerProcess:
        """Begin to start a node."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        node = self.nodes[name] = ServerProcess(
            folder,
            APPLICATION,
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
async def made_cluster(server: Postgres, folder: Path) -> AsyncIterator[Cluster]:
    """A cluster without nodes as yet; all of them are killed at the end."""
    schema = f"t{time.monotonic_ns()}"
    connection = await asyncpg.connect(server.dsn())
    await connection.execute(f"CREATE SCHEMA {schema}")
    await connection.close()
    made = Cluster(folder, server.dsn(schema))
    try:
        yield made
    finally:
        for node in made.nodes.values():
            node.kill()


async def told(client: Client, task: str, begun: asyncio.Queue[str] | None = None) -> list[Record]:
    """All events of a task, however often the connection is lost; tells when the first is there."""
    log: list[Record] = []
    async for record in client.events(task):
        log.append(record)
        if begun is not None and len(log) == 1:
            begun.put_nowait(task)
    return log


async def execute(client: Client, *, words: int = 50, **fields: Any) -> str:
    """Create a task and execute it; return its id."""
    params = {"words": words} if "plan" in fields else {}
    reply = await client.create("x", execute=True, params=params, **fields)
    return str(reply["task_id"])


def chain(steps: int) -> ExecutionPlan:
    """Counters, one after the other."""
    return ExecutionPlan(
        steps=tuple(step(f"s{n}", "counter", *([f"s{n - 1}"] if n else [])) for n in range(steps))
    )
