"""``python measured.py SETTINGS``: a server that measures how long its loop is blocked.

It writes its port to standard output. For each line on standard input it writes a line with what
was found since the last one, as JSON: ``block``, the longest time between two looks of the event
loop in milliseconds of its thread's CPU time, which other processes do not change; and ``memory``,
by how many MiB the resident memory has been larger than it was, at most.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import sys
import time
from pathlib import Path

from agentsrv.settings import Settings
from tests.support.talk import make_app

LOOK = 0.001  # seconds between two looks


class Probe:
    """What was found since the last report."""

    def __init__(self) -> None:
        self._block = 0.0
        self._resident = _status("VmRSS")
        self._reset()

    async def run(self) -> None:
        """Look, until cancelled."""
        before = time.thread_time()
        while True:
            await asyncio.sleep(LOOK)
            now = time.thread_time()
            self._block = max(self._block, now - before)
            before = now

    def report(self) -> dict[str, float]:
        """What was found; from here on, anew."""
        found = {
            "block": self._block * 1000,
            "memory": (_status("VmHWM") - self._resident) / 1024,
        }
        self._block = 0.0
        self._reset()
        return found

    def _reset(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")
        self._resident = _status("VmRSS")


def _status(name: str) -> int:
    """KiB, as the kernel counts them."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1])
    raise LookupError(name)


async def main(given: str) -> None:
    """Serve by these settings, as JSON, until standard input ends."""
    logging.basicConfig(level=logging.ERROR)
    settings = Settings(**{"port": 0, "store": "memory:", **json.loads(given)})
    async with make_app().running(settings) as server:
        gc.collect()
        gc.freeze()  # as ``agentsrv serve`` does
        probe = Probe()
        looking = asyncio.create_task(probe.run())
        print(server.port, flush=True)
        while await asyncio.to_thread(sys.stdin.readline):
            print(json.dumps(probe.report()), flush=True)
        looking.cancel()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
