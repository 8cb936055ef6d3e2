"""Rich's console, as the command line uses it."""

from __future__ import annotations

from typing import TextIO

from rich.console import Console

from agentsrv.cli.streams import raw


def console_of(stream: TextIO) -> Console:
    """A console on the stream itself, which takes no text for markup.

    Texts of other people must be made visible before they are given to it.
    """
    return Console(file=raw(stream), markup=False, emoji=False, highlight=False)
