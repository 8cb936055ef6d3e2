"""A task's log as the events of one AG-UI run; no I/O.

AG-UI has one run per stream, whose messages and steps must be closed before it ends. Ours is a
log that any number of connections read from any number. So each run replays its task's log
from the first event on, and message ids are made of the task, the step and the attempt: what a
front end has of the task already is dropped by a ``MESSAGES_SNAPSHOT`` before, and nothing is
shown twice, whether it comes back after a lost connection or with the answer to a question.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import orjson

from agentsrv.adapters.ag_ui.messages import NAMESPACE, RunAgentInput
from agentsrv.models.events import Record, decode, parse_timestamp

PROTOCOL_VERSION: Final = "1.0"

_TASK_STATUS: Final = {
    "task_queued": "queued",
    "task_started": "running",
    "task_recovered": "running",
    "task_cancelling": "cancelling",
    "input_required": "input_required",
    "input_received": "running",
    "task_completed": "completed",
    "task_failed": "failed",
    "task_cancelled": "cancelled",
}
_STEP_STATUS: Final = {
    "step_started": "running",
    "step_retrying": "retrying",
    "step_completed": "completed",
    "step_failed": "failed",
    "step_skipped": "skipped",
    "step_cancelled": "cancelled",
    "input_required": "input_required",
    "input_received": "running",
}
_TOLD: Final = frozenset(
    "task_created plan_created step_started step_progress partial_output step_completed "
    "step_cancelled input_required task_completed task_failed task_cancelled".split()
)
"""Events that are told whole by events of AG-UI's own; the others also come as ``CUSTOM``."""

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
        """Whether the front end has messages of the task, which are told anew."""
        self._state = given.state if isinstance(given.state, dict) else {}
        self._is_live = False
        self._agents: dict[str, str] = {}
        self._steps: dict[str, None] = {}
        """Those that are open, in the order of their beginning."""
        self._messages: dict[str, str] = {}
        """The open message of each step."""
        self._texts: dict[str, list[str]] = {}
        """What was written, by message: after a failed attempt the rest is told anew."""
        self._is_stale = False
        """Whether the front end has text of a failed attempt, which is to be taken back."""
        self._questions: dict[str, AguiEvent] = {}
        """Those that wait for an answer, as interrupts."""

    def start(self) -> list[bytes]:
        """The first events: who and what, and the state before the first event of the log."""
        started: AguiEvent = {
            "type": "RUN_STARTED",
            "threadId": self._thread_id,
            "runId": self._run_id,
            "protocolVersion": PROTOCOL_VERSION,
            "metadata": {NAMESPACE: {"task_id": self.task_id}},
        }
        ours = {"task_id": self.task_id, "status": "pending", "steps": {}}
        events = [started]
        if self._has_ours:
            events.append(self._messages_snapshot())
        events.append({"type": "STATE_SNAPSHOT", "snapshot": self._state | {NAMESPACE: ours}})
        self._state = {}
        return list(map(orjson.dumps, events))

    def events(self, bodies: Sequence[bytes]) -> list[bytes]:
        """What encoded events of the log are here; none once the run is over."""
        told: list[bytes] = []
        for body in bodies:
            if self.is_over:
                return told
            record = decode(body)
            at = int(parse_timestamp(record.timestamp) * 1000)
            told += [orjson.dumps({**event, "timestamp": at}) for event in self._tell(record)]
        # Once for all of them: it is as long as all that was written.
        told += map(orjson.dumps, self._restate())
        return told + self._interrupted()

    def caught_up(self) -> list[bytes]:
        """What is left to say when the log has been replayed: the questions that are open."""
        self._is_live = True
        return self._interrupted()

    def _interrupted(self) -> list[bytes]:
        """The end of the run where its task waits for answers; the task goes on behind it.

        A log that is replayed has questions that were answered long ago, so it is only told at
        its end.
        """
        if not self._questions or not self._is_live or self.is_over:
            return []
        outcome = {"type": "interrupt", "interrupts": list(self._questions.values())}
        return list(map(orjson.dumps, self._finish({"outcome": outcome})))

    def _tell(self, record: Record) -> Iterator[AguiEvent]:
        kind, data = record.event_type, record.data
        step_id = str(data.get("step_id"))
        match kind:
            case "plan_created":
                yield from self._plan(data["steps"])
            case "step_started":
                yield from self._step_started(step_id, data)
            case "partial_output":
                yield from self._write(step_id, data)
            case "step_progress":
                progress = {name: data.get(name) for name in ("done", "total", "message")}
                yield _delta({f"steps/{step_id}/progress": progress})
            case "step_retrying":
                yield from self._drop(step_id, data["attempt"])
            case "step_completed" | "step_failed" | "step_cancelled":
                yield from self._close_message(step_id)
                self._close_questions(step_id)
            case "input_required":
                self._questions[data["input_id"]] = _interrupt(data)
            case "input_received":
                self._questions.pop(data["input_id"], None)
        if changed := self._changed(kind, step_id, data):
            yield _delta(changed)
        if kind not in _TOLD:
            yield {"type": "CUSTOM", "name": f"{NAMESPACE}.{kind}", "value": data}
        match kind:
            case "step_completed" | "step_failed" | "step_cancelled":
                yield from self._finish_step(step_id)
            case "task_completed":
                result = data["final_output"]
                yield from self._finish({"result": result, "outcome": {"type": "success"}})
            case "task_failed":
                yield from self._fail(data["error_message"])
            case "task_cancelled":
                yield from self._finish({"outcome": {"type": "cancelled"}})

    def _plan(self, steps: Sequence[Mapping[str, Any]]) -> Iterator[AguiEvent]:
        told = {}
        for step in steps:
            self._agents[step["step_id"]] = step["agent"]
            shown = {name: step[name] for name in ("agent", "description", "depends_on")}
            told[step["step_id"]] = {**shown, "status": "pending"}
        yield _delta({"steps": told})

    def _changed(self, kind: str, step_id: str, data: Mapping[str, Any]) -> dict[str, Any]:
        """What an event changes in the state, by path."""
        changed: dict[str, Any] = {}
        if step_id in self._agents:
            if kind in _STEP_STATUS:
                changed[f"steps/{step_id}/status"] = _STEP_STATUS[kind]
            if kind == "step_started":
                changed[f"steps/{step_id}/attempt"] = data["attempt"]
            if data.get("result") is not None:
                changed[f"steps/{step_id}/result"] = data["result"]
        if kind in _TASK_STATUS:
            asks = kind == "input_received" and self._questions
            changed["status"] = "input_required" if asks else _TASK_STATUS[kind]
        if kind == "task_completed":
            changed |= {name: data[name] for name in ("degraded", "missing_steps")}
        return changed

    def _step_started(self, step_id: str, data: Mapping[str, Any]) -> Iterator[AguiEvent]:
        """A step begins once, whatever attempts it takes."""
        if step_id not in self._steps:
            self._steps[step_id] = None
            ours = {name: data[name] for name in ("agent", "description")}
            yield {"type": "STEP_STARTED", "stepName": step_id, "metadata": {NAMESPACE: ours}}

    def _write(self, step_id: str, data: Mapping[str, Any]) -> Iterator[AguiEvent]:
        message_id = self._messages.get(step_id)
        if message_id is None:
            message_id = self._messages[step_id] = f"{self._ids}{step_id}/{data['attempt']}"
            self._texts[message_id] = []
            yield {"type": "TEXT_MESSAGE_START", **self._message(message_id)}
        self._texts[message_id].append(data["output"])
        yield {"type": "TEXT_MESSAGE_CONTENT", "messageId": message_id, "delta": data["output"]}

    def _message(self, message_id: str, key: str = "messageId") -> AguiEvent:
        name = self._agents.get(message_id.split("/")[1])
        return {key: message_id, "role": "assistant"} | ({} if name is None else {"name": name})

    def _close_message(self, step_id: str) -> Iterator[AguiEvent]:
        message_id = self._messages.pop(step_id, None)
        if message_id is not None:
            yield {"type": "TEXT_MESSAGE_END", "messageId": message_id}

    def _close_questions(self, step_id: str) -> None:
        """A step that has ended waits for no answer any more."""
        for input_id in list(self._questions):
            if self._questions[input_id]["metadata"][NAMESPACE]["step_id"] == step_id:
                del self._questions[input_id]

    def _drop(self, step_id: str, attempt: int) -> Iterator[AguiEvent]:
        """Forget what a failed attempt has written."""
        yield from self._close_message(step_id)
        if self._texts.pop(f"{self._ids}{step_id}/{attempt}", None) is not None:
            self._is_stale = True

    def _restate(self) -> Iterator[AguiEvent]:
        """Take back what failed attempts have written, where some have."""
        if self._is_stale:
            self._is_stale = False
            yield self._messages_snapshot()

    def _messages_snapshot(self) -> AguiEvent:
        """All messages that are valid now; front ends drop the others."""
        written = [
            {**self._message(message_id, "id"), "content": "".join(texts)}
            for message_id, texts in self._texts.items()
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
        """Close what is open, and forget the texts; then only the last event is left."""
        yield from self._restate()
        for step_id in list(self._messages):
            yield from self._close_message(step_id)
        for step_id in list(self._steps):
            yield from self._finish_step(step_id)
        self._texts, self._kept = {}, b""
        self.is_over = True


def _delta(changed: Mapping[str, Any]) -> AguiEvent:
    """Changes of our part of the state; ``add`` also replaces, and ids need no escapes."""
    patch = [
        {"op": "add", "path": f"/{NAMESPACE}/{path}", "value": value}
        for path, value in changed.items()
    ]
    return {"type": "STATE_DELTA", "delta": patch}


def _interrupt(data: Mapping[str, Any]) -> AguiEvent:
    told = {
        "id": data["input_id"],
        "reason": "input_required",
        "message": data["prompt"],
        "responseSchema": data["schema"],
        "metadata": {
            NAMESPACE: {name: data[name] for name in ("step_id", "attempt", "options", "default")}
        },
    }
    return told if data["expires_at"] is None else told | {"expiresAt": data["expires_at"]}
