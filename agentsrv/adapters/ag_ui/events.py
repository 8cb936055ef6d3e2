"""A task's log as the events of one AG-UI run; no I/O.

Theory of operation. AG-UI has one run per stream, and requires that the run's messages and steps
are closed before it ends. A task's log has no such limits: any number of connections read it, each
from any position. Therefore each run replays its task's log from the first event. Ids of messages
consist of the task, the step and the attempt, and a ``MESSAGES_SNAPSHOT`` at the start removes the
messages of the task that the front end already has. So nothing is shown twice, whether the front
end reconnects after a lost connection or with the answer to a question.

`AguiRun` folds each record into a `TaskState` and sends the changes of that state: statuses,
outputs and open questions are read from it. The run itself remembers only what AG-UI requires:
which steps and messages are open in the stream, and which texts the front end has received.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import orjson

from agentsrv.adapters.ag_ui.messages import NAMESPACE, RunAgentInput
from agentsrv.models import events as e
from agentsrv.models.states import StepStatus, TaskStatus
from agentsrv.models.task import TaskState

PROTOCOL_VERSION: Final = "1.0"

_EXPRESSED: Final = frozenset(
    "task_created plan_created step_started step_progress partial_output step_completed "
    "step_cancelled input_required task_completed task_failed task_cancelled".split()
)
"""Types that AG-UI's own events express completely; the others are also sent as ``CUSTOM``."""

AguiEvent = dict[str, Any]


