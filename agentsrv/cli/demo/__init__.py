"""``agentsrv demo``: a server, a client and one task over a small folder of texts.

Starts ``agentsrv serve`` as a process of its own, with a new SQLite store in a temporary folder
and the texts in ``knowledge`` beside this file, runs a question, prints every event of the task's
log and the report, and stops the server with SIGTERM. Settings of the environment and of the
current folder do not apply to that server.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from agentsrv.cli.render import describe
from agentsrv.cli.signals import run_until_signal
from agentsrv.client import Client, ServerUnavailableError
from agentsrv.error_text import redact
from agentsrv.errors import AgentsrvError

QUESTION: Final = "How does async I/O affect throughput?"
KNOWLEDGE: Final = Path(__file__).parent / "knowledge"
TIMEOUT: Final = 60.0  # seconds for everything; it takes about two
LISTENING: Final = "listening on "


class Server:
    """An ``agentsrv serve`` process and the lines that it has logged."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.exit_status: int | None = None

    @asynccontextmanager
    async def running(self, folder: Path) -> AsyncIterator[str]:
        """Serve within the block, from a store in ``folder``; yields the URL."""
        command = [sys.executable, "-m", "agentsrv", "serve", "--host=127.0.0.1", "--port=0"]
        # Relative to the working folder: a temporary folder's name may contain anything.
        options = ["--store=sqlite:///demo.db", f"--knowledge={KNOWLEDGE}", "--log-format=text"]
        env = {name: text for name, text in os.environ.items() if not name.startswith("AGENTSRV_")}
        env["PYTHONIOENCODING"] = "utf-8"  # of the log that is read here
        process = await asyncio.create_subprocess_exec(
            *command, *options, cwd=folder, env=env, stdin=DEVNULL, stderr=PIPE
        )
        url: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        reading = asyncio.create_task(self._read(process, url))
        try:
            yield await url
            process.terminate()
            self.exit_status = await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
            await reading

    async def _read(self, process: Process, url: asyncio.Future[str]) -> None:
        assert process.stderr is not None
        async for raw in process.stderr:
            line = raw.decode(errors="replace").rstrip()
            self.log.append(line)
            if LISTENING in line and not url.done():
                url.set_result(line.partition(LISTENING)[2])
        if not url.done():
            url.set_exception(ServerUnavailableError("the server ended before it listened"))


async def show(server: Server) -> None:
    """Run the question; print the events as they come, then the report."""
    with tempfile.TemporaryDirectory(prefix="agentsrv-demo-") as folder:
        async with server.running(Path(folder)) as url, Client(url) as client:
            print(f"agentsrv {client.hello.server.version} listens on {url}")
            print(f"The question: {QUESTION}\n\nThe log of the task, as it grows:")
            task = await client.start(QUESTION)
            result = await task.result(
                on_event=lambda record: print(
                    f"{record.seq:4}  {record.event_type:15} {describe(record)}", flush=True
                )
            )
            print(f"\nThe report:\n\n{result.final_output.rstrip()}\n")
    print(f"The server stopped at SIGTERM with exit status {server.exit_status}.")


def main() -> int:
    """Run the demonstration; return 0 only if everything went as it should."""
    server = Server()

    async def within_time() -> None:
        async with asyncio.timeout(TIMEOUT):
            await show(server)

    try:
        run_until_signal(within_time())
    except (AgentsrvError, OSError) as error:
        reason = redact(str(error)) or f"it took longer than {TIMEOUT:.0f} s"
        print(f"\nThe demonstration failed: {reason}", file=sys.stderr)
    else:
        if server.exit_status == 0:
            return 0
    print("The server's log:", *server.log, sep="\n  ", file=sys.stderr)
    return 1
