"""Messages between the server and a worker: JSON objects, each preceded by its length.

From the server: ``{"job": {…}}`` first, then ``{"reply": ID, "value": …}`` or
``{"reply": ID, "failed": {…}}``.

From the worker: ``{"loaded": true}`` when it has imported the application, ``{"log": {…}}``,
``{"request": ID, "method": …, "arguments": {…}}``, ``{"text": "…"}`` for a piece of the returned
text, and at the end either ``{"done": {…}}`` or ``{"failed": {…}}``.
"""

from __future__ import annotations

import struct
from typing import Any, Final

import orjson

from agentsrv.agents.values import ValueRefusedError, to_json
from agentsrv.error_text import describe, format_traceback, leaves, safely
from agentsrv.errors import PROGRAMMING_ERRORS, PermanentError, longest_wait

HEADER: Final = struct.Struct("!I")
MAX_JOB_BYTES: Final = 64 << 20
"""Maximum size of the job: params, and the outputs and results of dependencies."""
MAX_MESSAGE_BYTES: Final = 4 << 20
"""Maximum size of other messages, unless a result may be larger; see `max_message`."""
ENVELOPE_BYTES: Final = 64 << 10
"""Maximum size of a message with a result, without the result."""
PIECE_CHARACTERS: Final = 1 << 16
"""Length of a piece of text; it fits into a message even if each character is escaped."""
MAX_PROGRAMMING_ERRORS: Final = 20  # programming errors of a group that are sent


def max_message(max_result: int) -> int:
    """Return the maximum message size in bytes for results of ``max_result`` bytes of JSON."""
    return max(MAX_MESSAGE_BYTES, max_result) + ENVELOPE_BYTES


def frame(message: dict[str, Any], limit: int) -> bytes:
    """Return the bytes of one message.

    Raises:
        ValueError: It is larger than ``limit``.
        TypeError: It is not JSON.
    """
    body = orjson.dumps(message)
    if len(body) > limit:
        raise ValueError(f"{len(body)} bytes of JSON; expected at most {limit}")
    return HEADER.pack(len(body)) + body


def checked(result: Any, max_bytes: int) -> Any:
    """Return an agent's result as JSON.

    Raises:
        PermanentError: It is not JSON, or exceeds ``max_bytes`` (the setting ``max_result``).
    """
    try:
        return to_json(result, "result", max_bytes)
    except ValueRefusedError as error:
        raise PermanentError(f"the agent's result is refused: {error}") from None


def failure(error: BaseException) -> dict[str, Any]:
    """Return an exception as the fields of a message, without credentials.

    For a group, the fields combine its errors. ``programming`` lists the programming errors: the
    names of each one's classes, and the file of the line that raised it. The server decides whether
    that file belongs to the application.
    """
    kind = type(error).__name__
    inner = leaves(error)
    programming = [leaf for leaf in inner if isinstance(leaf, PROGRAMMING_ERRORS)]
    return {
        "type": kind.encode(errors="replace").decode(),
        "message": describe(error).removeprefix(kind).removeprefix(": "),
        "permanent": any(isinstance(leaf, PermanentError) for leaf in inner),
        "retry_after": longest_wait(inner),
        "programming": [
            [_kinds(leaf), _file(leaf)] for leaf in programming[:MAX_PROGRAMMING_ERRORS]
        ],
        "traceback": format_traceback(error),
    }


def _kinds(error: BaseException) -> list[str]:
    names = [kind.__qualname__ for kind in type(error).__mro__]
    return [name.encode(errors="replace").decode() for name in names]


def _file(error: BaseException) -> str:
    trace = safely(lambda: error.__traceback__, None)
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    name = "" if trace is None else trace.tb_frame.f_code.co_filename
    return name.encode(errors="replace").decode()
