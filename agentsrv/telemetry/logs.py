"""Logs: one line for each thing that is told, for people or for programs, whatever stands in it.

A line names whom it speaks of: the connection, the principal, the task, the step and its attempt,
as far as they are known. Whoever works on one of these says so in its own context, so the lines of
libraries and of authors name it too.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Final, TextIO

import orjson

from agentsrv.error_text import redact
from agentsrv.settings import LogFormat
from agentsrv.telemetry.visible import visible, visible_text

QUIET: Final = ("agentsrv.websocket", "httpx2")
"""Loggers with a line for each connection, or for each request to a model: from warnings on."""
INDENT: Final = "    | "  # before each line of a traceback, so that none passes for another


about: ContextVar[Mapping[str, object]] = ContextVar("about", default=MappingProxyType({}))
"""What the code of this context is about: some of principal, task_id, step_id and attempt.

Only names, because a context may live longer than what they name: timers and the background tasks
of libraries keep theirs. A record's own ``about``, or that of the ``websocket`` which the library
attaches to it, counts more.
"""


class TextFormatter(logging.Formatter):
    """One line for people, and the traceback below it."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its end."""
        at = datetime.fromtimestamp(record.created).strftime("%Y-%m-%d %H:%M:%S")  # noqa: DTZ006 - people's own
        line = f"{at},{record.msecs:03.0f} {record.levelname:7} {record.name}: "
        line += visible(record.getMessage())
        fields = _fields(record)
        if fields:
            line += f" [{' '.join(f'{name}={visible(str(fields[name]))}' for name in fields)}]"
        for part in _traceback(self, record).splitlines():
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
        trace = _traceback(self, record)
        if trace:
            line["traceback"] = visible_text(trace)
        return orjson.dumps(line).decode()


def configure(wanted: LogFormat, stream: TextIO) -> None:
    """Log from INFO on to ``stream``, unless the application has given the root logger handlers.

    Call it after the import of the application. Loggers of the server that the application has
    disabled, as ``logging.config.dictConfig`` does by default, are enabled again.

    With ``auto`` the format is text if ``stream`` is a terminal, and JSON otherwise.
    """
    is_text = wanted == "text" or (wanted == "auto" and stream.isatty())
    handler = logging.StreamHandler(stream)
    handler.setFormatter(TextFormatter() if is_text else JsonFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    _handlers[:] = logging.root.handlers
    _enable()
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


def check() -> None:
    """Repair what code of agents did to the log since ``configure``; do nothing without it.

    Disabled loggers of the server are enabled, and a root logger that has lost all its handlers
    gets back those that it had. Both are reported in the log.
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


_handlers: Final[list[logging.Handler]] = []  # of the root logger, after ``configure``
_log = logging.getLogger("agentsrv.log")


def _fields(record: logging.LogRecord) -> Mapping[str, object]:
    fields = getattr(record, "about", None)
    if isinstance(fields, Mapping):  # an author's record may have another meaning for it
        return fields
    with suppress(AttributeError, ReferenceError):  # there is none; it is gone
        return record.websocket.about  # type: ignore[attr-defined,no-any-return]
    return about.get()


def _traceback(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    """The error that the record tells of, with the stack where that is told too."""
    parts = []
    if record.exc_info:
        parts.append(formatter.formatException(record.exc_info))
    if record.stack_info:
        parts.append(formatter.formatStack(record.stack_info))
    return redact("\n".join(parts))
