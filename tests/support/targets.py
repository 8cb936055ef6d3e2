"""A task that somebody else may try to reach, and one that nobody can."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

GHOST: Final = "fedcba9876543210"  # no task has this id
PREFIX: Final = 8  # characters of an id that people type


@dataclass(frozen=True)
class Target:
    """What a command may name of a task."""

    task_id: str
    input_id: str
    key: str
    cursor: str | None

    @property
    def cut(self) -> str:
        """The beginning of its id."""
        return self.task_id[:PREFIX]

    def unnamed(self, answer: Mapping[str, Any]) -> str:
        """An answer without what tells this target from others: its names."""
        text = json.dumps(answer)
        for name in (self.input_id, self.task_id, self.key, self.cut):
            text = text.replace(name, "NAME")
        return text
