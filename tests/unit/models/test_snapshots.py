"""The reply to ``status``: at most 1 MiB, whatever a task has."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from agentsrv.models.snapshots import MAX_SNAPSHOT, bounded
from agentsrv.models.text import fitted

CUT = "[cut: the whole text has"


def snapshot(*, steps: int = 1, questions: int = 0, piece: str = "a", **sizes: int) -> Any:
    """A snapshot whose texts have these numbers of characters."""

    def text(name: str) -> str:
        return (piece * sizes.get(name, 0))[: sizes.get(name, 0)]

    return {
        "task_id": "0123456789abcdef",
        "user_input": text("user_input"),
        "final_output": text("final_output") or None,
        "partial_output": text("partial_output") or None,
        "error_message": text("error_message") or None,
        "seq": 7,
        "steps": [
            {
                "step_id": f"step_{number:03}" + "x" * 55,
                "depends_on": [f"step_{before:03}" + "x" * 55 for before in range(number)],
                "description": text("description"),
                "output": text("output"),
                "error_message": text("step_error") or None,
            }
            for number in range(steps)
        ],
        "inputs": [
            {"input_id": str(number), "prompt": text("prompt")} for number in range(questions)
        ],
    }


LARGE: dict[str, dict[str, Any]] = {
    "a final output": {"final_output": 1_000_000, "user_input": 32_768, "output": 1_000_000},
    "a partial output": {"partial_output": 1_000_000, "output": 1_000_000, "steps": 10},
    "outputs": {"output": 1_000_000, "steps": 100},
    "descriptions": {"description": 4096, "steps": 100, "piece": "\0"},
    "errors": {"step_error": 2000, "steps": 100, "piece": "\0", "error_message": 2000},
    "questions": {"prompt": 200_000, "questions": 20},
    "one large question": {"prompt": 260_000, "questions": 1, "output": 900_000, "steps": 100},
    "everything": {
        "user_input": 32_768,
        "final_output": 1_000_000,
        "error_message": 2000,
        "description": 4096,
        "output": 1_000_000,
        "step_error": 2000,
        "prompt": 30_000,
        "questions": 300,
        "steps": 100,
        "piece": "✓",
    },
    "everything in escapes": {
        "user_input": 32_768,
        "final_output": 160_000,
        "description": 4096,
        "output": 160_000,
        "step_error": 2000,
        "steps": 100,
        "piece": "\0",
    },
}


@pytest.mark.parametrize("name", LARGE)
def test_a_large_snapshot_is_cut_to_the_bound(name):
    """What tells where the task is stays whole; each text that was cut says so."""
    whole, found = snapshot(**LARGE[name]), bounded(snapshot(**LARGE[name]))
    assert 0.3 * MAX_SNAPSHOT < len(orjson.dumps(found)) <= MAX_SNAPSHOT
    assert found.keys() == whole.keys()
    for field in ("user_input", "final_output", "partial_output", "error_message"):
        assert found[field] == whole[field] or CUT in found[field]
    for step, before in zip(found["steps"], whole["steps"], strict=True):
        assert step.keys() == before.keys()
        assert (step["step_id"], step["depends_on"]) == (before["step_id"], before["depends_on"])
        for field in ("description", "output", "error_message"):
            assert step[field] == before[field] or CUT in step[field]
    assert all(question in whole["inputs"] for question in found["inputs"])
    assert bool(found["inputs"]) is bool(whole["inputs"])


def test_short_texts_are_not_cut_for_long_ones():
    """Only those above an equal share are."""
    large = snapshot(steps=3, output=1_000_000, user_input=100, description=100)
    large["steps"][1]["output"] = "short"
    found = bounded(large)
    assert found["steps"][1]["output"] == "short"
    assert (found["user_input"], found["steps"][0]["description"]) == ("a" * 100, "a" * 100)
    lengths = [len(found["steps"][number]["output"]) for number in (0, 2)]
    assert min(lengths) > 500_000


def test_a_snapshot_that_fits_is_left_alone():
    """To the last byte."""
    fits = snapshot(output=1_000_000)
    assert bounded(fits) == snapshot(output=1_000_000)


@pytest.mark.parametrize("piece", ["a", "✓", "😀", "\0"])
@pytest.mark.parametrize("limit", [0, 50, 100, 101, 107, 1000, 100_000])
def test_a_cut_text_has_at_most_its_limit(piece, limit):
    """Or what the note needs."""
    found = fitted(piece * 100_000, limit)
    assert len(orjson.dumps(found)) <= max(limit, 100)
    assert found.endswith(f"{CUT} 100000 characters]")
