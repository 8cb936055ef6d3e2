"""Errors of an author's code: which errors are the author's, and what they mean for an attempt.

`is_agent_error` distinguishes an error of the author's code from a cancellation by the server.
`diagnose` turns such an error into an `AttemptFailedError`: a message, whether another attempt can
succeed, and the traceback that the log shows.

A group of errors (`ExceptionGroup`) means what its inner errors mean. One `PermanentError` or
programming error among them makes the failure permanent; the longest ``retry_after`` applies.

Programming errors are ``NameError``, ``AttributeError`` and ``TypeError`` that are raised at a line
of the application itself. The next attempt would run the same line, so they are not retried,
unless the agent's option ``retry_on`` names them. The same errors raised inside a library may
depend on the answer of a service, and are retried like any other error.

A line belongs to the application if its file is in the folder of the agent's own file, or if it is
neither in the standard library nor in an installed package nor in agentsrv. Errors of an agent's
process arrive as `RemoteError`, which has only the names of the classes and the files.

The attributes of an author's error may have any type and may raise when they are read. An
attribute that cannot be read is left out; the attempt still fails with the rest.
"""

from __future__ import annotations

import asyncio
import linecache
import logging
import os
import sys
import sysconfig
from collections.abc import Collection, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal

from agentsrv.error_text import can_be_printed, describe, format_traceback, leaves, redact, safely
from agentsrv.errors import PROGRAMMING_ERRORS, PermanentError, RemoteError, longest_wait
from agentsrv.models.events import TracebackFrame

if TYPE_CHECKING:
    from agentsrv.agents.agent import Agent

MAX_ERROR: Final = 2000  # characters of an error message in the log
MAX_FRAMES: Final = 20
MAX_CODE: Final = 200  # characters of a line of code

_PACKAGE: Final = str(Path(__file__).parent.parent) + os.sep
_LIBRARIES: Final = (
    _PACKAGE,
    *{
        path + os.sep
        for name, path in sysconfig.get_paths().items()
        if name in {"stdlib", "platstdlib", "purelib", "platlib"}
    },
)


