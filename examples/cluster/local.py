"""The cluster on this machine without docker: PostgreSQL, three nodes, nginx, and a plug to pull.

    python -m examples.cluster.local

Starts all of it in a folder of its own, follows a task through nginx, kills the node that runs
it, and shows that the client misses nothing. Needs the programs of PostgreSQL and nginx.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import sys
import tempfile
from asyncio.subprocess import DEVNULL, Process
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

from agentsrv.cli.render import describe
from agentsrv.client import Client

HERE: Final = Path(__file__).parent
ROOT: Final = HERE.parents[1]
NODES: Final = 3
STARTS_WITHIN: Final = 30.0  # seconds
PATIENCE: Final = 90.0  # seconds for everything: a lease of 10 is among them


class Missing(Exception):
    """A program is not installed."""


def program(name: str) -> str:
    """The path of a program; Debian keeps PostgreSQL's and nginx beside the usual places."""
    places = [*map(str, Path("/usr/lib/postgresql").glob("*/bin")), "/usr/sbin"]
    found = shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), *places]))
    if found is None:
        raise Missing(f"{name} is not installed; expected the packages postgresql and nginx")
    return found


@asynccontextmanager
async def process(*command: str, log: Path, stop: int, **options: Any) -> AsyncIterator[Process]:
    """Run a program within the block; ``stop`` is the signal that ends it."""
    with log.open("ab") as output:
        started = await asyncio.create_subprocess_exec(
            *command, stdin=DEVNULL, stdout=output, stderr=output, **options
        )
    try:
        yield started
    finally:
        if started.returncode is None:
            started.send_signal(stop)
            await started.wait()


@asynccontextmanager
async def postgres(folder: Path) -> AsyncIterator[str]:
    """A PostgreSQL of our own; yields the address for ``--store``."""
    data, port = folder / "data", free_port()
    # It refuses to be root's.
    options: dict[str, Any] = {"cwd": "/"}
    if os.geteuid() == 0:
        shutil.chown(folder, "postgres")
        options["user"] = "postgres"
    log = folder / "postgres.log"
    initdb = [program("initdb"), "-D", str(data), "-A", "trust", "-U", "postgres", "--no-sync"]
    async with process(*initdb, log=log, stop=signal.SIGTERM, **options) as making:
        if await making.wait():
            raise RuntimeError(log.read_text())
    command = [program("postgres"), "-D", str(data), "-p", str(port), "-k", ""]
    async with process(*command, log=log, stop=signal.SIGINT, **options):
        await listening(port)
        yield f"postgresql://postgres@127.0.0.1:{port}/postgres"


@asynccontextmanager
async def node(folder: Path, name: str, store: str) -> AsyncIterator[tuple[Process, int]]:
    """A server that shares the store; yields the process and its port."""
    port = free_port()
    command = [sys.executable, "-m", "agentsrv", "serve", "examples.cluster.app:app"]
    options = [f"--port={port}", f"--store={store}", f"--node={name}"]
    log = folder / f"{name}.log"
    async with process(*command, *options, log=log, stop=signal.SIGTERM, cwd=ROOT) as started:
        yield started, port


@asynccontextmanager
async def nginx(folder: Path, ports: Sequence[int]) -> AsyncIterator[int]:
    """The proxy in front of the nodes, configured as in the compose file; yields its port."""
    port = free_port()
    text = (HERE / "nginx.conf").read_text().replace("listen 8080", f"listen 127.0.0.1:{port}")
    lines = [line for line in text.splitlines() if "server node-" not in line]
    servers = [f"server 127.0.0.1:{each} max_fails=1 fail_timeout=2s;" for each in ports]
    place = lines.index("        least_conn;") + 1
    lines[place:place] = servers
    config = folder / "nginx.conf"
    config.write_text("\n".join(lines))
    command = [program("nginx"), "-p", str(folder), "-c", str(config), "-g", "daemon off;"]
    async with process(*command, log=folder / "nginx.log", stop=signal.SIGTERM):
        await listening(port)
        yield port


async def show(folder: Path) -> None:
    """Start everything, pull a plug, and tell what a client sees of that."""
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(postgres(folder))
        nodes = {}
        for number in range(1, NODES + 1):
            name = f"node-{number}"
            nodes[name] = await stack.enter_async_context(node(folder, name, store))
        for _, port in nodes.values():
            await listening(port)
        ports = [port for _, port in nodes.values()]
        port = await stack.enter_async_context(nginx(folder, ports))
        url = f"ws://127.0.0.1:{port}"
        print(f"{NODES} nodes share {store}; clients connect to nginx at {url}\n")
        client = await stack.enter_async_context(Client(url))
        await follow(client, {name: process for name, (process, _) in nodes.items()})


async def follow(client: Client, nodes: dict[str, Process]) -> None:
    """Run a task; when its first step is completed, kill the node that runs it."""
    loop, killed, running, seen = asyncio.get_running_loop(), 0.0, "", 0
    task = await client.start("Count.")
    async for record in task.events():
        seen += 1
        assert record.seq == seen, f"event {record.seq} came in place of {seen}"
        if record.event_type != "partial_output":
            print(f"{record.seq:4}  {record.event_type:15} {describe(record)}", flush=True)
        if record.event_type in ("task_started", "task_recovered"):
            running = record.data["node"]
            print(f"      it runs on {running}")
        if record.event_type == "task_recovered":
            print(f"      {loop.time() - killed:.1f} s after the death of the other")
        if record.event_type == "step_completed" and not killed:
            killed = loop.time()
            nodes[running].kill()
            print(f"      kill -9 {running}")
    print(f"\nAll {seen} events came, each once and in its order.")


async def listening(port: int) -> None:
    """Wait until somebody accepts connections."""
    async with asyncio.timeout(STARTS_WITHIN):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.05)
            else:
                writer.close()
                return


def free_port() -> int:
    """A port that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> int:
    """Show it; return the exit code."""
    with tempfile.TemporaryDirectory(prefix="agentsrv-cluster-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # nginx and PostgreSQL may be other users
        try:
            asyncio.run(asyncio.wait_for(show(folder), PATIENCE))
        except Missing as error:
            print(error, file=sys.stderr)
            return 2
        except Exception:
            for log in folder.glob("*.log"):
                print(f"--- {log.name}\n{log.read_text()[-3000:]}", file=sys.stderr)
            raise
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
