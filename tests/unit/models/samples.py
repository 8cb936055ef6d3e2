"""Events of every class: one realistic instance each, and any that hypothesis can think of."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from hypothesis import strategies as st

from agentsrv.models import events as e

AT = "2026-01-02T03:04:05.678Z"
STEPS = [
    {
        "step_id": "look",
        "agent": "retriever",
        "description": "Find texts",
        "depends_on": [],
        "max_retries": 3,
    },
    {
        "step_id": "write",
        "agent": "writer",
        "description": "Write it up",
        "depends_on": ["look"],
        "max_retries": 3,
    },
]

INTEGERS = st.integers(-(2**63), 2**63 - 1)
IDS = st.from_regex(r"[A-Za-z0-9_.-]{1,64}", fullmatch=True)
STAMPS = st.floats(0, 4e9).map(e.format_timestamp)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | INTEGERS | NUMBERS | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)
OBJECTS = st.dictionaries(st.text(max_size=8), JSON, max_size=3)
_BY_ANNOTATION: dict[str, st.SearchStrategy[Any]] = {
    "str": st.text(),
    "str | None": st.none() | st.text(),
    "int": INTEGERS,
    "float": NUMBERS,
    "float | None": st.none() | NUMBERS,
    "bool": st.booleans(),
    "Any": JSON,
    "Mapping[str, Any]": OBJECTS,
    "Mapping[str, str]": st.dictionaries(st.text(), st.text(), max_size=3),
    "Sequence[str]": st.lists(st.text(), max_size=3),
    "Sequence[Any] | None": st.none() | st.lists(JSON, max_size=3),
    "Sequence[Mapping[str, Any]]": st.lists(OBJECTS, max_size=3),
    "Sequence[TracebackFrame] | None": st.none() | st.lists(OBJECTS, max_size=3),
    "Literal['error', 'timeout', 'recovered']": st.sampled_from(["error", "timeout", "recovered"]),
}


def any_event(kind: type[e.Event]) -> st.SearchStrategy[e.Event]:
    """Events of a class with any values that their fields may hold."""
    columns = fields(kind)  # type: ignore[arg-type]
    return st.builds(kind, **{column.name: _BY_ANNOTATION[column.type] for column in columns})  # type: ignore[index]


def sample(kind: type[e.Event], step_id: str = "look") -> e.Event:
    """One event of a class as a server writes it; of ``step_id``, where it is a step's."""
    values: dict[type[e.Event], tuple[Any, ...]] = {
        e.TaskCreated: ("Why?", None, {}, {}),
        e.TaskQueued: (1,),
        e.TaskStarted: ("node-1",),
        e.PlanCreated: (STEPS,),
        e.StepStarted: (step_id, 1, "retriever", "Find texts"),
        e.StepProgress: (step_id, 1, 1.0, 2.0, "half"),
        e.PartialOutput: (step_id, 1, 0, "some text"),
        e.StepRetrying: (step_id, 1, 2, 0.1, "no route", 1, "error"),
        e.StepLost: (step_id, 1, 2, True),
        e.StepCompleted: (step_id, 1, "completed", None, False, 0.5),
        e.StepFailed: (step_id, 4, "no route", 3, "", False),
        e.StepSkipped: (step_id, "not needed"),
        e.StepCancelled: (step_id, 1, ""),
        e.InputRequired: ("q1", step_id, 1, "Sure?", {"type": "boolean"}, None, None, None),
        e.InputReceived: ("q1", step_id, "accept", True, "ann"),
        e.MessageReceived: ("hurry", "ann"),
        e.TaskCancelling: ("enough", "ann", 5.0),
        e.TaskRecovered: ("node-2", []),
        e.TaskCompleted: ("completed", "the answer", False, [], 1.5),
        e.TaskFailed: ("failed", "no route", step_id, 3, ""),
        e.TaskCancelled: ("cancelled", "enough", "ann", True, ""),
    }
    return kind(*values[kind])
