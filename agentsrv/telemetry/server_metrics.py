"""Measures: what a server counts of itself, as plain numbers that cost an addition each.

They are counted whether anybody reads them or not: asking first would cost as much. `metrics` says
what each of them means to an operator.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol

from agentsrv.telemetry.faults import StoreFaults

QUICK: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
"""Bounds for what should take milliseconds, in seconds."""
OF_A_PLAN: Final = "(plan)"  # in place of an agent: no agent is called so
LONG: Final = (0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
"""Bounds for what agents do, in seconds."""


class Histogram:
    """How long something took, how often.

    Args:
        bounds: Seconds, ascending; what takes exactly as long still counts below a bound.
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        """How often it took up to the bound of the same place; the last: longer than all."""
        self.total = 0.0
        """Seconds in all."""

    def observe(self, seconds: float) -> None:
        """Count one more."""
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.total += seconds


class Watched(Protocol):
    """What is counted of a store."""

    trouble: str | None

    @property
    def queued(self) -> int:
        """Tasks that wait for a slot."""

    @property
    def damage(self) -> Mapping[str, str]:
        """Tasks that cannot be read."""


class ServerMetrics:
    """All that one server counts, from its start on. Lives in one event loop."""

    def __init__(self) -> None:  # noqa: PLR0915 - one statement a number
        self.ended: defaultdict[tuple[str, str], int] = defaultdict(int)
        """Tasks that ended here, by agent and status."""
        self.attempts: defaultdict[tuple[str, str], Histogram] = defaultdict(_long)
        """Attempts of steps, by agent and outcome."""
        self.retries: defaultdict[tuple[str, str], int] = defaultdict(int)
        """Attempts that another followed, by agent and reason."""
        self.degraded: defaultdict[str, int] = defaultdict(int)
        """Steps without which a plan went on, by agent."""
        self.orphaned = 0
        """Steps that still ran when their grace was over."""
        self.refused = 0
        """Events and pieces of text that came behind the end of their task."""
        self.fenced = 0
        """Appends that another writer was ahead of."""
        self.store_faults = StoreFaults()
        """Errors of the store that it does not announce."""
        self.left_alone = 0
        """Tasks that broke off too often, and of which not even the failure could be written."""
        self.stopped = Histogram(QUICK)
        """From a cancellation of a task that runs until none of its code does."""
        self.cancelled = Histogram(QUICK)
        """From such a cancellation until the end of the task is committed."""
        self.commits = Histogram(QUICK)
        """Transactions of the store."""
        self.lag = Histogram(QUICK)
        """How late the event loop came to a timer."""
        self.commands: defaultdict[tuple[str, str], int] = defaultdict(int)
        """Commands that were answered, by name and outcome: ``ok``, or the error's code."""
        self.limited = 0
        """Commands that were too many for their principal's rate."""
        self.opened = 0
        """Connections that were accepted."""
        self.received = 0
        """Bytes from connections, as they came."""
        self.sent = 0
        """Bytes of frames with answers and events."""
        self.stalled = 0
        """Connections that were dropped because they took nothing."""
        # Read when somebody looks; set by whoever knows.
        self.queued: Callable[[], int] = _none
        """Tasks that wait for a slot."""
        self.running: Callable[[], int] = _none
        """Slots that are taken."""
        self.waits: Callable[[], int] = _none
        """Whether the store takes no writes now."""
        self.damaged: Callable[[], int] = _none
        """Tasks that the store could not read."""
        self.connections: Callable[[], int] = _none
        """Connections that are open."""
        self.behind: Callable[[], int] = _none
        """Of these, those that take less than there is for them."""
        self.stalls: Callable[[], int] = _none
        """Times that the event loop was blocked for longer than the limit."""
        self.unwritten: Callable[[], int] = _none
        """Lines of the log and of standard output that were dropped because nobody read them."""
        self.model: Callable[[], Mapping[str, int]] = dict
        """What was asked of the language model, by the names of `Usage`."""

    def watch(self, store: Watched) -> None:
        """Read from ``store`` what it knows of itself."""
        self.queued, self.damaged = lambda: store.queued, lambda: len(store.damage)
        self.waits = lambda: store.trouble is not None

    def end(self, agent: str | None, status: str) -> None:
        """Count a task that ended with ``status``, of one agent or of a plan."""
        self.ended[agent or OF_A_PLAN, status] += 1


def _long() -> Histogram:
    return Histogram(LONG)


def _none() -> int:
    return 0
