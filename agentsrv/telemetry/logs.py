"""Logs: one line for each record, for people or for programs, whatever characters it has.

A line names what it is about: the connection, the principal, the task, the step and its attempt,
as far as they are known. Code that works on one of these sets it in its context, so the lines of
libraries and of authors name it too.
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
"""Loggers with a line for each connection, or for each request to a model: from warnings on."""
OURS: Final = frozenset({"agentsrv", "asyncio"})
"""Loggers, with those below them, whose records have no credentials in any process."""
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
    """Log from INFO on to ``stream``, unless the application has given the root logger handlers.

    Call it after the import of the application. Loggers of the server that the application has
    disabled, as ``logging.config.dictConfig`` does by default, are enabled again.

    With ``auto`` the format is text if ``stream`` is a terminal, and JSON otherwise. From now on
    records of all loggers are without credentials; see `without_credentials`.
    """
    without_credentials(of_all=True)
    is_text = wanted == "text" or (wanted == "auto" and stream.isatty())
    handler = logging.StreamHandler(stream)
    handler.setFormatter(TextFormatter() if is_text else JsonFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    _handlers[:] = logging.root.handlers
    _enable()
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


def without_credentials(*, of_all: bool = False) -> None:
    """Let this process make records of the log without credentials, whichever handlers print them.

    The message is redacted when a record is made, and ``exc_text`` has the redacted traceback. If
    that leaves out a credential, ``exc_info`` is ``None``.

    Args:
        of_all: Of all loggers, and not only of the server's and asyncio's.
    """
    _records.are_all_ours = _records.are_all_ours or of_all
    if _records.make is None:
        _records.make = logging.getLogRecordFactory()
        logging.setLogRecordFactory(_records)


class _Records:
    """The factory of records."""

    def __init__(self) -> None:
        self.make: Callable[..., logging.LogRecord] | None = None  # the factory before
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
    except Exception as error:  # noqa: BLE001 - logging would print the arguments as they are
        message = ""
        shown = f"{record.pathname}:{record.lineno} logs what has no text: {describe(error)}"
    if shown != message:
        record.msg, record.args = shown, ()
    if _traceback(record) and HIDDEN in (record.exc_text or ""):
        record.exc_info = None


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


_records: Final = _Records()
_handlers: Final[list[logging.Handler]] = []  # of the root logger, after ``configure``
_log = logging.getLogger("agentsrv.log")


def _fields(record: logging.LogRecord) -> Mapping[str, object]:
    fields = getattr(record, "about", None)
    if isinstance(fields, Mapping):  # an author's record may have another meaning for it
        return fields
    with suppress(AttributeError, ReferenceError):  # there is none; it is gone
        return record.websocket.about  # type: ignore[attr-defined,no-any-return]
    return about.get()


def _traceback(record: logging.LogRecord) -> str:
    """The record's error, and its stack if it has one."""
    if record.exc_info and record.exc_info[1] is not None and not record.exc_text:
        record.exc_text = format_traceback(record.exc_info[1])
    return "\n".join(redact(part) for part in (record.exc_text, record.stack_info) if part)