class AttemptFailedError(Exception):
    """An attempt of a step, or of the planning, failed.

    Attributes:
        message: The description of the error for the log, without credentials.
        permanent: Whether another attempt would fail in the same way.
        reason: Why the attempt ended.
        retry_after: Seconds to wait before the next attempt, if the service named a time.
        traceback: The frames of the error, the innermost last; ``None`` if the log has none.
    """

    def __init__(
        self,
        message: str,
        *,
        permanent: bool = False,
        reason: Literal["error", "timeout"] = "error",
        retry_after: float | None = None,
        traceback: list[TracebackFrame] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.permanent = permanent
        self.reason = reason
        self.retry_after = retry_after
        self.traceback = traceback

    def redact(self, secrets: Collection[str]) -> None:
        """Remove credentials and ``secrets`` from the message, and truncate it."""
        self.message = redact(self.message, secrets)[:MAX_ERROR]
        self.args = (self.message,)


def is_agent_error(error: BaseException, *, stopped: bool) -> bool:
    """Whether the author's code raised ``error`` of its own accord.

    Such an error is a failure of the attempt, whatever its class: ``SystemExit`` must not end the
    server, and a ``CancelledError`` that the server did not cause must not cancel the task.
    ``asyncio.Task.cancelling()`` cannot decide this: an agent can cancel its own asyncio task, and
    before Python 3.13 a ``TaskGroup`` that failed does not lower the count again.

    Args:
        error: The error that was raised.
        stopped: Whether the server has cancelled the code, because its task is stopped. A
            ``GeneratorExit`` that closes a coroutine after its event loop has ended is not the
            author's either.
    """
    if isinstance(error, asyncio.CancelledError):
        return not stopped
    if isinstance(error, GeneratorExit):
        return _is_in_task()
    return True


async def clear_cancellation(task: asyncio.Task[Any]) -> None:
    """Undo cancellations of the running ``task`` that an author's code requested.

    The server's own code awaits next in this task. A cancellation that asyncio has yet to deliver
    is delivered and suppressed here.
    """
    while task.cancelling():
        task.uncancel()
    with suppress(asyncio.CancelledError):
        await asyncio.sleep(0)


def diagnose(
    error: BaseException, agent: Agent | None = None, secrets: Collection[str] = ()
) -> AttemptFailedError:
    """Return what ``error``, raised by ``agent`` or by a planner, means for the attempt.

    Raises nothing. The message and the traceback do not contain ``secrets``.
    """
    home = "" if agent is None else agent.home
    retried = () if agent is None else agent.retry_on
    inner, no_frames = leaves(error), list[TracebackFrame]()
    return AttemptFailedError(
        describe(error, secrets),
        permanent=any(
            safely(partial(_is_permanent, leaf, home, retried), otherwise=False) for leaf in inner
        ),
        retry_after=longest_wait(inner),
        traceback=safely(lambda: frames(error, home, secrets), no_frames),
    )


def log_agent_error(
    log: logging.Logger, what: str, error: BaseException, message: str, secrets: Collection[str]
) -> None:
    """Log at level ERROR that ``what`` (a step, a planning) failed, with the traceback."""
    if can_be_printed(error) and not secrets:
        log.error("%s failed: %s", what, message, exc_info=error)
    else:  # the handlers of the log would fail on it, or print a secret
        log.error("%s failed: %s\n%s", what, message, format_traceback(error, secrets))


def frames(
    error: BaseException, home: str = "", secrets: Collection[str] = ()
) -> list[TracebackFrame]:
    """Return the last ``MAX_FRAMES`` frames of an error, the innermost last.

    ``file`` is relative to the working folder, or to the folder from which its module is imported.
    ``own`` is true for frames of the application, false for those of libraries. For a group, its
    own frames are followed by those of each inner error. The last frame of each inner error has
    ``error``: its description without ``secrets``.
    """
    inner = leaves(error)
    if len(inner) == 1 and inner[0] is error:
        return _frames(error, home, MAX_FRAMES, secrets)
    found = _frames(error, home, MAX_FRAMES // 4, secrets)
    each = max(1, (MAX_FRAMES - len(found)) // max(1, len(inner)))
    for leaf in inner:
        if len(found) + each > MAX_FRAMES:
            break
        own = _frames(leaf, home, each, secrets)
        if own:
            own[-1]["error"] = describe(leaf, secrets)[:MAX_CODE]
        found += own
    return found


def _frames(
    error: BaseException, home: str, limit: int, secrets: Collection[str]
) -> list[TracebackFrame]:
    all_frames = list(_walk(error.__traceback__))
    outside = [
        number
        for number, (file, _, _) in enumerate(all_frames)
        if not file.startswith(_PACKAGE) or _is_own(file, home)
    ]
    shown = all_frames[outside[0] :] if outside else all_frames
    return [
        {
            "file": _relative(file),
            "line": line,
            "function": function,
            "code": redact(linecache.getline(file, line).strip(), secrets)[:MAX_CODE],
            "own": _is_own(file, home),
        }
        for file, line, function in shown[-limit:]
    ]


def _walk(trace: TracebackType | None) -> Iterator[tuple[str, int, str]]:
    while trace is not None:
        code = trace.tb_frame.f_code
        yield code.co_filename, trace.tb_lineno or code.co_firstlineno, code.co_qualname
        trace = trace.tb_next


def _is_permanent(
    error: BaseException, home: str, retried: tuple[type[BaseException], ...]
) -> bool:
    """Whether another attempt would end with the same error."""
    if isinstance(error, PermanentError):
        return True
    if isinstance(error, RemoteError):
        names = {kind.__qualname__ for kind in retried}
        return any(
            _is_own(found.file, home) and names.isdisjoint(found.kinds)
            for found in error.programming
            if found.file
        )
    if not isinstance(error, PROGRAMMING_ERRORS) or isinstance(error, retried):
        return False
    file = None
    for file, _, _ in _walk(error.__traceback__):  # noqa: B007 - the last one
        pass
    return file is not None and _is_own(file, home)


def _is_own(file: str, home: str) -> bool:
    if home and file.startswith(home):
        return True
    return not file.startswith((*_LIBRARIES, "<frozen"))


def _relative(file: str) -> str:
    """Return ``file`` without the folders above the application or the installed package."""
    roots = [str(Path.cwd()), *sys.path]
    inside = [root for root in roots if root and file.startswith(root.rstrip(os.sep) + os.sep)]
    if inside:
        return file[len(max(inside, key=len).rstrip(os.sep)) + 1 :]
    return file if file.startswith("<") else Path(file).name


def _is_in_task() -> bool:
    try:
        return asyncio.current_task() is not None
    except RuntimeError:
        return False  # no event loop runs
