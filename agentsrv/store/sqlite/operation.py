"""Operation: what a caller wants done in the file, and what comes of it.

An error of one operation refuses it, and takes back what it has written; the others are executed.
Damage refuses the operations on its task.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from agentsrv.error_text import describe
from agentsrv.errors import AgentsrvError, InvalidCommandError, UnavailableError
from agentsrv.store import base
from agentsrv.store.base import Commit, Created, Span
from agentsrv.store.sqlite.faults import Fault, IndexDamageError, fault_of
from agentsrv.store.sqlite.log import SqliteLog

T = TypeVar("T")
Work = Callable[[SqliteLog], T]

GARBAGE: Final = (ValueError, TypeError, AttributeError, LookupError)
"""What reading a row raises that has another form than any that was written."""
REFUSALS: Final = (AgentsrvError, ValueError, TypeError, OverflowError, sqlite3.DataError)
"""Errors of one operation: values that SQLite cannot take are refused before they are written."""


@dataclass(slots=True, eq=False)
class Operation:
    """What one caller waits for."""

    work: Work[Any]
    done: asyncio.Future[Any]
    commit: Commit | None = None
    is_long: bool = False
    """Whether it may take milliseconds, and so runs in the thread."""
    is_early: bool = False
    """Whether its result may be told before the commit."""
    writes: bool = False
    task_id: str | None = None
    """The task that it is about, if it is about one."""
    nothing: Any = None
    """The result of a read about a name that no task can have."""
    is_patient: bool = False
    """Whether it waits as long as the store does, because a running task depends on it."""


Outcome = tuple[Operation, Any, Exception | None]
"""An operation with its result or its refusal."""
Outcomes = list[Outcome]


def read_span(log: SqliteLog, span: Span) -> Sequence[bytes] | None:
    """A part of a log; ``None`` where it is damaged: other logs are read all the same."""
    try:
        return log.read(*span)
    except UnicodeEncodeError:
        return ()
    except (sqlite3.Error, *GARBAGE) as error:
        if isinstance(error, sqlite3.Error) and fault_of(error) is not Fault.DAMAGED:
            raise
        log.note_damage(span.task_id, error)
        return None


def outcome_of(operation: Operation, log: SqliteLog) -> Outcome:
    """What comes of an operation: its result, or why it is refused.

    Raises:
        sqlite3.Error: Not the operation's fault; nothing of it is left in the transaction.
    """
    if operation.writes:
        if operation.task_id in log.dropped:
            return operation, None, base.damaged(operation.task_id)
        log.replay()
        log.unit += 1
    unit = log.unit
    try:
        return operation, operation.work(log), None
    except UnicodeEncodeError as error:  # half a surrogate pair: no task has that name
        if operation.writes:
            return operation, None, InvalidCommandError(f"a text cannot be stored: {error.reason}")
        return operation, operation.nothing, None
    except (*REFUSALS, *GARBAGE) as refusal:
        if isinstance(refusal, AgentsrvError) or operation.writes or operation.task_id is None:
            return operation, None, refusal
        # A row of another form than any that was written.
        log.note_damage(operation.task_id, refusal)
        return operation, None, base.damaged(operation.task_id)
    except sqlite3.Error as error:
        if operation.writes:
            log.undo(unit)
        if fault_of(error) is not Fault.DAMAGED:
            raise
        is_new = operation.commit is not None and not operation.commit.after
        if operation.task_id is None or is_new:
            if isinstance(error, IndexDamageError):
                log.note_index_damage(error)
            return operation, None, UnavailableError(f"the store is damaged: {describe(error)}")
        log.note_damage(operation.task_id, error)
        return operation, None, base.damaged(operation.task_id)


def is_replay(result: object) -> bool:
    """Whether a ``create`` found its task and wrote nothing."""
    return isinstance(result, Created) and result.replayed
