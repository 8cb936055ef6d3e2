"""Operation: one caller's work in the file, and its result.

``execute`` decides what an exception means for the operation and for the transaction:

    raised by the work                      the operation               the transaction
    AgentsrvError, a value that SQLite      is refused; it has written  continues
    does not accept                         nothing
    damage of a page                        is refused as damaged       continues without what the
                                                                        operation has written
    any other error of SQLite               stays in the queue          is rolled back; the store
                                                                        waits, or is broken
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeVar

from agentsrv.error_text import describe
from agentsrv.errors import AgentsrvError, InvalidCommandError, UnavailableError
from agentsrv.store import base
from agentsrv.store.base import Commit, Created, Span
from agentsrv.store.sqlite.faults import Fault, IndexDamageError, fault_of
from agentsrv.store.sqlite.log import SqliteLog

T = TypeVar("T")
Work = Callable[[SqliteLog], T]

INVALID_ROW: Final = (ValueError, TypeError, AttributeError, LookupError)
"""Errors of reading a row whose content no version of the store has written."""
REFUSALS: Final = (AgentsrvError, ValueError, TypeError, OverflowError, sqlite3.DataError)
"""Errors of one operation: SQLite refuses a value before it writes it."""


@dataclass(slots=True, eq=False)
class Operation:
    """The work of one caller."""

    work: Work[Any]
    done: asyncio.Future[Any]
    commit: Commit | None = None
    is_long: bool = False
    """Whether it may take milliseconds, and is therefore executed in the thread."""
    is_early: bool = False
    """Whether its result may be returned before the commit."""
    writes: bool = False
    task_id: str | None = None
    """The task that it concerns, if it concerns one."""
    default: Any = None
    """The result of a read if no task can have the name that it was given."""
    is_patient: bool = False
    """Whether it waits as long as the store does: a running task depends on it."""


class CallResult(NamedTuple):
    """An operation with its value or its refusal."""

    operation: Operation
    value: Any
    refusal: Exception | None


CallResults = list[CallResult]
"""A name for methods of a class that has a method ``list``."""


def read_span(log: SqliteLog, span: Span) -> Sequence[bytes] | None:
    """Read a range of a log; ``None`` if the log is damaged."""
    try:
        return log.read(*span)
    except UnicodeEncodeError:
        return ()
    except (sqlite3.Error, *INVALID_ROW) as error:
        if isinstance(error, sqlite3.Error) and fault_of(error) is not Fault.DAMAGED:
            raise
        log.note_damage(span.task_id, error)
        return None


def execute(operation: Operation, log: SqliteLog) -> CallResult:
    """Execute an operation in the current transaction.

    Raises:
        sqlite3.Error: Another error than damage; the transaction contains nothing of the operation.
    """
    if operation.writes:
        if operation.task_id in log.dropped:
            return CallResult(operation, None, base.damaged(operation.task_id))
        log.replay()
        log.unit += 1
    unit = log.unit
    try:
        return CallResult(operation, operation.work(log), None)
    except UnicodeEncodeError as error:  # half a surrogate pair: no task has such a name
        if operation.writes:
            refusal = InvalidCommandError(f"a text cannot be stored: {error.reason}")
            return CallResult(operation, None, refusal)
        return CallResult(operation, operation.default, None)
    except (*REFUSALS, *INVALID_ROW) as error:
        if isinstance(error, AgentsrvError) or operation.writes or operation.task_id is None:
            return CallResult(operation, None, error)
        log.note_damage(operation.task_id, error)  # an invalid row
        return CallResult(operation, None, base.damaged(operation.task_id))
    except sqlite3.Error as error:
        if operation.writes:
            log.undo(unit)
        if fault_of(error) is not Fault.DAMAGED:
            raise
        is_new = operation.commit is not None and not operation.commit.after
        if operation.task_id is None or is_new:
            if isinstance(error, IndexDamageError):
                log.note_index_damage(error)
            refused = UnavailableError(f"the store is damaged: {describe(error)}")
            return CallResult(operation, None, refused)
        log.note_damage(operation.task_id, error)
        return CallResult(operation, None, base.damaged(operation.task_id))


def is_replay(result: object) -> bool:
    """Whether a ``create`` found its task and wrote nothing."""
    return isinstance(result, Created) and result.replayed
