"""A front end that speaks AG-UI: it keeps what it is shown, and is strict about the order."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from ag_ui.core import Event
from pydantic import TypeAdapter

EVENTS: TypeAdapter[Any] = TypeAdapter(Event)


class Front:
    """Messages and state over all runs; of the latest run what is open, and how it ended."""

    def __init__(self, text: str = "Say hello.", state: Any = None) -> None:
        self.messages: list[dict[str, Any]] = [{"id": "u1", "role": "user", "content": text}]
        self.state = state
        self.events: list[dict[str, Any]] = []
        """Those of the latest run."""

    @property
    def texts(self) -> list[str]:
        """What the agents have written, as it stands now."""
        return [each["content"] for each in self.messages if each["role"] == "assistant"]

    @property
    def last(self) -> dict[str, Any]:
        """The latest event."""
        return self.events[-1]

    @property
    def is_over(self) -> bool:
        """Whether the run has ended."""
        return bool(self.events) and self.last["type"] in ("RUN_FINISHED", "RUN_ERROR")

    def run_input(self, run_id: str, **fields: Any) -> dict[str, Any]:
        """What is sent to begin a run, with what is there already."""
        return {
            "threadId": "t",
            "runId": run_id,
            "protocolVersion": "1.0",
            "tools": [],
            "context": [],
            "forwardedProps": {},
            "messages": json.loads(json.dumps(self.messages)),
            "state": self.state,
            **fields,
        }

    def of(self, kind: str) -> list[dict[str, Any]]:
        """The run's events of a type, or of a name."""
        return [event for event in self.events if kind in (event["type"], event.get("name"))]

    def take(self, frames: Iterable[bytes | str]) -> None:
        """Take what the server sends; what AG-UI does not allow is an error."""
        for frame in frames:
            event = json.loads(frame)
            EVENTS.validate_python(event)
            self._take(event)

    def _take(self, event: dict[str, Any]) -> None:
        kind = event["type"]
        if kind == "RUN_STARTED":
            assert not self.events or self.is_over
            self.events = []
            self._open: set[str] = set()
            self._steps: set[str] = set()
        else:
            assert not self.is_over, event
            assert self.events or kind == "RUN_ERROR", event
        match kind:
            case "TEXT_MESSAGE_START":
                assert not any(each["id"] == event["messageId"] for each in self.messages), event
                self._open.add(event["messageId"])
                given = {key: event[key] for key in ("role", "name") if key in event}
                self.messages.append(given | {"id": event["messageId"], "content": ""})
            case "TEXT_MESSAGE_CONTENT":
                assert event["messageId"] in self._open
                (message,) = [each for each in self.messages if each["id"] == event["messageId"]]
                message["content"] += event["delta"]
            case "TEXT_MESSAGE_END":
                self._open.remove(event["messageId"])
            case "MESSAGES_SNAPSHOT":
                self.messages = event["messages"]
            case "STEP_STARTED":
                assert event["stepName"] not in self._steps
                self._steps.add(event["stepName"])
            case "STEP_FINISHED":
                self._steps.remove(event["stepName"])
            case "STATE_SNAPSHOT":
                self.state = event["snapshot"]
            case "STATE_DELTA":
                for change in event["delta"]:
                    self._patch(change)
            case "RUN_FINISHED" | "RUN_ERROR" if self.events:
                assert not self._open
                assert not self._steps
        self.events.append(event)

    def _patch(self, change: dict[str, Any]) -> None:
        assert change["op"] == "add"
        *path, name = change["path"].split("/")[1:]
        place = self.state
        for key in path:
            place = place[key]
        place[name] = change["value"]
