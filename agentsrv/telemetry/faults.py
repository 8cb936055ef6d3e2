"""StoreFaults: unexpected errors of the store, and whether they affect one task or all.

A store that cannot write now sets ``Store.trouble`` and waits. A *fault* is another error: an
exception that no store should raise. The fault of an append may be caused by the content of the
append; then only one task is affected, however often it fails. If the appends of several tasks fail
without a commit in between, the store itself is faulty.
"""

from __future__ import annotations

from typing import Final

MIN_FAULTY_TASKS: Final = 2  # from which on the store itself is faulty


class StoreFaults:
    """The faults of a server's store."""

    def __init__(self) -> None:
        self.total = 0
        """The number of appends of running tasks that failed with a fault."""
        self.tasks: dict[str, str] = {}
        """Tasks with a fault since the last commit of any task, and the reasons."""
        self.claims: str | None = None
        """Why no tasks can be claimed."""

    def note(self, task_id: str, reason: str) -> None:
        """Count a fault of an append."""
        self.total += 1
        self.tasks[task_id] = reason

    @property
    def is_general(self) -> bool:
        """Whether the store itself is faulty, not the events of one task."""
        return len(self.tasks) >= MIN_FAULTY_TASKS

    @property
    def complaint(self) -> str | None:
        """Why this server cannot run tasks; ``None`` if no reason is known."""
        if self.claims is not None:
            return f"no tasks can be claimed: {self.claims}"
        if self.is_general:
            *_, reason = self.tasks.values()
            return f"the store fails to commit the events of {len(self.tasks)} tasks: {reason}"
        return None
