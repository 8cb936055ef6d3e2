"""The server's frames as bytes: hello, reply, error, caught_up, goaway.

The sixth, ``event``, is encoded when it is numbered (``agentsrv.models.events``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from agentsrv.error_text import as_fields
from agentsrv.errors import AgentsrvError
from agentsrv.protocol import PROTOCOL

CommandId = str | int | None


def hello(
    *,
    version: str,
    connection_id: str,
    authenticated: bool,
    limits: Mapping[str, Any],
    commands: Sequence[str],
) -> bytes:
    """Encode the first frame of a connection."""
    return orjson.dumps(
        {
            "type": "hello",
            "protocol": PROTOCOL,
            "server": {"name": "agentsrv", "version": version},
            "connection_id": connection_id,
            "authenticated": authenticated,
            "limits": limits,
            "commands": commands,
        }
    )


def reply(command: str, command_id: CommandId, result: Mapping[str, Any]) -> bytes:
    """Encode the reply to a command that was carried out."""
    return orjson.dumps({"type": "reply", "command": command, "id": command_id, **result})


def error(
    command: str | None, command_id: CommandId, refusal: AgentsrvError, task_id: str | None = None
) -> bytes:
    """Encode the error of a command, or of the subscription to ``task_id`` that has ended."""
    head = {"type": "error", "command": command, "id": command_id}
    if task_id is not None:
        head["task_id"] = task_id
    return orjson.dumps(head | as_fields(refusal))


def caught_up(task_id: str, seq: int) -> bytes:
    """Encode that a subscription has delivered every event that was logged when it began."""
    return orjson.dumps({"type": "caught_up", "task_id": task_id, "seq": seq})


def goaway(reason: str, reconnect_in: float) -> bytes:
    """Encode that the server is about to close; ``reconnect_in`` is in seconds."""
    return orjson.dumps({"type": "goaway", "reason": reason, "reconnect_in": reconnect_in})
