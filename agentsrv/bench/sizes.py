"""How much is measured, and on what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from agentsrv.bench.figures import Report
from agentsrv.bench.target import LocalServer, Place
from agentsrv.errors import AgentsrvError


class Skipped(AgentsrvError):
    """A probe needs what this run has not; the message says what."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much each probe does."""

    rounds: int
    """How often each figure is taken."""
    widths: Mapping[int, int]
    """Tasks at a time, and tasks in a round."""
    commits: int
    sleepy: int
    """Tasks that sleep, in a round."""
    cancels: int
    running: tuple[int, ...]
    """Tasks that run while one is cancelled, that one included."""
    connects: int
    connections: tuple[int, ...]
    """Idle ones, in ascending order."""
    running_tasks: int
    finished_tasks: int
    subscribers: tuple[int, ...]
    """Of one task, in ascending order."""
    subscribed: int
    """Events that each of them is sent."""
    streams: int
    """Tasks that stream at the same time."""
    streamed: int
    """Events of each of them."""
    stored: tuple[int, ...]
    """Events that are in the store before."""
    replayed: int
    """Events of one task."""
    nodes: tuple[int, ...]
    """That share a store."""
    tails: int
    """Tasks of another node that are followed."""
    watched: float
    """Seconds for which they are."""

    @property
    def widest(self) -> tuple[int, int]:
        """The most tasks at a time, and the tasks in a round of it."""
        return max(self.widths.items())


FULL: Final = Sizes(
    rounds=5,
    widths={1: 300, 50: 2000, 500: 2000},
    commits=300,
    sleepy=3,
    cancels=200,
    running=(1, 200, 1000),
    connects=2000,
    connections=(1000, 10_000),
    running_tasks=1000,
    finished_tasks=5000,
    subscribers=(1, 10, 100),
    subscribed=2000,
    streams=100,
    streamed=1000,
    stored=(0, 1_000_000),
    replayed=1_000_000,
    nodes=(1, 2, 3),
    tails=1000,
    watched=5.0,
)
QUICK: Final = Sizes(
    rounds=1,
    widths={1: 100, 50: 500, 500: 1000},
    commits=50,
    sleepy=1,
    cancels=50,
    running=(1, 200),
    connects=500,
    connections=(1000,),
    running_tasks=500,
    finished_tasks=1000,
    subscribers=(1, 10, 100),
    subscribed=500,
    streams=100,
    streamed=100,
    stored=(0, 50_000),
    replayed=50_000,
    nodes=(1, 2),
    tails=1000,
    watched=2.0,
)


def limited(sizes: Sizes, *, connections: int | None = None, stored: int | None = None) -> Sizes:
    """The sizes with other largest numbers of idle connections and of stored events."""
    if connections is not None:
        sizes = replace(sizes, connections=_up_to(sizes.connections, connections))
    if stored is not None:
        sizes = replace(sizes, stored=_up_to(sizes.stored, stored))
    return sizes


def _up_to(series: tuple[int, ...], most: int) -> tuple[int, ...]:
    return (*(value for value in series if value < most), most)


@dataclass(frozen=True, slots=True)
class Bench:
    """What a probe is handed."""

    place: Place
    sizes: Sizes
    report: Report

    @property
    def own(self) -> LocalServer:
        """The place, where servers are ours.

        Raises:
            Skipped: The server is somebody else's.
        """
        if not isinstance(self.place, LocalServer):
            raise Skipped("left out: it looks into the server's process or store")
        return self.place

    @property
    def shared(self) -> LocalServer:
        """The place, where several servers may have the store.

        Raises:
            Skipped: They may not, or the server is somebody else's.
        """
        if not self.own.is_shared:
            raise Skipped("left out: servers cannot share the store; expected postgresql://…")
        return self.own

    @property
    def file(self) -> Path:
        """The store's file.

        Raises:
            Skipped: The server is somebody else's, or its store has no file.
        """
        if self.own.file is None:
            raise Skipped("left out: the store has no file")
        return self.own.file
