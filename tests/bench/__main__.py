"""``python -m tests.bench``: all figures of docs/performance.md, and the page from them."""

from __future__ import annotations

import argparse
import asyncio
from dataclasses import replace
from pathlib import Path
from typing import get_args

from agentsrv.bench import suite
from agentsrv.bench.figures import Report
from agentsrv.bench.sizes import FULL, QUICK, Bench, Sizes
from agentsrv.bench.target import Own
from agentsrv.settings import Loop
from tests.bench import page, ratios

STORED = (0, 1_000_000, 10_000_000)


async def measure(report: Report, sizes: Sizes, loop: Loop) -> None:
    """The ratios first, while the machine has nothing behind it."""
    await ratios.measure(report, sizes, loop)
    place = Own(loop=loop)
    try:
        await suite.measure(Bench(place, sizes, report))
    finally:
        place.close()


def main() -> None:
    """Measure, write the JSON, write the page where the JSON is the page's own."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench")
    parser.add_argument("--quick", action="store_true", help="less of all; only to try it out")
    parser.add_argument("--json", type=Path, default=page.FIGURES, help="where the figures go")
    parser.add_argument("--note", help="what a reader should know of this run")
    parser.add_argument("--loop", choices=get_args(Loop), default="auto", help="of all servers")
    given = parser.parse_args()
    sizes = QUICK if given.quick else replace(FULL, stored=STORED)
    report = Report(lambda line: print(line, flush=True))
    if given.note:
        report.note(given.note)
    asyncio.run(measure(report, sizes, given.loop))
    suite.write(report, given.json)
    if given.json == page.FIGURES:
        page.main()


if __name__ == "__main__":
    main()
