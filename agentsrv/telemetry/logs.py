"""Logs: one line for each record, as text or JSON, without control characters or credentials.

A line names its subject: the connection, the principal, the task, the step and the attempt, as far
as they are known. The code that works on a subject sets it in its context (``about``), so the lines
of libraries and of authors name it, too.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, TextIO

import orjson

from agentsrv.credentials import HIDDEN
from agentsrv.error_text import describe, format_traceback, redact
from agentsrv.telemetry.safe_text import visible, visible_text

if TYPE_CHECKING:
    from agentsrv.settings import LogFormat

QUIET: Final = ("agentsrv.websocket", "httpx2")
"""Loggers with a line for each connection or request, of which only warnings are logged."""
OURS: Final = frozenset({"agentsrv", "asyncio"})
"""Loggers, with their children, from whose records credentials are removed in every process."""
INDENT: Final = "    | "  # before each line of a traceback, so that it cannot look like a record


about: ContextVar[Mapping[str, object]] = ContextVar("about", default=MappingProxyType({}))
"""The subject of the current code: some of principal, task_id, step_id and attempt.

It contains names only, because a context may live longer than the objects: timers and background
tasks of libraries keep theirs. The ``about`` of a record, or of the ``websocket`` that the library
attaches to a record, takes precedence.
"""


class TextFormatter(logging.Formatter):
    """One line of text, followed by the traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its end."""
        at = datetime.fromtimestamp(record.created).strftime("%Y-%m-%d %H:%M:%S")  # noqa: DTZ006 - local time, for people
        line = f"{at},{record.msecs:03.0f} {record.levelname:7} {record.name}: "
        line += visible(record.getMessage())
        fields = _fields(record)
        if fields:
            line += f" [{' '.join(f'{name}={visible(str(fields[name]))}' for name in fields)}]"
        for part in _traceback(record).splitlines():
            line += f"\n{INDENT}{visible(part)}"
        return line


class JsonFormatter(logging.Formatter):
    """One JSON object on one line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its end."""
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, str | int] = {
            "time": at.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": visible_text(record.getMessage()),
        }
        for name, value in _fields(record).items():
            line[name] = value if isinstance(value, int) else visible_text(str(value))
        trace = _traceback(record)
        if trace:
            line["traceback"] = visible_text(trace)
        return orjson.dumps(line).decode()


def configure(wanted: LogFormat, stream: TextIO) -> None:
    """Log to ``stream`` from INFO on, unless the application has given the root logger handlers.

    Call it after the import of the application. Loggers of the server that the application has
    disabled, as ``logging.config.dictConfig`` does by default, are enabled again. Credentials are
    removed from the records of all loggers; see `remove_credentials`.

    Args:
        wanted: The format. ``auto`` is text if ``stream`` is a terminal, and JSON otherwise.
        stream: Where to write.
    """
    remove_credentials(of_all=True)
    is_text = wanted == "text" or (wanted == "auto" and stream.isatty())
    handler = logging.StreamHandler(stream)
    handler.setFormatter(TextFormatter() if is_text else JsonFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    _handlers[:] = logging.root.handlers
    _enable()
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


def remove_credentials(*, of_all: bool = False) -> None:
    """Remove credentials from log records when they are created, for all handlers.

    The message is redacted, and ``exc_text`` is the redacted traceback. If a traceback contained a
    credential, ``exc_info`` is set to ``None``, so that no handler formats it again.

    Args:
        of_all: Process the records of all loggers. By default only those of the server and of
            asyncio.
    """
    _records.are_all_ours = _records.are_all_ours or of_all
    if _records.make is None:
        _records.make = logging.getLogRecordFactory()
        logging.setLogRecordFactory(_records)


class _Records:
    """A factory of log records."""

    def __init__(self) -> None:
        self.make: Callable[..., logging.LogRecord] | None = None  # the previous factory
        self.are_all_ours = False

    def __call__(self, *args: Any, **kwargs: Any) -> logging.LogRecord:
        assert self.make is not None
        record = self.make(*args, **kwargs)
        if self.are_all_ours or record.name.partition(".")[0] in OURS:
            _hide_credentials(record)
        return record


def _hide_credentials(record: logging.LogRecord) -> None:
    try:
        message = record.getMessage()
        shown = redact(message)
    except Exception as error:  # noqa: BLE001 - logging would print the arguments unredacted
        message = ""
        place = f"{record.pathname}:{record.lineno}"
        shown = f"{place} logged a message that cannot be formatted: {describe(error)}"
    if shown != message:
        record.msg, record.args = shown, ()
    if _traceback(record) and HIDDEN in (record.exc_text or ""):
        record.exc_info = None


def check() -> None:
    """Undo changes that agent code has made to the logging since ``configure``.

    Disabled loggers of the server are enabled, and a root logger without handlers gets back those
    that it had. Both are logged. Without ``configure`` this does nothing.
    """
    if not _handlers:
        return
    names = _enable()
    if not logging.root.handlers:
        for handler in _handlers:
            logging.root.addHandler(handler)
        names.append("root")
    if names:
        _log.warning(
            "code in this process has silenced the loggers %s; they are enabled again. Use "
            "disable_existing_loggers=False",
            ", ".join(names),
        )


def _enable() -> list[str]:
    """Enable the server's loggers; return the names of those that were disabled."""
    found = []
    for name, logger in list(logging.root.manager.loggerDict.items()):
        is_ours = name == "agentsrv" or name.startswith("agentsrv.")
        if is_ours and isinstance(logger, logging.Logger) and logger.disabled:
            logger.disabled = False
            found.append(name)
    return found


_records: Final = _Records()
_handlers: Final[list[logging.Handler]] = []  # of the root logger, after ``configure``
_log = logging.getLogger("agentsrv.log")


def _fields(record: logging.LogRecord) -> Mapping[str, object]:
    fields = getattr(record, "about", None)
    if isinstance(fields, Mapping):  # an author's record may use the name for something else
        return fields
    with suppress(AttributeError, ReferenceError):  # the record has no websocket, or it was deleted
        return record.websocket.about  # type: ignore[attr-defined,no-any-return]
    return about.get()


def _traceback(record: logging.LogRecord) -> str:
    """The traceback and the stack of a record, redacted."""
    if record.exc_info and record.exc_info[1] is not None and not record.exc_text:
        record.exc_text = format_traceback(record.exc_info[1])
    return "\n".join(redact(part) for part in (record.exc_text, record.stack_info) if part)
