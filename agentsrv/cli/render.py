"""Events as lines that a person reads."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TextIO

import orjson

from agentsrv.cli.exits import say
from agentsrv.errors import AgentsrvError, InvalidCommandError
from agentsrv.models import events as e
from agentsrv.models.events import Record
from agentsrv.models.states import TaskStatus
from agentsrv.suggest import did_you_mean
from agentsrv.telemetry.safe_text import visible

MAX_LINE = 160  # characters of a line that tells of an event


def describe(record: Record) -> str:
    """What happened, in one line."""
    try:
        event = record.event
    except AgentsrvError:  # a newer server's
        return shorten(f"{record.event_type} {orjson.dumps(record.data).decode()}")
    step = getattr(event, "step_id", None)
    told = describe_step(event) if step else _task(event)
    return shorten(f"{step} {told}" if step else told)


def status_word(status: str) -> str:
    """A status of a task or step as people read it, the same word as in the console."""
    return "asks" if status == TaskStatus.INPUT_REQUIRED else str(status)


def parse_status(word: str) -> TaskStatus:
    """The status that ``word`` names.

    Raises:
        InvalidCommandError: No status has that name.
    """
    known = {status_word(status): status for status in TaskStatus}
    known |= {str(status): status for status in TaskStatus}
    if word in known:
        return known[word]
    hint = did_you_mean(word, known) or f"expected one of {', '.join(known)}"
    raise InvalidCommandError(f"no status {word!r}; {hint}")


def shorten(text: str, most: int = MAX_LINE) -> str:
    """One line of at most ``most`` characters, with nothing that a terminal acts upon."""
    line = visible(" ".join(text.split()))
    return line if len(line) <= most else f"{line[: most - 1]}…"


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
        case e.StepLost():
            return f"the server crashed while the plan was made{_lost(event)}"
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


def describe_step(event: e.Event) -> str:
    """What happened, without the step that it happened to."""
    match event:
        case e.StepStarted():
            again = f", attempt {event.attempt}" if event.attempt > 1 else ""
            return f"started: {event.agent}{again} - {event.description}"
        case e.StepProgress():
            done = f"{event.done:g}" if event.done is not None else "?"
            total = f"/{event.total:g}" if event.total is not None else ""
            return f"{done}{total} {event.message}"
        case e.PartialOutput():
            return f"wrote {len(event.output)} characters at {event.offset}: {event.output}"
        case e.StepRetrying():
            return (
                f"attempt {event.attempt} failed, the next one follows in {event.retry_in:g} s: "
                f"{event.error_message}"
            )
        case e.StepLost():
            return f"the server crashed during attempt {event.attempt}{_lost(event)}"
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


def _lost(event: e.StepLost) -> str:
    suspected = "; it may be the cause" if event.suspected else ""
    return f" ({event.losses} times without progress{suspected})"


def _because(reason: str | None) -> str:
    return f" ({reason})" if reason else ""


class Result:
    """Standard output of ``run``: the final output, once.

    Where people look at it, the text of a plan's one last step is streamed; if that turns out
    not to be the final output, as after a retry, the whole follows.
    """

    def __init__(self, stream: TextIO, *, streams: bool) -> None:
        self._stream = stream
        self._streams = streams
        self._last_step: str | None = None
        self._streamed = ""
        self._is_torn = False  # whether an attempt was shown whose text is not the result

    def see(self, record: Record) -> None:
        """Take note of an event that is not text."""
        if record.event_type == e.PlanCreated.event_type and self._streams:
            steps = record.data["steps"]
            needed = {step_id for step in steps for step_id in step["depends_on"]}
            last = [step["step_id"] for step in steps if step["step_id"] not in needed]
            self._last_step = last[0] if len(last) == 1 else None
        elif record.event_type == e.StepRetrying.event_type:
            is_last = record.data["step_id"] == self._last_step
            self._is_torn = self._is_torn or (is_last and bool(self._streamed))

    def takes(self, record: Record) -> bool:
        """Whether a piece of text belongs to the result."""
        return self._last_step is not None and record.data["step_id"] == self._last_step

    def write(self, record: Record) -> None:
        """Write a piece of text that belongs to the result."""
        text = record.data["output"]
        self._streamed += text
        print(text, end="", file=self._stream, flush=True)

    def finish(self, text: str) -> None:
        """Print the final output, where it has not been seen already."""
        if self._is_torn or self._last_step is None or text != self._streamed:
            print(text, end="" if text.endswith("\n") else "\n", file=self._stream, flush=True)


class Printer:
    """Prints a task's events: a line for each, the steps' texts as they are written.

    Args:
        lines: Where the lines go, and the texts.
        result: Where the final output goes; without one it is not printed.
    """

    def __init__(self, lines: TextIO, result: Result | None = None) -> None:
        self._lines = lines
        self._result = result
        self._writing: str | None = None
        self._at_start = True

    def event(self, record: Record) -> None:
        """Print one event."""
        if record.event_type == e.PartialOutput.event_type:
            self._text(record)
            return
        self._break()
        print(describe(record), file=self._lines, flush=True)
        if self._result is not None:
            self._result.see(record)

    def output(self, text: str) -> None:
        """Print the final output."""
        self._break()
        if self._result is not None:
            self._result.finish(text)

    def tell(self, text: str) -> None:
        """Tell something that is not in the log, on stderr."""
        self._break()
        say(text)

    def pause(self) -> AbstractContextManager[None]:
        """Lines need no pause while something else is written."""
        self._break()
        return nullcontext()

    def close(self) -> None:
        """End the line."""
        self._break()

    def _text(self, record: Record) -> None:
        step_id, text = record.data["step_id"], record.data["output"]
        if self._writing != step_id:
            self._break()
            print(f"{step_id} writes:", file=self._lines, flush=True)
            self._writing = step_id
        if self._result is not None and self._result.takes(record):
            self._result.write(record)
        else:
            print(text, end="", file=self._lines, flush=True)
        self._at_start = text.endswith("\n")

    def _break(self) -> None:
        self._writing = None
        if not self._at_start:
            print(file=self._lines)
            self._at_start = True
