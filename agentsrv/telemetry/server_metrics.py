"""ServerMetrics: the counts of a server, as plain numbers that cost an addition each.

They are always counted: a check whether they are read would cost as much. `instruments` gives them
the names and help texts of metrics.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol

from agentsrv.telemetry.faults import StoreFaults

FAST_BOUNDS: Final = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
)  # fmt: skip
"""Upper bounds in seconds, for operations that should take milliseconds."""
PLAN_LABEL: Final = "(plan)"  # the label of tasks with a plan; not a valid name of an agent
SLOW_BOUNDS: Final = (
    0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0,
)  # fmt: skip
"""Upper bounds in seconds, for the work of agents."""


class Histogram:
    """Counts durations by buckets.

    Args:
        bounds: Upper bounds of the buckets in seconds, ascending and inclusive.
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        """The count of each bucket; the last one is for longer durations."""
        self.total = 0.0
        """Sum of all durations in seconds."""

    def observe(self, seconds: float) -> None:
        """Count one duration."""
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.total += seconds


class Watched(Protocol):
    """The attributes of a store that are counted."""

    trouble: str | None

    @property
    def queued(self) -> int:
        """Tasks that wait for a slot."""

    @property
    def damage(self) -> Mapping[str, str]:
        """Tasks that cannot be read."""


class ServerMetrics:
    """The counts of one server since its start; used in one event loop."""

    def __init__(self) -> None:  # noqa: PLR0915 - one statement a number
        self.ended: defaultdict[tuple[str, str], int] = defaultdict(int)
        """Tasks that ended here, by agent and status."""
        self.attempts: defaultdict[tuple[str, str], Histogram] = defaultdict(_long)
        """Attempts of steps, by agent and outcome."""
        self.retries: defaultdict[tuple[str, str], int] = defaultdict(int)
        """Attempts that were followed by another, by agent and reason."""
        self.degraded: defaultdict[str, int] = defaultdict(int)
        """Failed steps without which the plan continued, by agent."""
        self.orphaned = 0
        """Steps that were still running at the end of their grace period."""
        self.refused = 0
        """Events and output that were written after the end of their task."""
        self.fenced = 0
        """Appends that were refused because another writer was first."""
        self.store_faults = StoreFaults()
        """Unexpected errors of the store."""
        self.left_alone = 0
        """Tasks that broke off too often, and whose failure could not be written."""
        self.stopped = Histogram(FAST_BOUNDS)
        """From the cancellation of a running task until none of its code runs."""
        self.cancelled = Histogram(FAST_BOUNDS)
        """From the cancellation of a running task until its end is committed."""
        self.commits = Histogram(FAST_BOUNDS)
        """Transactions of the store."""
        self.lag = Histogram(FAST_BOUNDS)
        """Delays of timers in the event loop."""
        self.commands: defaultdict[tuple[str, str], int] = defaultdict(int)
        """Commands that were answered, by name and outcome: ``ok``, or the error's code."""
        self.limited = 0
        """Commands that were refused by a rate limit."""
        self.opened = 0
        """Connections that were accepted."""
        self.received = 0
        """Bytes that were received from connections."""
        self.sent = 0
        """Bytes of frames with replies and events."""
        self.stalled = 0
        """Connections that were dropped because they read nothing."""
        # Called when the metrics are read; set by the part of the server that knows the number.
        self.queued: Callable[[], int] = _zero
        """Tasks that wait for a slot."""
        self.running: Callable[[], int] = _zero
        """Slots in use."""
        self.waits: Callable[[], int] = _zero
        """1 if the store cannot write now."""
        self.damaged: Callable[[], int] = _zero
        """Damaged tasks that the store has found."""
        self.connections: Callable[[], int] = _zero
        """Open connections."""
        self.behind: Callable[[], int] = _zero
        """Open connections that read more slowly than data is produced for them."""
        self.stalls: Callable[[], int] = _zero
        """Number of times the event loop was blocked for longer than the limit."""
        self.unwritten: Callable[[], int] = _zero
        """Lines of the log and of standard output that were dropped because they were not read."""
        self.model: Callable[[], Mapping[str, int]] = dict
        """Usage of the language model, by the field names of `Usage`."""

    def watch(self, store: Watched) -> None:
        """Read the state of ``store`` for the metrics."""
        self.queued, self.damaged = lambda: store.queued, lambda: len(store.damage)
        self.waits = lambda: store.trouble is not None

    def end(self, agent: str | None, status: str) -> None:
        """Count a task that ended with ``status``; ``agent`` is ``None`` for a plan."""
        self.ended[agent or PLAN_LABEL, status] += 1


def _long() -> Histogram:
    return Histogram(SLOW_BOUNDS)


def _zero() -> int:
    return 0
