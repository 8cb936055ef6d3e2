"""``python counted.py STORE``: a server that counts its work; see ``counts.py``.

It tells on standard error where it listens. For each line on standard input it writes one on
standard output: what was counted from its start on, and bytes allocated now, as JSON.

calls       calls of Python functions in the event loop's thread, the libraries' included
statements  SQL statements that were executed, a row of ``executemany`` as one
commits     transactions that were committed, each with its ``fsync``
allocated   bytes, after a look for cycles
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import sqlite3
import sys
import tracemalloc
from types import FrameType
from typing import Any

from agentsrv.bench.app import app
from agentsrv.settings import Settings


class Counts:
    """What was counted so far."""

    def __init__(self) -> None:
        self.calls = 0
        self.statements = 0
        self.commits = 0

    def profile(self, _frame: FrameType, event: str, _argument: object) -> None:
        """Take a call; see ``sys.setprofile``."""
        if event == "call":
            self.calls += 1

    def trace(self, statement: str) -> None:
        """Take a statement; see ``sqlite3.Connection.set_trace_callback``."""
        self.statements += 1
        self.commits += statement == "COMMIT"

    def told(self) -> dict[str, int]:
        """What there is to tell."""
        gc.collect()
        allocated = tracemalloc.get_traced_memory()[0]
        return {**vars(self), "allocated": allocated}


def watch_statements(counts: Counts) -> None:
    """Let each connection to a database that is opened from now on be counted."""
    connect: Any = sqlite3.connect

    def watched(*arguments: Any, **options: Any) -> Any:
        connection = connect(*arguments, **options)
        connection.set_trace_callback(counts.trace)
        return connection

    setattr(sqlite3, "connect", watched)  # noqa: B010 - to mypy the function is what it is


async def main(store: str) -> None:
    """Serve until standard input ends."""
    counts = Counts()
    watch_statements(counts)
    async with app.running(Settings(port=0, store=store, drain_timeout=0.1)) as running:
        lines = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
        print(f"listening on {running.url}", file=sys.stderr, flush=True)
        sys.setprofile(counts.profile)
        while await lines.readline():
            sys.setprofile(None)
            print(json.dumps(counts.told()), flush=True)
            sys.setprofile(counts.profile)
        sys.setprofile(None)


if __name__ == "__main__":
    logging.disable()  # a load client goes without a closing handshake
    tracemalloc.start()
    asyncio.run(main(sys.argv[1]))
