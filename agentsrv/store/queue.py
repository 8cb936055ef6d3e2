"""TaskQueue: the tasks that wait or are leased, and the fair order in which they are claimed.

Theory of operation
===================
The queue of a store that one process uses, kept in memory. It knows task ids and owners only;
PostgreSQL has the same order by a query (``claim_tasks``).

A task is in one of four places:

    new      queued, but not committed yet; it cannot be claimed (``commit_new``)
    lines    committed; each owner has a line of its tasks, in the order of queueing
    lost     it lost its worker; it is claimed before every line
    leased   a worker has it

Owners with a line, who are below their limit of running tasks, are in ``_turns``, a circle.
``claim`` takes the first owner, leases the first task of its line, and puts the owner at the end of
the circle. So while the first task of an owner waits, every other owner has at most one task
claimed, however long its line. An owner leaves the circle when its line is empty or its limit is
reached, and joins it at the end when that changes (``_update_turn``).

Each operation takes constant time, however many tasks wait.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

from agentsrv.store import base


class QueueLimits(NamedTuple):
    """How many tasks may wait and run; ``None`` is no limit."""

    total: int = 10_000
    """Waiting tasks of all owners. Beyond it, only an owner without a waiting task may queue one:
    other owners cannot keep out its first task."""
    waiting: int | None = None
    """Waiting tasks of one owner."""
    running: int | None = None
    """Leased tasks of one owner. An owner at this limit is skipped by ``claim``."""

    def check(self, own: int, total: int) -> None:
        """Return if an owner with ``own`` of ``total`` waiting tasks may queue one more.

        Raises:
            OverloadedError: The owner is at its limit, or the queue is full and the owner has a
                waiting task.
        """
        if self.waiting is not None and own >= self.waiting:
            raise base.queue_full(f"{own} of your tasks")
        if own and total >= self.total:
            raise base.queue_full(f"{total} tasks")


class TaskQueue:
    """A fair queue of task ids; see the module."""

    def __init__(self, limits: QueueLimits) -> None:
        self.limits = limits
        self._new: dict[str, str] = {}  # ids with owners, as below
        self._lines: dict[str, OrderedDict[str, None]] = {}
        self._turns: OrderedDict[str, None] = OrderedDict()
        """The circle of owners; the first is next."""
        self._lost: OrderedDict[str, str] = OrderedDict()
        self._leased: dict[str, str] = {}
        # By owner; plain dictionaries, because a Counter calls Python code for each missing name.
        self._waiting: dict[str, int] = {}
        self._running: dict[str, int] = {}
        self._total = 0

    def __len__(self) -> int:
        """The number of tasks that wait for their first worker."""
        return self._total

    def waiting(self, owner: str) -> int:
        """The number of the owner's tasks that wait for their first worker."""
        return self._waiting.get(owner, 0)

    def check(self, owner: str) -> None:
        """Return if a task of the owner may be queued.

        Raises:
            OverloadedError: See ``QueueLimits.check``.
        """
        self.limits.check(self.waiting(owner), self._total)

    def put(self, task_id: str, owner: str) -> None:
        """Queue a new task; it can be claimed after the next ``commit_new``."""
        self._new[task_id] = owner
        self._waiting[owner] = self._waiting.get(owner, 0) + 1
        self._total += 1

    def commit_new(self) -> None:
        """Append the new tasks to the lines: they are committed."""
        for task_id, owner in self._new.items():
            self._lines.setdefault(owner, OrderedDict())[task_id] = None
            self._update_turn(owner)
        self._new.clear()

    def claim(self, limit: int) -> list[str]:
        """Lease up to ``limit`` tasks: lost tasks, then those of the owners in turn."""
        claimed: list[str] = []
        while len(claimed) < limit and (self._lost or self._turns):
            if self._lost:
                task_id, owner = self._lost.popitem(last=False)
            else:
                owner, _ = self._turns.popitem(last=False)
                task_id = next(iter(self._lines[owner]))
                self._leave_line(task_id, owner)
            self._leased[task_id] = owner
            self._running[owner] = self._running.get(owner, 0) + 1
            self._update_turn(owner)
            claimed.append(task_id)
        return claimed

    def unclaim(self, claimed: Sequence[str]) -> None:
        """Undo ``claim``: these tasks are claimed next, in the same order."""
        for task_id in reversed(claimed):
            self.lose(task_id, self._leased[task_id])
            self._lost.move_to_end(task_id, last=False)

    def lose(self, task_id: str, owner: str) -> None:
        """Move a task to the lost ones; if it was leased, the lease ends."""
        self.drop(task_id, owner)
        self._lost[task_id] = owner

    def lose_all(self) -> list[str]:
        """Move every leased task to the lost ones; return their ids."""
        leased = list(self._leased.items())
        for task_id, owner in leased:
            self.lose(task_id, owner)
        return [task_id for task_id, _ in leased]

    def is_leased(self, task_id: str) -> bool:
        """Whether the task is leased."""
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
        """Remove a task, wherever it is.

        Returns:
            Whether the owner was at its limit of running tasks, and has a turn now.
        """
        if self._leased.pop(task_id, None) is not None:
            _decrease(self._running, owner)
            had_turn = owner in self._turns
            self._update_turn(owner)
            return not had_turn and owner in self._turns
        if self._new.pop(task_id, None) is not None:
            self._count_out(owner)
        elif task_id in self._lines.get(owner, ()):
            self._leave_line(task_id, owner)
            self._update_turn(owner)
        else:
            self._lost.pop(task_id, None)
        return False

    def _update_turn(self, owner: str) -> None:
        """Put the owner at the end of the circle if it may run one more task; else remove it."""
        limit, running = self.limits.running, self._running
        if owner not in self._lines or (limit is not None and running.get(owner, 0) >= limit):
            self._turns.pop(owner, None)
        else:
            self._turns.setdefault(owner)  # an owner in the circle keeps its place

    def _leave_line(self, task_id: str, owner: str) -> None:
        line = self._lines[owner]
        del line[task_id]
        if not line:
            del self._lines[owner]
        self._count_out(owner)

    def _count_out(self, owner: str) -> None:
        _decrease(self._waiting, owner)
        self._total -= 1


def _decrease(counts: dict[str, int], name: str) -> None:
    """Subtract 1, and delete a count of 0."""
    counts[name] -= 1
    if not counts[name]:
        del counts[name]
