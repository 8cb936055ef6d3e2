import io
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest
from rich.console import Console

from agentsrv.cli.live.tree import PlanTree, seconds
from agentsrv.cli.live.view import TaskView
from agentsrv.client import Record
from agentsrv.models import events as e

BEGAN = datetime(2026, 11, 22, 12, tzinfo=UTC)


def planned(step_id: str, *depends_on: str) -> dict[str, object]:
    """A step of a plan."""
    return {
        "step_id": step_id,
        "agent": "writer",
        "description": "",
        "depends_on": depends_on,
        "max_retries": 2,
    }


def seen(*events: e.Event) -> TaskView:
    """A view of events a second apart; the task was queued when it was created."""
    view = TaskView()
    log = [(number, event) for number, event in enumerate(events)]
    if STARTED in events:
        log.insert(1, (0, e.TaskQueued(1)))
    for seq, (second, event) in enumerate(log, 1):
        at = (BEGAN + timedelta(seconds=second)).isoformat()
        view.take(Record(event.event_type, "t1", seq, at, vars(event)))
    return view


def drawn(
    view: TaskView, turn: int | None = 0, size: Sequence[int] = (80, 24), encoding: str = "utf-8"
) -> list[str]:
    """The lines of the tree, a minute and a half behind the first event."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(file=stream, width=size[0], height=size[1])
    console.print(PlanTree(view, BEGAN + timedelta(seconds=90), turn))
    stream.flush()
    assert isinstance(stream.buffer, io.BytesIO)
    return stream.buffer.getvalue().decode(encoding).rstrip().split("\n")


CREATED = e.TaskCreated("Tell\nme", None, {}, {})
STARTED = e.TaskStarted("n1")
PLAN = e.PlanCreated([planned("a"), planned("b", "a"), planned("c", "a"), planned("d", "b", "c")])
BEGUN = e.StepStarted("a", 1, "writer", "Write")


def test_a_task_without_a_plan_is_its_description_and_its_time():
    """In line first, then with a sign that turns."""
    assert drawn(seen(CREATED, e.TaskQueued(3))) == [
        "· Tell me  t1  queued, number 3 in line  1:30 min"
    ]
    running = seen(CREATED, STARTED)
    assert drawn(running) == ["⠋ Tell me  t1  1:30 min"]
    assert drawn(running, turn=1) == ["⠙ Tell me  t1  1:30 min"]
    assert drawn(running, turn=None) == ["▸ Tell me  t1"]


def test_steps_hang_from_the_last_of_those_that_they_wait_for():
    """Only what the tree does not show already is told."""
    assert drawn(seen(CREATED, STARTED, PLAN))[1:] == [
        "└── · a writer",
        "    ├── · b writer",
        "    └── · c writer",
        "        └── · d writer  after b, c",
    ]


@pytest.mark.parametrize(
    ("events", "lines"),
    [
        ([], ["⠋ a writer  1:27 min"]),
        ([e.StepProgress("a", 1, 1, 4, "read")], ["⠋ a writer  1:27 min", "1/4 read"]),
        ([e.PartialOutput("a", 1, 0, "One\nTwo\n")], ["⠋ a writer  1:27 min", "Two"]),
        (
            [e.StepRetrying("a", 1, 2, 0.1, "busy", 1, "error")],
            ["↻ a writer  attempt 1 of 3  1:27 min", "attempt 1: busy"],
        ),
        (
            [
                e.StepRetrying("a", 1, 2, 0.1, "busy", 1, "error"),
                e.StepStarted("a", 2, "writer", "Write"),
                e.StepCompleted("a", 2, "completed", None, False, 0.25),
            ],
            ["✓ a writer  attempt 2 of 3  0.25 s", "attempt 1: busy"],
        ),
        (
            [e.InputRequired("t/a/1", "a", 1, "Sure?", {}, None, None, None)],
            ["? a writer  1:27 min", "asks: Sure?"],
        ),
        (
            [
                e.InputRequired("t/a/1", "a", 1, "Sure?", {}, None, None, None),
                e.InputReceived("t/a/1", "a", "accept", True, "me"),
            ],
            ["⠋ a writer  1:27 min", "is answered by me: true"],
        ),
        ([e.StepFailed("a", 1, "no", 0, "", False)], ["✗ a writer  1.00 s", "failed: no"]),
        ([e.StepCancelled("a", 1, "text")], ["■ a writer  1.00 s"]),
    ],
    ids=["runs", "progress", "text", "retries", "tried again", "asks", "answered", "failed", "cancelled"],
)  # fmt: skip
def test_a_step_shows_where_it_is(events, lines):
    """Its mark, attempts and time, and what it does."""
    plan = e.PlanCreated([planned("a")])
    line, *details = drawn(seen(CREATED, STARTED, plan, BEGUN, *events))[1:]
    assert [line.removeprefix("└── "), *map(str.strip, details)] == lines


def test_what_does_not_run_tells_why():
    """A step that is skipped has no time."""
    plan = e.PlanCreated([planned("a")])
    lines = drawn(seen(CREATED, STARTED, plan, e.StepSkipped("a", "not needed")))
    assert lines[1:] == ["└── – a writer", "      skipped: not needed"]


@pytest.mark.parametrize(
    ("end", "line"),
    [
        (e.TaskCompleted("completed", "", False, [], 2), "✓ Tell me  t1  completed in 2.00 s"),
        (e.TaskFailed("failed", "no", "a", 0, ""), "✗ Tell me  t1  failed in a: no"),
        (e.TaskCancelled("cancelled", None, "me", True, ""), "■ Tell me  t1  cancelled by me"),
        (e.TaskCancelling("enough", "me", 5), "⠋ Tell me  t1  is being cancelled by me (enough)  1:30 min"),
        (e.TaskRecovered("n2", []), "⠋ Tell me  t1  1:30 min"),
    ],
    ids=lambda value: value.event_type if isinstance(value, e.Event) else "",
)  # fmt: skip
def test_the_end_is_told_with_the_task(end, line):
    """And how it came."""
    assert drawn(seen(CREATED, STARTED, end)) == [line]


def test_a_plan_that_is_too_high_is_shown_by_what_goes_on():
    """Steps that ended or wait are counted."""
    plan = e.PlanCreated([planned(f"s{number}") for number in range(30)])
    begun = [e.StepStarted(f"s{number}", 1, "writer", "") for number in range(3)]
    done = e.StepCompleted("s0", 1, "completed", None, False, 0.1)
    lines = drawn(seen(CREATED, STARTED, plan, *begun, done), size=(80, 12))
    assert [line.split("  ")[0] for line in lines[1:3]] == ["├── ⠋ s1 writer", "└── ⠋ s2 writer"]
    assert lines[3:] == ["1 of 30 steps completed"]


def test_a_long_chain_begins_again_at_the_left():
    """Where the terminal is too narrow for more levels."""
    chain = [planned("s0"), *(planned(f"s{n}", f"s{n - 1}") for n in range(1, 4))]
    lines = drawn(seen(CREATED, STARTED, e.PlanCreated(chain)), size=(30, 24))
    assert [line.index("s") for line in lines[1:]] == [6, 10, 6, 10]
    assert lines[3] == "└── · s2 writer  after s1"


def test_nothing_is_wider_than_the_terminal_and_ascii_is_enough():
    """Where the encoding of the terminal has no more."""
    view = seen(e.TaskCreated("word " * 40, None, {}, {}), STARTED, PLAN, BEGUN)
    assert max(map(len, drawn(view, size=(40, 24)))) <= 40
    lines = drawn(seen(CREATED, STARTED, PLAN, BEGUN), encoding="ascii")
    assert lines[:2] == ["| Tell me  t1  1:30 min", "`-- | a writer  1:27 min"]


def test_what_is_unknown_changes_nothing():
    """An event of a newer server."""
    view = seen(CREATED, STARTED)
    view.take(Record("task_praised", "t1", 9, BEGAN.isoformat(), {}))
    assert drawn(view) == ["⠋ Tell me  t1  1:30 min"]


def test_a_step_with_an_open_question_asks_also_after_a_restart():
    """The next attempt waits for the same answer, and so does the task."""
    plan = e.PlanCreated([planned("a")])
    asked = e.InputRequired("t/a/1", "a", 1, "Sure?", {}, None, None, None)
    lost = e.StepRetrying("a", 1, 2, 0.0, "the server stopped", 0, "recovered")
    again = e.StepStarted("a", 2, "writer", "Write")
    lines = drawn(
        seen(CREATED, STARTED, plan, BEGUN, asked, e.TaskRecovered("n2", []), lost, again)
    )
    assert [line.strip("└─ ")[0] for line in lines[:2]] == ["?", "?"]


def test_durations_are_told_as_people_do():
    """In seconds, and in minutes from the first one on."""
    assert list(map(seconds, (0, 59.94, 60, 3725))) == ["0.0 s", "59.9 s", "1:00 min", "62:05 min"]
