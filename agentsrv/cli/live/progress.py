"""How far something is: a bar on stderr where it is a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from agentsrv.cli.exits import say
from agentsrv.cli.screen import is_live
from agentsrv.telemetry.safe_text import visible

OnProgress = Callable[[float, float, str], None]
"""Takes how much is done, of how much, and what that is."""


@contextmanager
def progress() -> Iterator[OnProgress | None]:
    """Show a bar within the block, which is gone behind it.

    What is printed meanwhile is put above it. A terminal on which nothing can be drawn again is
    told in lines; yields ``None`` where nobody looks.
    """
    if not sys.stderr.isatty():
        yield None
        return
    if not is_live():
        yield lambda _done, _total, message: say(message)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from agentsrv.cli.live.console import console_of

    with Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}", markup=False),
        console=console_of(sys.stderr),
        transient=True,
        redirect_stdout=sys.stdout.isatty(),  # else it is not on this terminal
    ) as bars:
        bar = bars.add_task("", total=None)

        def show(done: float, total: float, message: str) -> None:
            bars.update(bar, completed=done, total=total, description=visible(message))

        yield show
