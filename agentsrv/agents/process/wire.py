"""Messages between the server and a worker: JSON objects, each after its length.

From the server: ``{"job": {…}}`` first, then ``{"reply": ID, "value": …}`` or
``{"reply": ID, "failed": {…}}``.

From the worker: ``{"log": {…}}``, ``{"request": ID, "method": …, "arguments": {…}}``,
``{"text": "…"}`` for a piece of the returned text, and at the end either ``{"done": {…}}`` or
``{"failed": {…}}``.
"""

from __future__ import annotations

import struct
from typing import Any, Final

import orjson

from agentsrv.agents.values import ValueRefusedError, to_json
from agentsrv.error_text import describe, format_traceback
from agentsrv.errors import AgentsrvError, PermanentError

HEADER: Final = struct.Struct("!I")
MAX_JOB_BYTES: Final = 64 << 20
"""Size of the first message to a worker: params, and the outputs and results before the step."""
MAX_RESULT_BYTES: Final = 4 << 20
"""Size of an agent's result."""
MAX_MESSAGE_BYTES: Final = MAX_RESULT_BYTES + (64 << 10)
"""Size of any other message: a result and what stands around it."""
PIECE_CHARACTERS: Final = 1 << 16
"""Length of a piece of text; it fits into a message also where each character is escaped."""


def frame(message: dict[str, Any], limit: int = MAX_MESSAGE_BYTES) -> bytes:
    """The bytes of one message.

    Raises:
        ValueError: It is larger than ``limit``.
        TypeError: It is not JSON.
    """
    body = orjson.dumps(message)
    if len(body) > limit:
        raise ValueError(f"{len(body)} bytes of JSON; expected at most {limit}")
    return HEADER.pack(len(body)) + body


def checked(result: Any) -> Any:
    """Return what an agent gave as its result.

    Raises:
        PermanentError: It is not JSON, or larger than a message.
    """
    try:
        return to_json(result, "result", MAX_RESULT_BYTES)
    except ValueRefusedError as error:
        raise PermanentError(f"the agent's result is refused: {error}") from None


def failure(error: BaseException) -> dict[str, Any]:
    """An exception as the other side can read it, without credentials."""
    kind = type(error).__name__
    return {
        "type": kind.encode(errors="replace").decode(),
        "message": describe(error).removeprefix(kind).removeprefix(": "),
        "permanent": isinstance(error, PermanentError),
        "retry_after": error.retry_after if isinstance(error, AgentsrvError) else None,
        "traceback": format_traceback(error),
    }
