"""Where a task is shown: live on a terminal, as lines without one, or as JSON."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from typing import Protocol

from agentsrv.cli.exits import say
from agentsrv.cli.render import Printer, Result
from agentsrv.cli.streams import as_json
from agentsrv.models.events import Record


class Screen(Protocol):
    """Shows the events of one task as they come, and its output."""

    def event(self, record: Record) -> None:
        """Show one event."""

    def output(self, text: str) -> None:
        """Show the final output; nothing follows."""

    def tell(self, text: str) -> None:
        """Tell the user something that is not in the task's log."""

    def pause(self) -> AbstractContextManager[None]:
        """Keep off the terminal within the block; events may come all the same."""

    def close(self) -> None:
        """Leave the terminal as others expect it; to do it again changes nothing."""


class JsonLines:
    """Prints each event as a line of JSON to stdout; the last one holds the output."""

    def event(self, record: Record) -> None:
        """Print one event."""
        print(as_json(record), flush=True)

    def output(self, text: str) -> None:
        """It has been seen."""

    def tell(self, text: str) -> None:
        """Tell it on stderr."""
        say(text)

    def pause(self) -> AbstractContextManager[None]:
        """Lines need no pause."""
        return nullcontext()

    def close(self) -> None:
        """Every line has ended."""


def is_live() -> bool:
    """Whether stderr is a terminal on which something can be drawn again."""
    return sys.stderr.isatty() and os.environ.get("TERM", "dumb") not in ("", "dumb")


@asynccontextmanager
async def shown(*, json: bool) -> AsyncIterator[Screen]:
    """A screen for what goes on within the block: what it tells on stderr, the output on stdout."""
    if json:
        yield JsonLines()
        return
    result = Result(sys.stdout, streams=sys.stdout.isatty() and sys.stderr.isatty())
    if not is_live():
        printer = Printer(sys.stderr, result)
        try:
            yield printer
        finally:
            printer.close()
        return
    from agentsrv.cli.live.console import console_of
    from agentsrv.cli.live.display import Display

    async with Display.open(console_of(sys.stderr), result) as display:
        yield display
