"""The live display of one task: its plan as a tree on stderr, its output on stdout."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from typing import Final

from rich.console import Console
from rich.live import Live

from agentsrv.cli.exits import say
from agentsrv.cli.live.tree import PlanTree
from agentsrv.cli.live.view import TaskView
from agentsrv.cli.prompt import Prompt
from agentsrv.cli.render import Result, describe
from agentsrv.models import events as e
from agentsrv.models.events import Record

REDRAW: Final = 0.1  # seconds between two drawings
_QUIET: Final = (e.StepProgress.event_type,)


class Display:
    """Shows a task while it runs; see ``agentsrv.cli.screen.Screen``.

    The tree is drawn again and again until the result's text begins to be streamed below it; it
    comes back below the text when the step that writes is tried again. Whatever else is written
    to ``sys.stderr`` meanwhile is put above the tree.

    Args:
        console: The terminal.
        result: Where the final output goes.
        now: The time.
    """

    def __init__(
        self,
        console: Console,
        result: Result,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._console = console
        self._result = result
        self._now = now
        self._view = TaskView()
        self._turn: int | None = 0
        self._pauses = 0
        self._held: list[Record] = []
        self._live: Live | None = None
        self._is_streaming = False
        self._at_start = True

    @classmethod
    @asynccontextmanager
    async def open(cls, console: Console, result: Result) -> AsyncIterator[Display]:
        """A display that is drawn again within the block, and stands still behind it."""
        display = cls(console, result)
        drawing = asyncio.create_task(display._keep_drawing(), name="agentsrv-display")
        try:
            yield display
        finally:
            drawing.cancel()
            await asyncio.wait({drawing})
            display.close()

    def event(self, record: Record) -> None:
        """Show one event; behind a pause, if there is one."""
        if self._pauses:
            self._held.append(record)
            return
        self._view.take(record)
        if record.event_type == e.PartialOutput.event_type:
            self._text(record)
            return
        self._result.see(record)
        if not self._is_streaming:
            self._start()
            return
        if record.event_type in _QUIET or (
            record.event_type == e.InputRequired.event_type and Prompt.is_possible()
        ):
            return  # progress would add a line each time, and the prompt shows the question
        self._break()
        if record.event_type == e.StepRetrying.event_type:
            self._is_streaming = False
            self._start()
        else:
            self._console.print(describe(record), style="dim", markup=False, highlight=False)

    def output(self, text: str) -> None:
        """Print the final output, below the tree."""
        self.close()
        self._result.finish(text)

    def tell(self, text: str) -> None:
        """Tell something that is not in the log, above the tree or below the text."""
        self._break()
        if self._pauses:
            print(file=sys.stderr)  # behind the prompt that stands there
        say(text)

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Take the tree away while something else has the terminal."""
        self._pauses += 1
        self._stop(transient=True)
        self._break()
        try:
            yield
        finally:
            self._pauses -= 1
            self._start()
            held, self._held = self._held, []
            for record in held:
                self.event(record)

    def close(self) -> None:
        """Leave the last drawing and the cursor; to do it again changes nothing."""
        self._stop()
        self._break()

    def draw(self) -> None:
        """Draw the tree as it is now."""
        if self._live is not None:
            self._turn = (self._turn or 0) + 1
            self._live.refresh()

    async def _keep_drawing(self) -> None:
        while True:
            await asyncio.sleep(REDRAW)
            self.draw()

    def _start(self) -> None:
        if self._live is None and not self._pauses and not self._is_streaming:
            self._live = Live(
                console=self._console,
                get_renderable=lambda: PlanTree(self._view, self._now(), self._turn),
                auto_refresh=False,
                redirect_stdout=False,
                vertical_overflow="crop",
            )
            self._live.start()

    def _stop(self, *, transient: bool = False) -> None:
        live, self._live = self._live, None
        if live is not None:
            live.transient = transient
            self._turn = None  # drawn once more, to stay
            live.stop()

    def _text(self, record: Record) -> None:
        if not self._result.takes(record):
            return
        if not self._is_streaming:
            self._stop()
            self._is_streaming = True
        self._result.write(record)
        self._at_start = record.data["output"].endswith("\n")

    def _break(self) -> None:
        if not self._at_start:
            print(file=sys.stderr, flush=True)
            self._at_start = True
