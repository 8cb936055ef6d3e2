"""StoreFaults: errors of the store that it does not announce, and whom they concern.

A store that cannot write now says so (``Store.trouble``), and waits. A *fault* is another error: an
exception that no store should raise. One of an append may be caused by what the append holds, and
then concerns one task only; so may any number of them of the same task. If the appends of several
tasks fail and nothing is committed in between, the store itself is at fault.
"""

from __future__ import annotations

from typing import Final

AT_FAULT: Final = 2  # tasks whose appends failed, without a commit in between


class StoreFaults:
    """The faults of one server's store."""

    def __init__(self) -> None:
        self.total = 0
        """Appends of running tasks that failed by a fault."""
        self.tasks: dict[str, str] = {}
        """Tasks of which an append failed since the last commit, and why; cleared by a commit."""
        self.claims: str | None = None
        """Why no tasks can be claimed."""

    def note(self, task_id: str, reason: str) -> None:
        """Count a fault of an append."""
        self.total += 1
        self.tasks[task_id] = reason

    @property
    def is_general(self) -> bool:
        """Whether the store itself is at fault, and not what one task writes."""
        return len(self.tasks) >= AT_FAULT

    @property
    def complaint(self) -> str | None:
        """Why tasks cannot be run here; ``None`` if they can, as far as is known."""
        if self.claims is not None:
            return f"no tasks can be claimed: {self.claims}"
        if self.is_general:
            *_, reason = self.tasks.values()
            return f"the store fails to commit the events of {len(self.tasks)} tasks: {reason}"
        return None
