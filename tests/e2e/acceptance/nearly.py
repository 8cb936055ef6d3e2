"""Texts that are nearly commands: as hypothesis changes them here and there."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

from agentsrv.models.commands import COMMANDS, EXAMPLES
from tests.unit.models.samples import JSON

AGENTS = ["echo", "talker", "waiter", "asker", "listener", "nobody"]  # of tests' servers
KEYS = st.sampled_from(
    [*"command id task_id all after_seq limit status reason grace plan params agent".split(), "\0"]
)
NAMES = st.sampled_from([*COMMANDS, "nonsense"])
SPLINTERS = st.sampled_from(
    [*'{}[]":,\\ \t\n\0\x7f\ufeff\u2028é😀', "\\ud800", "\\u0000", "NaN", "1e999", "-0", "null",
     "9" * 30, "[" * 40, '"id":1,', '"command":"ping"', "x" * 3000]
)  # fmt: skip


def _step(step_id: str, agent: str, needed: list[str]) -> dict[str, Any]:
    return {"step_id": step_id, "agent": agent, "depends_on": needed}


IDS = st.sampled_from("abc")
STEPS = st.builds(_step, IDS, st.sampled_from(AGENTS), st.lists(IDS, max_size=2))
CREATES = st.fixed_dictionaries(
    {"command": st.just("create"), "task_description": st.text(max_size=20)},
    optional={
        "id": st.integers(0, 9),
        "agent": st.sampled_from(AGENTS),
        "plan": st.fixed_dictionaries({"steps": st.lists(STEPS, max_size=3)}),
        "params": st.dictionaries(st.sampled_from(["times", "pieces", "size"]), JSON, max_size=2),
        "execute": st.booleans(),
        "idempotency_key": IDS,
        "deadline": st.floats(0, 10),
        "on_disconnect": st.sampled_from(["continue", "cancel"]),
        "metadata": st.dictionaries(IDS, IDS),
    },
)
CHANGED = st.builds(
    lambda name, fields: EXAMPLES[name] | fields,
    st.sampled_from(list(COMMANDS)),
    st.dictionaries(KEYS, JSON, max_size=2),
)
MADE_UP = st.builds(
    lambda name, fields: fields | {"command": name},
    NAMES | JSON,
    st.dictionaries(KEYS | st.text(max_size=5), JSON, max_size=4),
)
OBJECTS = st.builds(
    lambda frame, is_ascii: json.dumps(frame, ensure_ascii=is_ascii),
    CREATES | CHANGED | MADE_UP,
    st.booleans(),
)
LINES = st.builds(
    lambda verb, rest: f"{verb} {rest}",
    NAMES | st.just("run"),
    st.text() | st.sampled_from(["", "all", "…", "a 1", "a/b/1 yes", "decline", "a " + "9" * 30]),
)


@st.composite
def broken(draw: st.DrawFn, whole: st.SearchStrategy[str]) -> str:
    """A text with up to three pieces of it put in another's place."""
    text = draw(whole)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(text)))
        text = (
            text[:at] + draw(SPLINTERS | st.text(max_size=3)) + text[at + draw(st.integers(0, 9)) :]
        )
    return text


@st.composite
def broken_bytes(draw: st.DrawFn, whole: st.SearchStrategy[bytes]) -> bytes:
    """The same with bytes."""
    data = draw(whole)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data)))
        data = data[:at] + draw(st.binary(max_size=3)) + data[at + draw(st.integers(0, 3)) :]
    return data


TEXTS = OBJECTS | LINES | broken(OBJECTS) | broken(LINES) | st.text()
