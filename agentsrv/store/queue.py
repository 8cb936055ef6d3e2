"""TaskQueue: what waits, what is leased, and whose turn it is.

The queue of a store that one process has to itself, kept in memory beside the tasks. It knows
nothing of logs.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

from agentsrv.store import base


class QueueLimits(NamedTuple):
    """How many tasks may wait and run; ``None`` for as many as there are."""

    total: int = 10_000
    """Tasks that wait. Beyond, only an owner with none of its own is given a place: others
    cannot keep anybody's first task out."""
    waiting: int | None = None
    """Tasks of one owner that wait."""
    running: int | None = None
    """Tasks of one owner that are leased; an owner at its limit is passed over."""

    def check(self, own: int, total: int) -> None:
        """Return if an owner with ``own`` waiting tasks of ``total`` may have one more.

        Raises:
            Overloaded: It has too many there, or all have and it has one.
        """
        if self.waiting is not None and own >= self.waiting:
            raise base.queue_full(f"{own} of your tasks")
        if own and total >= self.total:
            raise base.queue_full(f"{total} tasks")


class TaskQueue:
    """Tasks by id, each in one place: new, in its owner's line, lost, or leased.

    Owners take turns, one task each, and those of one owner go in the order of queueing. So
    between the queueing of an owner's first task and its claim, every other owner has at most one
    task claimed, however many it has waiting. Each operation costs the same however much waits.
    """

    def __init__(self, limits: QueueLimits) -> None:
        self.limits = limits
        self._new: dict[str, str] = {}  # ids with their owners, here and below
        self._lines: dict[str, OrderedDict[str, None]] = {}
        self._turns: OrderedDict[str, None] = OrderedDict()
        """Owners with a line who may have one more task running; the first is the next."""
        self._lost: OrderedDict[str, str] = OrderedDict()
        self._leased: dict[str, str] = {}
        self._waiting: Counter[str] = Counter()
        self._running: Counter[str] = Counter()
        self._total = 0

    def __len__(self) -> int:
        """How many tasks wait for their first worker."""
        return self._total

    def waiting(self, owner: str) -> int:
        """How many of the owner's tasks wait for their first worker."""
        return self._waiting[owner]

    def check(self, owner: str) -> None:
        """Return if a task of the owner may be put into the queue.

        Raises:
            Overloaded: See ``QueueLimits.check``.
        """
        self.limits.check(self.waiting(owner), self._total)

    def put(self, task_id: str, owner: str) -> None:
        """Queue a new task; it is claimed after the next ``settle`` at the earliest."""
        self._new[task_id] = owner
        self._waiting[owner] += 1
        self._total += 1

    def settle(self) -> None:
        """Let the new tasks be claimed: they are committed."""
        for task_id, owner in self._new.items():
            self._lines.setdefault(owner, OrderedDict())[task_id] = None
            self._line_up(owner)
        self._new.clear()

    def claim(self, limit: int) -> list[str]:
        """Lease up to ``limit`` tasks: those that lost their worker, then the others in turn."""
        claimed: list[str] = []
        while len(claimed) < limit and (self._lost or self._turns):
            if self._lost:
                task_id, owner = self._lost.popitem(last=False)
            else:
                owner, _ = self._turns.popitem(last=False)
                task_id = next(iter(self._lines[owner]))
                self._leave_line(task_id, owner)
            self._leased[task_id] = owner
            self._running[owner] += 1
            self._line_up(owner)
            claimed.append(task_id)
        return claimed

    def unclaim(self, claimed: Sequence[str]) -> None:
        """Take ``claim`` back: these tasks are the next to be claimed, in the same order."""
        for task_id in reversed(claimed):
            self.lose(task_id, self._leased[task_id])
            self._lost.move_to_end(task_id, last=False)

    def lose(self, task_id: str, owner: str) -> None:
        """Offer a task that lost its worker; what was leased is so no longer."""
        self.drop(task_id, owner)
        self._lost[task_id] = owner

    def lose_all(self) -> list[str]:
        """Offer every task that was leased; return which they are."""
        leased = list(self._leased.items())
        for task_id, owner in leased:
            self.lose(task_id, owner)
        return [task_id for task_id, _ in leased]

    def is_leased(self, task_id: str) -> bool:
        """Whether a worker has the task."""
        return task_id in self._leased

    def has(self, task_id: str, owner: str) -> bool:
        """Whether the task waits or is leased."""
        return (
            task_id in self._leased
            or task_id in self._new
            or task_id in self._lost
            or task_id in self._lines.get(owner, ())
        )

    def drop(self, task_id: str, owner: str) -> bool:
        """Forget a task, wherever it is.

        Returns:
            Whether its owner's turn comes now, who was at its limit of running tasks.
        """
        if self._leased.pop(task_id, None) is not None:
            _decrease(self._running, owner)
            had_turn = owner in self._turns
            self._line_up(owner)
            return not had_turn and owner in self._turns
        if self._new.pop(task_id, None) is not None:
            self._count_out(owner)
        elif task_id in self._lines.get(owner, ()):
            self._leave_line(task_id, owner)
            self._line_up(owner)
        else:
            self._lost.pop(task_id, None)
        return False

    def _line_up(self, owner: str) -> None:
        """Give the owner its turn behind the others, or none where none is due."""
        most = self.limits.running
        if owner not in self._lines or (most is not None and self._running[owner] >= most):
            self._turns.pop(owner, None)
        else:
            self._turns.setdefault(owner)  # whoever has one keeps its place

    def _leave_line(self, task_id: str, owner: str) -> None:
        line = self._lines[owner]
        del line[task_id]
        if not line:
            del self._lines[owner]
        self._count_out(owner)

    def _count_out(self, owner: str) -> None:
        _decrease(self._waiting, owner)
        self._total -= 1


def _decrease(counts: Counter[str], name: str) -> None:
    """Count one less, and forget who has none."""
    counts[name] -= 1
    if not counts[name]:
        del counts[name]
