"""The fold in Python and the one in JavaScript: on random logs they give the same states."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import orjson
import pytest

from agentsrv.errors import InvalidStateError
from agentsrv.models import events as e
from agentsrv.models import task
from agentsrv.models.states import StepStatus, TaskStatus
from agentsrv.models.task import TaskState
from tests.support.programs import require
from tests.support.random_logs import TASK_ID, RandomLog

LOGS: Final = 300
SOAK_LOGS: Final = 10_000
FIELDS: Final = {
    "task": ["status", "seq", "user_input", "agent", "params", "created_at", "updated_at",
             "started_at", "final_output", "error_message", "degraded"],
    "step": ["step_id", "agent", "description", "depends_on", "status", "attempt", "output",
             "result", "error_message", "degraded"],
}  # fmt: skip

Json = dict[str, Any]


class JavaScriptFold:
    """A process that folds one log after the other."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def __call__(self, bodies: Sequence[bytes], cut: int) -> Json:
        """The state after a log; ``cut`` is the event after which a list joins in."""
        snapshot = TaskState.fold(TASK_ID, bodies[:cut]).snapshot()
        request = {
            "events": list(map(orjson.Fragment, bodies)),
            "fields": FIELDS,
            "snapshot": snapshot,
            "later": list(map(orjson.Fragment, filter(e.is_life_cycle, bodies[cut:]))),
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(orjson.dumps(request) + b"\n")
        self._process.stdin.flush()
        found: Json = orjson.loads(self._process.stdout.readline())
        return found


@contextmanager
def javascript() -> Iterator[JavaScriptFold]:
    """Run the console's fold in one process of Node.js."""
    require("node")
    program = Path(__file__).with_name("folds.mjs")
    with subprocess.Popen(
        ["node", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        yield JavaScriptFold(process)


def python(bodies: Sequence[bytes], cut: int) -> Json:
    """The same of the fold in Python; ``listed`` is ``None`` if a list cannot know the status.

    That is so after a step has ended with a question open: events of steps are not sent to lists.
    """
    state = TaskState(TASK_ID)
    trail = []
    is_known = True
    for body in bodies:
        record = e.decode(body)
        asked = {question.input_id for question in state.inputs}
        state.apply(record.event, record.timestamp)
        left = {question.input_id for question in state.inputs}
        statuses = [step.status for step in state.steps.values()]
        trail.append([state.status, statuses, sorted(left)])
        if record.seq > cut and not e.is_life_cycle(body) and asked != left:
            is_known = False
    steps = []
    for step in state.steps.values():
        whole = step.snapshot() | {"result": step.result, "degraded": step.degraded}
        steps.append({name: whole[name] for name in FIELDS["step"]})
    whole = state.snapshot()
    for name in ("agent", "params", "started_at"):
        whole[name] = getattr(state, name)
    found = {
        "trail": trail,
        **{name: whole[name] for name in FIELDS["task"]},
        "steps": steps,
        "inputs": whole["inputs"],
        "listed": state.status if is_known else None,
    }
    read: Json = orjson.loads(orjson.dumps(found))
    return read


def differences(ours: Json, theirs: Json) -> list[str]:
    """The fields in which two states differ."""
    for state in (ours, theirs):  # one has the order of the plan, the other that of asking
        state["inputs"].sort(key=lambda asked: asked["input_id"])
    found = []
    for name, value in ours.items():
        if name == "trail":
            found += [
                f"event {seq}: {one} in Python, {other} in JavaScript"
                for seq, (one, other) in enumerate(zip(value, theirs["trail"], strict=True), 1)
                if one != other
            ]
        elif value != theirs[name] and (name != "listed" or value is not None):
            found.append(f"{name}: {value!r} in Python, {theirs[name]!r} in JavaScript")
    return found


def compare(logs: Sequence[int]) -> dict[str, int]:
    """Compare the folds on the logs of these seeds; return how often each situation occurred."""
    figures = dict.fromkeys(
        ("logs", "events", "ended", "with questions", "restarted while asking", "listed"), 0
    )
    with javascript() as fold:
        for seed in logs:
            bodies = RandomLog(seed).bodies
            cut = seed % len(bodies) + 1
            ours, theirs = python(bodies, cut), fold(bodies, cut)
            found = differences(ours, theirs)
            log = "\n".join(body.decode() for body in bodies)
            assert not found, f"seed {seed}: {found}\n{log}"
            kinds = [e.decode(body).event_type for body in bodies]
            figures["logs"] += 1
            figures["events"] += len(bodies)
            figures["ended"] += TaskStatus(ours["status"]).is_terminal
            figures["with questions"] += "input_required" in kinds
            figures["listed"] += ours["listed"] is not None
            figures["restarted while asking"] += any(
                kind == "task_recovered" and open_questions
                for kind, (_, _, open_questions) in zip(kinds, ours["trail"], strict=True)
            )
    return figures


def test_the_folds_agree():
    """Field by field at the end of each log, and status by status after each event."""
    figures = compare(range(LOGS))
    print(figures)
    assert figures["restarted while asking"] >= LOGS // 20
    assert figures["ended"] >= LOGS // 10
    assert figures["listed"] >= LOGS // 2


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_the_folds_agree_on_many_logs():
    """The same on ten thousand logs."""
    print(compare(range(SOAK_LOGS)))


@pytest.fixture(scope="module")
def folded() -> list[tuple[list[bytes], int, Json]]:
    """Logs, and what JavaScript makes of them."""
    with javascript() as fold:
        logs = [RandomLog(seed).bodies for seed in range(LOGS)]
        return [
            (bodies, seed % len(bodies) + 1, fold(bodies, seed % len(bodies) + 1))
            for seed, bodies in enumerate(logs)
        ]


STEP_FOLDS = [kind for kind in task._STEP_FOLDS if kind is not e.StepLost]
TASK_FOLDS = [e.TaskCreated, e.TaskStarted, e.PlanCreated, e.InputReceived, e.StepCompleted,
              e.StepFailed, e.StepCancelled, e.TaskCompleted, e.TaskFailed]  # fmt: skip


@pytest.mark.parametrize(
    ("table", "kind"),
    [("_STEP_FOLDS", kind) for kind in STEP_FOLDS] + [("_TASK_FOLDS", kind) for kind in TASK_FOLDS],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_the_comparison_finds_a_fold_that_is_missing(folded, monkeypatch, table, kind):
    """Without the fold of an event, the states of some logs differ, or a log is refused."""
    monkeypatch.delitem(getattr(task, table), kind)

    def differs(bodies: list[bytes], cut: int, theirs: Json) -> bool:
        try:
            return bool(differences(python(bodies, cut), theirs))
        except (InvalidStateError, KeyError):
            return True

    assert any(differs(*log) for log in folded)


@pytest.mark.parametrize("status", StepStatus)
def test_every_status_of_a_step_occurs(folded, status):
    """The logs reach each of them."""
    assert any(status in {step["status"] for step in theirs["steps"]} for *_, theirs in folded)
