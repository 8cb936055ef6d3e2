"""A supervisor: starts a server again whenever it ends, as systemd or Kubernetes would."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from tests.support.server_process import ServerProcess


@dataclass
class Supervisor:
    """What it has seen."""

    server: ServerProcess
    ends: list[int] = field(default_factory=list)
    """Exit statuses, one for each end."""

    async def run(self) -> None:
        """Start the server again and again, until cancelled."""
        while True:
            process = self.server._process
            assert process is not None
            while process.poll() is None:  # noqa: ASYNC110 - it is another process
                await asyncio.sleep(0.02)
            self.ends.append(process.returncode)
            await asyncio.to_thread(self.server.launch)


@asynccontextmanager
async def supervised(server: ServerProcess) -> AsyncIterator[Supervisor]:
    """A server that is always started again, within the block."""
    await asyncio.to_thread(server.launch)
    async with watched(server) as supervisor:
        await asyncio.to_thread(server.wait_until_ready)
        yield supervisor


@asynccontextmanager
async def watched(server: ServerProcess) -> AsyncIterator[Supervisor]:
    """One that runs already is started again when it ends, within the block."""
    supervisor = Supervisor(server)
    running = asyncio.create_task(supervisor.run())
    try:
        yield supervisor
    finally:
        running.cancel()
        await asyncio.wait({running})
        await asyncio.to_thread(server.kill)