class AguiRun:
    """One run, from ``start`` to the event with which it ``is_over``."""

    def __init__(self, given: RunAgentInput, task_id: str) -> None:
        self.task_id = task_id
        self.is_over = False
        """Whether the last event was made; nothing follows it."""
        self._thread_id, self._run_id = given.thread_id, given.run_id
        self._ids = f"{task_id}/"  # of the task's messages and questions
        kept = [m for m in given.messages if not str(m.get("id")).startswith(self._ids)]
        self._kept = b",".join(map(orjson.dumps, kept))
        """The front end's own messages as JSON, which takes less memory than objects."""
        self._has_ours = len(kept) < len(given.messages)
        """Whether the front end has messages of the task, which are sent again."""
        self._state = given.state if isinstance(given.state, dict) else {}
        self._is_live = False
        self._task = TaskState(task_id)
        self._steps: dict[str, None] = {}
        """Steps that are open in the stream, in the order in which they began."""
        self._open: dict[str, str] = {}
        """The open message of each step."""
        self._written: dict[str, str] = {}
        """The step of each valid message, in the order in which the messages began."""
        self._is_stale = False
        """Whether the front end has received text of a failed attempt, which must be removed."""

    def start(self) -> list[bytes]:
        """Return the first events: the ids of the run, and the state before the first event."""
        started: AguiEvent = {
            "type": "RUN_STARTED",
            "threadId": self._thread_id,
            "runId": self._run_id,
            "protocolVersion": PROTOCOL_VERSION,
            "metadata": {NAMESPACE: {"task_id": self.task_id}},
        }
        ours: AguiEvent = {
            "task_id": self.task_id,
            "status": self._task.status.value,
            "steps": {},
        }
        events = [started]
        if self._has_ours:
            events.append(self._messages_snapshot())
        events.append({"type": "STATE_SNAPSHOT", "snapshot": self._state | {NAMESPACE: ours}})
        self._state = {}
        return list(map(orjson.dumps, events))

    def events(self, bodies: Sequence[bytes]) -> list[bytes]:
        """Translate encoded events of the log; returns none after the end of the run."""
        frames: list[bytes] = []
        for body in bodies:
            if self.is_over:
                return frames
            record = e.decode(body)
            at = int(e.parse_timestamp(record.timestamp) * 1000)
            frames += [orjson.dumps({**event, "timestamp": at}) for event in self._tell(record)]
        # Once for all events: the snapshot contains all texts.
        frames += map(orjson.dumps, self._restate())
        return frames + self._interrupted()

    def caught_up(self) -> list[bytes]:
        """Return the events after the replay: the end of the run, if questions are open."""
        self._is_live = True
        return self._interrupted()

    def _interrupted(self) -> list[bytes]:
        """Return the end of the run if its task waits for answers; the task itself continues.

        A replayed log contains questions that were answered later, so nothing is returned before
        the replay has ended.
        """
        is_asking = self._task.status is TaskStatus.INPUT_REQUIRED
        if not is_asking or not self._is_live or self.is_over:
            return []
        outcome = {"type": "interrupt", "interrupts": list(map(_interrupt, self._task.inputs))}
        return list(map(orjson.dumps, self._finish({"outcome": outcome})))

    def _tell(self, record: e.Record) -> Iterator[AguiEvent]:
        before = self._statuses(record)
        event = self._task.follow(record)
        match event:
            case e.PlanCreated():
                yield self._plan()
            case e.StepStarted():
                yield from self._step_started(event)
            case e.PartialOutput():
                yield from self._write(event)
            case e.StepProgress():
                progress = {"done": event.done, "total": event.total, "message": event.message}
                yield _delta({f"steps/{event.step_id}/progress": progress})
            case e.StepRetrying():
                yield from self._drop(event)
            case e.StepCompleted() | e.StepFailed() | e.StepCancelled():
                yield from self._close_message(event.step_id)
            case _:
                pass
        if changed := self._changes(record, event, before):
            yield _delta(changed)
        if record.event_type not in _EXPRESSED:
            name = f"{NAMESPACE}.{record.event_type}"
            yield {"type": "CUSTOM", "name": name, "value": record.data}
        match event:
            case e.StepCompleted() | e.StepFailed() | e.StepCancelled():
                yield from self._finish_step(event.step_id)
            case e.TaskCompleted():
                success = {"result": event.final_output, "outcome": {"type": "success"}}
                yield from self._finish(success)
            case e.TaskFailed():
                yield from self._fail(event.error_message)
            case e.TaskCancelled():
                yield from self._finish({"outcome": {"type": "cancelled"}})
            case _:
                pass

    def _plan(self) -> AguiEvent:
        steps = {
            step_id: {
                "agent": state.step.agent,
                "description": state.step.description,
                "depends_on": state.step.depends_on,
                "status": state.status.value,
            }
            for step_id, state in self._task.steps.items()
        }
        return _delta({"steps": steps})

    def _statuses(self, record: e.Record) -> tuple[TaskStatus, StepStatus | None]:
        """The statuses of the task and of the record's step."""
        step = self._task.steps.get(record.data.get("step_id", ""))
        return self._task.status, None if step is None else step.status

    def _changes(
        self, record: e.Record, event: e.Event | None, before: tuple[TaskStatus, StepStatus | None]
    ) -> dict[str, Any]:
        """The changes that an event made to the published state, by path."""
        changed: dict[str, Any] = {}
        status, step_status = self._statuses(record)
        if step_status is not None and step_status is not before[1]:
            changed[f"steps/{record.data['step_id']}/status"] = step_status.value
        match event:
            case e.StepStarted():
                changed[f"steps/{event.step_id}/attempt"] = event.attempt
            case e.StepCompleted() if event.result is not None:
                changed[f"steps/{event.step_id}/result"] = event.result
            case e.TaskCompleted():
                changed |= {"degraded": event.degraded, "missing_steps": event.missing_steps}
            case _:
                pass
        if status is not before[0]:
            changed["status"] = status.value
        return changed

    def _step_started(self, event: e.StepStarted) -> Iterator[AguiEvent]:
        """Begin the step, unless an earlier attempt did."""
        if event.step_id not in self._steps:
            self._steps[event.step_id] = None
            ours = {"agent": event.agent, "description": event.description}
            metadata = {NAMESPACE: ours}
            yield {"type": "STEP_STARTED", "stepName": event.step_id, "metadata": metadata}

    def _write(self, event: e.PartialOutput) -> Iterator[AguiEvent]:
        message_id = self._open.get(event.step_id)
        if message_id is None:
            message_id = f"{self._ids}{event.step_id}/{event.attempt}"
            self._open[event.step_id] = message_id
            self._written[message_id] = event.step_id
            yield {"type": "TEXT_MESSAGE_START", **self._message(message_id)}
        yield {"type": "TEXT_MESSAGE_CONTENT", "messageId": message_id, "delta": event.output}

    def _message(self, message_id: str, key: str = "messageId") -> AguiEvent:
        step = self._task.steps[self._written[message_id]].step
        return {key: message_id, "role": "assistant", "name": step.agent}

    def _close_message(self, step_id: str) -> Iterator[AguiEvent]:
        message_id = self._open.pop(step_id, None)
        if message_id is not None:
            yield {"type": "TEXT_MESSAGE_END", "messageId": message_id}

    def _drop(self, event: e.StepRetrying) -> Iterator[AguiEvent]:
        """Invalidate the text of a failed attempt."""
        yield from self._close_message(event.step_id)
        message_id = f"{self._ids}{event.step_id}/{event.attempt}"
        if self._written.pop(message_id, None) is not None:
            self._is_stale = True

    def _restate(self) -> Iterator[AguiEvent]:
        """Remove the texts of failed attempts from the front end, if it has any."""
        if self._is_stale:
            self._is_stale = False
            yield self._messages_snapshot()

    def _messages_snapshot(self) -> AguiEvent:
        """Return all valid messages; front ends drop the others."""
        written = [
            {**self._message(message_id, "id"), "content": self._task.steps[step_id].output}
            for message_id, step_id in self._written.items()
        ]
        parts = [self._kept] if self._kept else []
        messages = b"[%b]" % b",".join([*parts, *map(orjson.dumps, written)])
        return {"type": "MESSAGES_SNAPSHOT", "messages": orjson.Fragment(messages)}

    def _finish_step(self, step_id: str) -> Iterator[AguiEvent]:
        if step_id in self._steps:
            del self._steps[step_id]
            yield {"type": "STEP_FINISHED", "stepName": step_id}

    def _finish(self, end: Mapping[str, Any]) -> Iterator[AguiEvent]:
        yield from self._end()
        run = {"threadId": self._thread_id, "runId": self._run_id}
        yield {"type": "RUN_FINISHED", **run, **end}

    def _fail(self, message: str) -> Iterator[AguiEvent]:
        yield from self._end()
        yield {"type": "RUN_ERROR", "message": message, "code": "task_failed"}

    def _end(self) -> Iterator[AguiEvent]:
        """Close open messages and steps, and drop the texts; only the last event follows."""
        yield from self._restate()
        for step_id in list(self._open):
            yield from self._close_message(step_id)
        for step_id in list(self._steps):
            yield from self._finish_step(step_id)
        self._task, self._written, self._kept = TaskState(self.task_id), {}, b""
        self.is_over = True


def _delta(changed: Mapping[str, Any]) -> AguiEvent:
    """Return changes of our part of the state; ``add`` also replaces, and ids need no escapes."""
    patch = [
        {"op": "add", "path": f"/{NAMESPACE}/{path}", "value": value}
        for path, value in changed.items()
    ]
    return {"type": "STATE_DELTA", "delta": patch}


def _interrupt(asked: e.InputRequired) -> AguiEvent:
    ours = {
        "step_id": asked.step_id,
        "attempt": asked.attempt,
        "options": asked.options,
        "default": asked.default,
    }
    interrupt = {
        "id": asked.input_id,
        "reason": "input_required",
        "message": asked.prompt,
        "responseSchema": asked.schema,
        "metadata": {NAMESPACE: ours},
    }
    return interrupt if asked.expires_at is None else interrupt | {"expiresAt": asked.expires_at}
