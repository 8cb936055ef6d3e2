"""The text that each step of a task has written, put together from its events."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from agentsrv.models import events as e
from agentsrv.models.events import Record


class StepOutputs(Mapping[str, str]):
    """The text of each step, by its id. The text of a failed attempt is dropped.

    Pass every event of one task to `see`, in order and from the first one on: then each text is the
    same as on the server. Without the first events, the beginning of a text is missing.
    """

    def __init__(self) -> None:
        self._pieces: dict[str, list[str]] = {}
        self._attempts: dict[str, int] = {}

    def see(self, record: Record) -> bool:
        """Read an event; return whether a text has changed."""
        step_id = record.data.get("step_id")
        if step_id is None:
            return False
        attempt = record.data.get("attempt")
        if record.event_type == e.StepRetrying.event_type:
            return bool(self._pieces.pop(step_id, None))
        if record.event_type != e.PartialOutput.event_type:
            return False
        if attempt != self._attempts.get(step_id):
            self._attempts[step_id] = record.data["attempt"]
            self._pieces[step_id] = []
        self._pieces.setdefault(step_id, []).append(record.data["output"])
        return True

    def __getitem__(self, step_id: str) -> str:
        pieces = self._pieces[step_id]
        if len(pieces) > 1:
            pieces[:] = ["".join(pieces)]
        return pieces[0]

    def __iter__(self) -> Iterator[str]:
        return iter(self._pieces)

    def __len__(self) -> int:
        return len(self._pieces)
