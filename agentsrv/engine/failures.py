"""What an agent's error means for its step: the message, whether to try again, the traceback.

A group of errors (`ExceptionGroup`) means what its inner errors mean. One `PermanentError` or
programming error among them makes the failure permanent; the longest ``retry_after`` counts.

Programming errors are ``NameError``, ``AttributeError`` and ``TypeError`` that are raised at a line
of the application itself. The next attempt would run the same line, so they are not retried,
unless the agent's option ``retry_on`` names them. Raised inside a library they may depend on what
a service answered, and are retried like any other error.

A line belongs to the application if its file is in the folder of the agent's own file, or in none
of the standard library, the installed packages and agentsrv. Of an error in an agent's process the
server knows only the names and files, as `RemoteError` has them.

An error's attributes may be anything and may raise anything: what cannot be read is left out, and
the attempt fails all the same.
"""

from __future__ import annotations

import linecache
import logging
import os
import sys
import sysconfig
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final

from agentsrv.error_text import can_be_printed, describe, format_traceback, leaves, redact, safely
from agentsrv.errors import PROGRAMMING_ERRORS, PermanentError, RemoteError, longest_wait
from agentsrv.models.events import TracebackFrame

if TYPE_CHECKING:
    from agentsrv.agents.agent import Agent

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


@dataclass(frozen=True, slots=True)
class Failure:
    """What an error means for the step.

    Attributes:
        message: Its description, without credentials.
        permanent: Whether another attempt would fail in the same way.
        retry_after: Seconds that the service asks to be left alone; ``None`` if it does not.
        traceback: Its frames, the innermost last, as events carry them.
    """

    message: str
    permanent: bool
    retry_after: float | None
    traceback: list[TracebackFrame]


def examine(
    error: BaseException, agent: Agent | None = None, secrets: Collection[str] = ()
) -> Failure:
    """What ``error``, raised by ``agent`` or by a planner, means for the step.

    ``secrets`` are texts that the message and the traceback must not have. Raises nothing.
    """
    home = "" if agent is None else agent.home
    retried = () if agent is None else agent.retry_on
    inner, no_frames = leaves(error), list[TracebackFrame]()
    return Failure(
        message=describe(error, secrets),
        permanent=any(
            safely(partial(_is_permanent, leaf, home, retried), otherwise=False) for leaf in inner
        ),
        retry_after=longest_wait(inner),
        traceback=safely(lambda: frames(error, home, secrets), no_frames),
    )


def log_failure(
    log: logging.Logger, what: str, error: BaseException, why: Failure, secrets: Collection[str]
) -> None:
    """Log at level error that ``what`` (a step, a planning) failed, with the traceback."""
    if can_be_printed(error) and not secrets:
        log.error("%s failed: %s", what, why.message, exc_info=error)
    else:  # a traceback that cannot be made would fail in the log's handlers too
        log.error("%s failed: %s\n%s", what, why.message, format_traceback(error, secrets))


def frames(
    error: BaseException, home: str = "", secrets: Collection[str] = ()
) -> list[TracebackFrame]:
    """The last ``MAX_FRAMES`` frames of an error: `TracebackFrame`.

    ``file`` is relative to the working folder, or to the folder that its module is imported from.
    ``own`` tells the application's frames from those of libraries. Of a group the frames of the
    group are followed by those of each inner error; the last one of each has ``error``, its
    description without ``secrets``.
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
    error: BaseException, home: str, most: int, secrets: Collection[str]
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
        for file, line, function in shown[-most:]
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
    """``file`` without the folders that say where the server is installed."""
    roots = [str(Path.cwd()), *sys.path]
    inside = [root for root in roots if root and file.startswith(root.rstrip(os.sep) + os.sep)]
    if inside:
        return file[len(max(inside, key=len).rstrip(os.sep)) + 1 :]
    return file if file.startswith("<") else Path(file).name
