import io
from dataclasses import asdict

import pytest

from agentsrv.cli.render import MAX_LINE, Printer, Result, describe
from agentsrv.client import Record
from agentsrv.models import events as e

STEP = {"agent": "writer", "description": "Write", "max_retries": 3}
PLAN = [
    {"step_id": "a", "depends_on": [], **STEP},
    {"step_id": "b", "depends_on": ["a"], **STEP},
]


def record(event: e.Event) -> Record:
    """The event in a log."""
    return Record(event.event_type, "t", 1, "", asdict(event))  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (e.TaskCreated("Tell\nme", None, {}, {}), "task created: Tell me"),
        (e.TaskQueued(3), "task queued, number 3 in line"),
        (e.TaskStarted("n1"), "task started on n1"),
        (e.PlanCreated(PLAN), "plan: a writer, b writer after a"),
        (e.PlanCreated(PLAN, "model"), "plan: a writer, b writer after a"),
        (
            e.PlanCreated(PLAN, "rules", "the model's was invalid"),
            "plan: a writer, b writer after a (by rules: the model's was invalid)",
        ),
        (e.StepStarted("a", 1, "writer", "Write"), "a started: writer - Write"),
        (e.StepStarted("a", 2, "writer", "Write"), "a started: writer, attempt 2 - Write"),
        (e.StepProgress("a", 1, 1, 4, "read"), "a 1/4 read"),
        (e.StepProgress("a", 1, 2.5, None, "read"), "a 2.5 read"),
        (e.PartialOutput("a", 1, 7, "Hi"), "a wrote 2 characters at 7: Hi"),
        (
            e.StepRetrying("a", 1, 2, 0.1, "busy", 1, "error"),
            "a attempt 1 failed, the next one follows in 0.1 s: busy",
        ),
        (e.StepCompleted("a", 1, "completed", None, False, 1.5), "a completed in 1.50 s"),
        (e.StepFailed("a", 1, "no", 0, "", False), "a failed: no"),
        (
            e.StepFailed("a", 1, "no", 0, "", True),
            "a failed, the plan goes on without it: no",
        ),
        (e.StepSkipped("a", "not needed"), "a skipped: not needed"),
        (e.StepCancelled("a", 1, "text"), "a cancelled after 4 characters"),
        (e.InputRequired("t/a/1", "a", 1, "Sure?", {}, None, None, None), "a asks t/a/1: Sure?"),
        (e.InputReceived("t/a/1", "a", "accept", True, "me"), "a is answered by me: true"),
        (e.InputReceived("t/a/1", "a", "accept", "so", "me"), "a is answered by me: so"),
        (
            e.InputReceived("t/a/1", "a", "decline", None, "me"),
            "a is told by me that nobody wants to answer",
        ),
        (e.InputReceived("t/a/1", "a", "expire", None, "server"), "a was not answered in time"),
        (
            e.InputReceived("t/a/1", "a", "expire", 7, "server"),
            "a was not answered in time and takes 7",
        ),
        (e.TaskCancelling("enough", "me", 5), "task is being cancelled by me (enough)"),
        (e.TaskRecovered("n2", ["a"]), "task goes on at n2 behind 1 steps"),
        (e.TaskCompleted("completed", "", False, [], 2), "task completed in 2.00 s"),
        (e.TaskCompleted("completed", "", True, ["a"], 2), "task completed in 2.00 s, without a"),
        (e.TaskFailed("failed", "no", "a", 0, ""), "task failed in a: no"),
        (
            e.TaskCancelled("cancelled", None, "me", False, ""),
            "task cancelled by me; a step still runs, cut off",
        ),
        (e.MessageReceived("hey", "me"), "message from me: hey"),
        (e.MessageReceived([1], "me"), "message from me: [1]"),
    ],
    ids=lambda value: value.event_type if isinstance(value, e.Event) else "",
)
def test_an_event_is_one_line(event, line):
    """It says what happened, and to which step."""
    assert describe(record(event)) == line


def test_what_is_unknown_or_long_is_shown_as_far_as_it_goes():
    """A newer server's event keeps its name and data."""
    line = describe(Record("task_praised", "t", 1, "", {"by": "x" * 500}))
    assert line.startswith('task_praised {"by":"xxx')
    assert len(line) == MAX_LINE


class Terminal(io.StringIO):
    """A stream that is a terminal."""

    def isatty(self) -> bool:
        """It is one."""
        return True


def play(printer: Printer, *events: e.Event) -> None:
    """Print events."""
    for event in events:
        printer.event(record(event))


def test_on_a_terminal_the_result_is_not_printed_twice():
    """The last step's text is streamed to stdout; there is nothing to add."""
    lines, result = Terminal(), Terminal()
    printer = Printer(lines, Result(result, streams=True))
    play(printer, e.PlanCreated(PLAN), e.PartialOutput("a", 1, 0, "notes"))
    play(printer, e.PartialOutput("b", 1, 0, "Re"), e.PartialOutput("b", 1, 2, "port\n"))
    printer.output("Report\n")
    assert result.getvalue() == "Report\n"
    assert "a writes:\nnotes\nb writes:\n" in lines.getvalue()


def test_after_a_retry_of_the_last_step_the_result_is_printed_whole():
    """What was streamed holds text of an attempt that failed."""
    lines, result = Terminal(), Terminal()
    printer = Printer(lines, Result(result, streams=True))
    play(printer, e.PlanCreated(PLAN), e.PartialOutput("b", 1, 0, "Rep"))
    play(printer, e.StepRetrying("b", 1, 2, 0.1, "busy", 1, "error"))
    play(printer, e.PartialOutput("b", 2, 0, "Report"))
    printer.output("Report")
    assert result.getvalue() == "RepReportReport\n"


def test_in_a_pipe_the_result_stands_alone():
    """Everything else is beside it."""
    lines, result = Terminal(), io.StringIO()
    printer = Printer(lines, Result(result, streams=False))
    play(printer, e.PlanCreated(PLAN), e.PartialOutput("b", 1, 0, "Report"))
    printer.output("Report")
    assert result.getvalue() == "Report\n"
    assert lines.getvalue().endswith("b writes:\nReport\n")


@pytest.mark.parametrize(
    ("done", "total", "line"),
    [
        ("50%", None, "step s: ? half"),
        (None, 10, "step s: ?/10 half"),
        ([1], "x", "step s: ? half"),
        (5, 0, "step s: 5 half"),
    ],
)
def test_progress_that_an_older_server_stored_is_read(done, total, line):
    """Values outside the schema are shown as unknown."""
    data = {"step_id": "s", "attempt": 1, "done": done, "total": total, "message": "half"}
    assert describe(Record("step_progress", "t", 1, "", data)).endswith(line.partition(": ")[2])
