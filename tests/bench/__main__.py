"""``python -m tests.bench``: all figures of docs/explanation/performance.md, and the page from them."""

from __future__ import annotations

import argparse
import asyncio
from dataclasses import replace
from pathlib import Path
from typing import get_args

from agentsrv.bench import suite
from agentsrv.bench.figures import Report
from agentsrv.bench.sizes import FULL, QUICK, Bench, Sizes
from agentsrv.bench.target import LocalServer
from agentsrv.settings import Loop
from tests.bench import page, ratios
from tests.support.postgres import postgres
from tests.support.programs import find

STORED = (0, 1_000_000, 10_000_000)


async def measure(report: Report, sizes: Sizes, loop: Loop, dsn: str | None) -> None:
    """The ratios first, while the machine has nothing behind it."""
    shared = {} if dsn is None else {ratios.POSTGRES: dsn}
    await ratios.measure(report, sizes, loop, {**ratios.OWN, **shared})
    alone = [name for name in suite.PROBES if name not in suite.SHARED]
    for store, probes in ((None, alone), *((each, list(suite.SHARED)) for each in shared.values())):
        place = LocalServer(store, loop)
        try:
            await suite.measure(Bench(place, sizes, report), probes)
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
    if find("postgres") is None:
        report.note("postgres is left out: PostgreSQL is not installed")
        asyncio.run(measure(report, sizes, given.loop, None))
    else:
        with postgres() as server:  # with its defaults, so with fsync
            report.note(f"postgres is {server.version()} with its defaults, on the same machine")
            asyncio.run(measure(report, sizes, given.loop, server.dsn()))
    suite.write(report, given.json)
    if given.json == page.FIGURES:
        page.main()


if __name__ == "__main__":
    main()
