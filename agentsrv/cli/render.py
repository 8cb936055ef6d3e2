"""Events as lines that a person reads."""

from __future__ import annotations

import sys
from typing import TextIO

import orjson

from agentsrv.client import Record
from agentsrv.errors import AgentsrvError
from agentsrv.models import events as e

MAX_LINE = 160  # characters of a line that tells of an event


def describe(record: Record) -> str:
    """What happened, in one line."""
    try:
        event = record.event
    except AgentsrvError:  # a newer server's
        return shorten(f"{record.event_type} {orjson.dumps(record.data).decode()}")
    step = getattr(event, "step_id", None)
    told = _step(event) if step else _task(event)
    return shorten(f"{step} {told}" if step else told)


def shorten(text: str, most: int = MAX_LINE) -> str:
    """One line of at most ``most`` characters."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


def as_json(record: Record) -> str:
    """The event as one line of JSON, with the fields of its frame."""
    return orjson.dumps(record).decode()


def _task(event: e.Event) -> str:
    match event:
        case e.TaskCreated():
            return f"task created: {event.task_description}"
        case e.TaskQueued():
            return f"task queued, number {event.position} in line"
        case e.TaskStarted():
            return f"task started on {event.node}"
        case e.PlanCreated():
            why = f" (by {event.planned_by}: {event.reason})" if event.reason else ""
            return f"plan: {', '.join(map(_planned, event.steps))}{why}"
        case e.MessageReceived():
            return f"message from {event.by}: {_value(event.message)}"
        case e.TaskCancelling():
            return f"task is being cancelled by {event.by}{_because(event.reason)}"
        case e.TaskRecovered():
            return f"task goes on at {event.node} behind {len(event.completed_steps)} steps"
        case e.TaskCompleted():
            missing = f", without {', '.join(event.missing_steps)}" if event.degraded else ""
            return f"task completed in {event.duration:.2f} s{missing}"
        case e.TaskFailed():
            return f"task failed in {event.failed_step or 'no step'}: {event.error_message}"
        case e.TaskCancelled():
            still = "" if event.stopped else "; a step still runs, cut off"
            return f"task cancelled by {event.by}{_because(event.reason)}{still}"
        case _:
            return _other(event)


def _step(event: e.Event) -> str:
    match event:
        case e.StepStarted():
            again = f", attempt {event.attempt}" if event.attempt > 1 else ""
            return f"started: {event.agent}{again} - {event.description}"
        case e.StepProgress():
            total = f"/{event.total:g}" if event.total is not None else ""
            return f"{event.done:g}{total} {event.message}"
        case e.PartialOutput():
            return f"wrote {len(event.output)} characters at {event.offset}: {event.output}"
        case e.StepRetrying():
            return (
                f"attempt {event.attempt} failed, the next one follows in {event.retry_in:g} s: "
                f"{event.error_message}"
            )
        case e.StepCompleted():
            return f"completed in {event.duration:.2f} s"
        case e.StepFailed():
            how = "failed, the plan goes on without it" if event.degraded else "failed"
            return f"{how}: {event.error_message}"
        case e.StepSkipped():
            return f"skipped: {event.reason}"
        case e.StepCancelled():
            return f"cancelled after {len(event.partial_output)} characters"
        case e.InputRequired():
            return f"asks {event.input_id}: {event.prompt}"
        case e.InputReceived(action="decline"):
            return f"is told by {event.by} that nobody wants to answer"
        case e.InputReceived(action="expire", value=None):
            return "was not answered in time"
        case e.InputReceived(action="expire"):
            return f"was not answered in time and takes {_value(event.value)}"
        case e.InputReceived():
            return f"is answered by {event.by}: {_value(event.value)}"
        case _:
            return _other(event)


def _other(event: e.Event) -> str:
    return f"{event.event_type} {orjson.dumps(vars(event)).decode()}"


def _value(value: object) -> str:
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def _planned(step: object) -> str:
    assert isinstance(step, dict)
    after = f" after {', '.join(step['depends_on'])}" if step["depends_on"] else ""
    return f"{step['step_id']} {step['agent']}{after}"


def _because(reason: str | None) -> str:
    return f" ({reason})" if reason else ""


class Printer:
    """Prints a task's events: a line for each, the steps' texts as they are written.

    Args:
        lines: Where the lines go, and the texts.
        result: Where the final output goes. Where both are terminals, the text of a plan's one
            last step is streamed to it, so that it is not seen twice.
    """

    def __init__(self, lines: TextIO | None = None, result: TextIO | None = None) -> None:
        self._lines = lines or sys.stderr
        self._result = result
        self._live = result is not None and result.isatty() and self._lines.isatty()
        self._last_step: str | None = None
        self._streamed = ""
        self._is_torn = False  # whether an attempt was shown whose text is not the result
        self._writing: str | None = None
        self._at_start = True

    def event(self, record: Record) -> None:
        """Print one event."""
        if record.event_type == e.PartialOutput.event_type:
            self._text(record.data["step_id"], record.data["output"])
            return
        self._break()
        print(describe(record), file=self._lines, flush=True)
        if record.event_type == e.PlanCreated.event_type and self._live:
            steps = record.data["steps"]
            needed = {step_id for step in steps for step_id in step["depends_on"]}
            last = [step["step_id"] for step in steps if step["step_id"] not in needed]
            self._last_step = last[0] if len(last) == 1 else None
        elif record.event_type == e.StepRetrying.event_type:
            self._is_torn = self._is_torn or record.data["step_id"] == self._last_step

    def output(self, text: str) -> None:
        """Print the final output, where it has not been seen already."""
        self._break()
        if self._is_torn or not self._live or text != self._streamed:
            print(text, end="" if text.endswith("\n") else "\n", file=self._result, flush=True)

    def _text(self, step_id: str, text: str) -> None:
        stream = self._lines
        if step_id == self._last_step and self._result is not None:
            stream = self._result
            self._streamed += text
        if self._writing != step_id:
            self._break()
            print(f"{step_id} writes:", file=self._lines, flush=True)
            self._writing = step_id
        print(text, end="", file=stream, flush=True)
        self._at_start = text.endswith("\n")

    def _break(self) -> None:
        self._writing = None
        if not self._at_start:
            print(file=self._lines)
            self._at_start = True
