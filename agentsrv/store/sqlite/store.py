"""SqliteStore: one file, one connection, one commit at a time.

The statements of all who wait are executed in the event loop, some microseconds each, into one
transaction; a thread then does what takes long, its COMMIT with the ``fsync``. Alone, a write is
committed at once; under load, the next batch gathers while the disk works. Statements in the
thread would be slower by far: each lets go of the interpreter lock and must wait for a busy
loop to give it back, up to 5 ms, before the next.

There is a single connection because SQLite before 3.51.3 can corrupt a write-ahead log that two
connections checkpoint, and ``synchronous=FULL`` because ``NORMAL`` forgets commits at a power
cut.

Theory of operation of a store that cannot write.

``sqlite_faults`` says what an error means. One that passes (another program's lock, a full disk,
a file that was moved away) makes the store wait: ``_wait`` is set, and what was executed but not
committed is held. A timer lets the thread try again, every ``FIRST_RETRY`` to ``LAST_RETRY``
seconds; between the tries the loop uses the connection to read. While it waits:

    reads                                   are answered: committed events are readable. Not so
                                            where the file was moved: what was committed there
                                            may not be found again
    appends of running tasks, releases,     wait as long as the store does: a running task loses
    claims                                  nothing, and goes on where it was
    creates, appends of tasks that do not   wait ``TOLERATED`` seconds, because most locks are gone
    run, purges                             by then; afterwards they are refused as
    ``UnavailableError``

After ``TOLERATED`` seconds the wait is announced: ``trouble`` is set, ``/readyz`` answers 503, and
the log says why and what to do. When the store writes again, what was held is committed first and
acknowledged in its order. Errors that do not pass end the store (``_break``): nothing more is
written or acknowledged, and the server ends with status 1.

                  error that passes                   another try fails
      writing ------------------------> waiting <-------------------+
         ^                                 |  |                     |
         |     the other try succeeds      |  +---------------------+
         +---------------------------------+
      writing or waiting, and an error that does not pass: broken. ``close``: closed.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any, Final, TypeVar

from agentsrv.backoff import backoff
from agentsrv.error_text import describe
from agentsrv.errors import UnavailableError
from agentsrv.models.states import TaskStatus
from agentsrv.store import base
from agentsrv.store.attempt_marks import AttemptMarks
from agentsrv.store.base import (
    Append,
    Commit,
    Created,
    Head,
    Lease,
    NewTask,
    Page,
    Span,
    StoreListener,
)
from agentsrv.store.queue import QueueLimits
from agentsrv.store.sqlite.faults import Fault, MovedError, fault_of, hint_for, may_pass
from agentsrv.store.sqlite.file import StoreInUseError, writer_of
from agentsrv.store.sqlite.log import WAL_LIMIT, SqliteLog
from agentsrv.store.sqlite.operation import (
    Operation,
    Outcome,
    Outcomes,
    Work,
    is_replay,
    outcome_of,
    read_span,
)

T = TypeVar("T")

MAX_ROWS = 2000  # events written in one turn of the loop: some 5 ms
FIRST_RETRY: Final = 0.05  # seconds until a store that waits tries again; then twice as long each
LAST_RETRY: Final = 0.5  # seconds
TOLERATED: Final = 2.0  # seconds that a store waits before clients are refused
OPEN_PATIENCE: Final = (
    20.0  # seconds that ``open`` waits; a supervisor then starts the server again
)
CHECK_EVERY: Final = 1.0  # seconds between looks at the file of a store that is idle
LONG_LOG: Final = 4 * WAL_LIMIT  # bytes of a write-ahead log that somebody keeps from shrinking
CLOSED: Final = UnavailableError("the store is closed")

_log = logging.getLogger("agentsrv.store")


@dataclass(slots=True, eq=False)
class _Wait:
    """The store waits for something to pass."""

    error: BaseException
    since: float
    """Of the monotonic clock."""
    pauses: Iterator[float] = field(default_factory=lambda: backoff(FIRST_RETRY, LAST_RETRY))
    held: Outcomes = field(default_factory=list)
    """What was executed and waits for its commit."""


class SqliteStore:
    """The default store: durable, embedded, for one server at a time.

    The thread starts in ``open`` and ends in ``close``; while it works, the loop does not use the
    connection. After a failed write or sync nothing more is written or acknowledged: what a failed
    ``fsync`` left behind is only known after the file was opened anew.
    """

    def __init__(self, path: Path, limits: QueueLimits | None = None) -> None:
        self.path = path
        self._file = SqliteLog(path, limits or QueueLimits())
        self.marks: AttemptMarks | None = self._file.marks
        self.commits_starts = False
        self._waiting: list[Operation] = []
        self._busy = False
        self._scheduled = False
        self._broken: BaseException | None = None
        self._wait: _Wait | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._has_long_log = False
        self._checked = 0.0
        self.trouble: str | None = None
        """See ``Store.trouble``."""
        self._since: float | None = None
        """When the transaction that is under way was begun, of the monotonic clock."""
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="agentsrv-sqlite", daemon=True)
        self._listener = base.SILENT

    async def open(self, listener: StoreListener = base.SILENT) -> None:
        """See ``Store.open``."""
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        give_up, is_told = monotonic() + OPEN_PATIENCE, False
        while True:
            try:
                await self._open_file()
                break
            except StoreInUseError:
                raise
            except UnavailableError as error:
                if not may_pass(error.__cause__) or monotonic() > give_up:
                    raise
                if not is_told:
                    _log.warning("%s; waiting up to %g s for it", error, OPEN_PATIENCE)
                is_told = True
            await asyncio.sleep(LAST_RETRY)
        if is_told:
            _log.info("the store %s is open", self.path)
        self._thread.start()

    async def _open_file(self) -> None:
        """Open the file in a thread; cancelling it leaves the file closed."""
        opening = asyncio.ensure_future(asyncio.to_thread(self._file.open))
        try:
            await asyncio.shield(opening)
        except asyncio.CancelledError:
            await asyncio.wait({opening})
            if opening.exception() is None:
                self._file.close()
            raise

    async def announce_stop(self) -> None:
        """See ``Store.announce_stop``; no disk is needed for it, so a full one does not matter."""
        self._file.marks.announce_stop()

    async def close(self) -> None:
        """See ``Store.close``."""
        if self._thread.is_alive():
            if self._wait is not None:
                self._give_up_waiting()
            with suppress(UnavailableError):  # broken before: there is nothing to finish
                await self._submit(SqliteLog.commit, is_long=True, writes=True)
            if self._wait is not None:  # since then
                self._give_up_waiting()
            self._broken = self._broken or CLOSED
            closed: asyncio.Future[None] = self._loop.create_future()
            # In our own thread: agents that block may have taken all of the loop's.
            self._jobs.put(lambda: self._close_file(closed))
            self._jobs.put(None)
            await closed
            self._thread.join()

    async def check(self) -> None:
        """See ``Store.check``."""
        await self._submit(SqliteLog.check_lock, writes=True)

    async def create(self, task: NewTask) -> Created:
        """See ``Store.create``."""
        commit = Commit(task.task_id, task.owner, 0, task.events)
        return await self._submit(
            lambda log: log.create(task), commit, writes=True, task_id=task.task_id
        )

    async def head(self, task_id: str) -> Head | None:
        """See ``Store.head``."""
        return await self._submit(lambda log: log.head(task_id), task_id=task_id)

    async def find(self, owner: str, prefix: str) -> Sequence[str]:
        """See ``Store.find``."""
        return await self._submit(lambda log: log.find(owner, prefix), nothing=())

    async def find_key(self, owner: str, idempotency_key: str) -> str | None:
        """See ``Store.find_key``."""
        return await self._submit(lambda log: log.find_key(owner, idempotency_key))

    async def read(self, task_id: str, after: int, limit: int) -> Sequence[bytes]:
        """See ``Store.read``."""
        return await self._submit(
            lambda log: log.read(task_id, after, limit), task_id=task_id, nothing=()
        )

    async def read_each(self, spans: Sequence[Span]) -> Sequence[Sequence[bytes] | None]:
        """See ``Store.read_each``."""
        return await self._submit(lambda log: [read_span(log, span) for span in spans])

    async def spec(self, task_id: str) -> bytes | None:
        """See ``Store.spec``."""
        return await self._submit(lambda log: log.spec(task_id), task_id=task_id)

    async def state(self, task_id: str) -> bytes | None:
        """See ``Store.state``."""
        return await self._submit(lambda log: log.state(task_id), task_id=task_id)

    async def list(
        self, owner: str, status: TaskStatus | None, limit: int, cursor: str | None
    ) -> Page:
        """See ``Store.list``."""
        before = base.parse_cursor(cursor)
        return await self._submit(
            lambda log: log.list(owner, status, limit, before),
            is_long=True,
            nothing=Page([], 0, None),
        )

    def append(self, append: Append) -> asyncio.Future[None]:
        """See ``Store.append``."""
        commit = Commit(append.task_id, append.owner, append.expected, append.events)
        return self._submit(
            lambda log: log.append(append),
            commit,
            writes=True,
            task_id=append.task_id,
            is_patient=self._file.queue.is_leased(append.task_id),
        )

    async def claim(self, node: str, limit: int) -> Sequence[Lease]:
        """See ``Store.claim``.

        The claim becomes durable with the first append that it allows; if that never happens,
        the next process finds the task as it was.
        """
        return await self._submit(
            lambda log: log.claim(node, limit), is_early=True, writes=True, is_patient=True
        )

    async def release(self, task_id: str, epoch: int) -> None:
        """See ``Store.release``."""
        await self._submit(
            lambda log: log.release(task_id, epoch), writes=True, task_id=task_id, is_patient=True
        )

    async def purge(self, before: float, limit: int) -> int:
        """See ``Store.purge``."""
        return await self._submit(lambda log: log.purge(before, limit), is_long=True, writes=True)

    @property
    def queued(self) -> int:
        """See ``Store.queued``."""
        return len(self._file.queue)

    @property
    def damage(self) -> Mapping[str, str]:
        """See ``Store.damage``."""
        return self._file.damaged

    def queued_by(self, owner: str) -> int:
        """See ``Store.queued_by``."""
        return self._file.queue.waiting(owner)

    def _submit(
        self,
        work: Work[T],
        commit: Commit | None = None,
        *,
        is_long: bool = False,
        is_early: bool = False,
        writes: bool = False,
        task_id: str | None = None,
        is_patient: bool = False,
        nothing: Any = None,
    ) -> asyncio.Future[T]:
        done: asyncio.Future[T] = self._loop.create_future()
        if self._broken is not None:
            done.set_exception(self._unavailable())
            return done
        if self.trouble is not None and writes and not is_patient:
            done.set_exception(UnavailableError(self.trouble))
            return done
        self._waiting.append(
            Operation(work, done, commit, is_long, is_early, writes, task_id, nothing, is_patient)
        )
        if not self._scheduled and not self._busy:
            self._scheduled = True
            # At the end of the turn: whatever else the turn asks for goes along.
            self._loop.call_soon(self._turn)
        return done

    def _turn(self) -> None:
        """Execute what waits; hand the commit, and what takes long, to the thread."""
        self._scheduled = False
        if self._broken is not None:
            self._break(self._broken, [])
            return
        if self._wait is not None:
            self._read_only_turn()
            return
        outcomes: Outcomes = []
        since = monotonic()
        try:
            long = self._execute(outcomes)
            self._file.flush()
            outcomes = self._without_dropped(outcomes)
        except Exception as error:  # noqa: BLE001 - whatever it was, nothing is acknowledged
            self._fail(error, outcomes)
            return
        if long is None and not self._file.has_changes:
            self._settle(outcomes)
            return
        self._busy = True
        self._since = since if self._file.has_changes else None
        early = [outcome for outcome in outcomes if outcome[0].is_early]
        later = [outcome for outcome in outcomes if not outcome[0].is_early]
        self._jobs.put(lambda: self._finish(later, long))
        self._settle(early)

    def _without_dropped(self, outcomes: Outcomes) -> Outcomes:
        """Refuse the operations on tasks that the transaction has left out as damaged."""
        dropped = self._file.take_dropped()
        if not dropped:
            return outcomes
        for task_id, reason in dropped.items():
            self._file.note_damage(task_id, reason)
        kept: Outcomes = []
        for outcome in outcomes:
            operation, result, refusal = outcome
            if operation.writes and operation.task_id in dropped:
                if operation.commit is not None:
                    self._file.queue.drop(operation.task_id, operation.commit.owner)
                kept.append((operation, None, base.damaged(operation.task_id)))
            elif operation.is_early and result:  # nobody works on a task that cannot be written
                leases = [lease for lease in result if lease.task_id not in dropped]
                kept.append((operation, leases, refusal))
                if len(leases) < len(result):  # there may be others to claim in their place
                    self._loop.call_soon_threadsafe(base.notify, self._listener.ready)
            else:
                kept.append(outcome)
        return kept

    def _execute(self, outcomes: Outcomes) -> Operation | None:
        """Execute operations up to one that takes long, which is returned.

        One that meets an error which is not its own stays the first of those that wait.
        """
        waiting, rows = self._waiting, 0
        for place, operation in enumerate(waiting):
            if operation.is_long or rows > MAX_ROWS:
                self._waiting = waiting[place + operation.is_long :]
                return operation if operation.is_long else None
            try:
                outcomes.append(outcome_of(operation, self._file))
            except sqlite3.Error:
                self._waiting = waiting[place:]
                raise
            if operation.commit is not None:
                rows += len(operation.commit.events)
        self._waiting = []
        return None

    def _settle(self, outcomes: Sequence[Outcome]) -> None:
        """Tell everybody what has become of their operations."""
        for operation, result, refusal in outcomes:
            if refusal is None:
                if not operation.done.done():  # cancelled, or refused while the store waited
                    operation.done.set_result(result)
                if operation.commit is not None and not is_replay(result):
                    base.notify(self._listener.committed, operation.commit)
            elif not operation.done.done():
                operation.done.set_exception(refusal)
        if not self._busy and self._file.take_ready_changed():
            base.notify(self._listener.ready)
        if self._waiting and not self._scheduled and not self._busy and self._wait is None:
            self._scheduled = True
            self._loop.call_soon(self._turn)

    def _committed(
        self, outcomes: Outcomes, left: Operation | None, error: BaseException | None
    ) -> None:
        """The thread is done; ``left`` is an operation that it could not execute."""
        self._busy = False
        if left is not None:
            self._waiting.insert(0, left)
        if error is not None:
            self._fail(error, outcomes)
        else:
            if self._since is not None:
                base.notify(self._listener.durable, monotonic() - self._since)
            self._settle(outcomes)

    def _fail(self, error: BaseException, outcomes: Outcomes) -> None:
        """Wait where the error passes; else break."""
        if fault_of(error) is not Fault.PASSING:
            self._break(error, outcomes)
            return
        self._file.roll_back()
        self._wait = _Wait(error, monotonic())
        self._wait.held = [outcome for outcome in outcomes if outcome[0].writes]
        # Reads of the same turn may have seen what is not committed: they are executed again.
        reads = [operation for operation, _, _ in outcomes if not operation.writes]
        self._waiting = [*reads, *self._waiting]
        self._announce_when_due()
        self._schedule_retry(self._wait)
        self._schedule_reads()

    # While the store waits.

    def _read_only_turn(self) -> None:
        """Execute what reads; what writes stays where it is."""
        if self._busy:
            return  # the thread uses the connection; it schedules a turn
        assert self._wait is not None
        is_moved = isinstance(self._wait.error, MovedError)
        waiting, self._waiting = self._waiting, []
        outcomes: Outcomes = []
        for operation in waiting:
            if operation.writes:
                self._waiting.append(operation)
                continue
            if is_moved:
                outcomes.append((operation, None, UnavailableError(self.trouble or "")))
                continue
            try:
                outcomes.append(outcome_of(operation, self._file))
            except sqlite3.Error as error:
                refusal = UnavailableError(f"the store cannot be read now: {describe(error)}")
                outcomes.append((operation, None, refusal))
        self._settle(outcomes)

    def _schedule_reads(self) -> None:
        if not self._scheduled and not all(operation.writes for operation in self._waiting):
            self._scheduled = True
            self._loop.call_soon(self._turn)

    def _schedule_retry(self, wait: _Wait) -> None:
        self._retry = self._loop.call_later(next(wait.pauses), self._try_again)

    def _try_again(self) -> None:
        self._busy = True
        self._jobs.put(self._attempt)

    def _attempted(self, error: BaseException | None) -> None:
        """The thread has tried; what was held is committed where it succeeded."""
        self._busy = False
        wait = self._wait
        if wait is None:
            return
        if error is not None and fault_of(error) is not Fault.PASSING:
            self._wait = None
            self._break(error, wait.held)
            return
        if error is not None:
            wait.error = error
            self._announce_when_due()
            self._schedule_retry(wait)
            self._schedule_reads()
            return
        self._wait = None
        if self.trouble is not None:
            waited = monotonic() - wait.since
            _log.warning("the store %s takes writes again, after %.1f s", self.path, waited)
            self.trouble = None
            base.notify(self._listener.resumed)
        self._settle(self._without_dropped(wait.held))

    def _announce_when_due(self) -> None:
        """Refuse clients, and say why, once the store has waited for long enough."""
        wait = self._wait
        assert wait is not None
        waited = monotonic() - wait.since
        if self.trouble is not None or (
            waited < TOLERATED and not isinstance(wait.error, MovedError)
        ):
            return
        reason, hint = describe(wait.error).partition(": ")[2], hint_for(wait.error)
        writer = writer_of(self.path)
        if writer is not None and not isinstance(wait.error, MovedError):
            reason += f" (process {writer})"
        self.trouble = f"the store cannot write now: {reason}"
        _log.error(
            "the store %s cannot write, since %.1f s: %s. Clients are told `unavailable`, running "
            "tasks wait, and everything resumes when this has passed: %s",
            self.path,
            waited,
            reason,
            hint,
        )
        patient = [operation for operation in self._waiting if operation.is_patient]
        refused = [operation for operation in self._waiting if operation.writes]
        self._waiting = [operation for operation in self._waiting if not operation.writes] + patient
        self._refuse([each for each in refused if not each.is_patient], self.trouble)
        in_doubt = [operation for operation, _, _ in wait.held if not operation.is_patient]
        self._refuse(in_doubt, f"{self.trouble}; the outcome is unknown")

    def _refuse(self, operations: Sequence[Operation], reason: str) -> None:
        for operation in operations:
            if not operation.done.done():
                operation.done.set_exception(UnavailableError(reason))

    def _give_up_waiting(self) -> None:
        """Acknowledge nothing of what is held: the store is about to be closed."""
        wait, self._wait = self._wait, None
        assert wait is not None
        if self._retry is not None:
            self._retry.cancel()
        self._broken = CLOSED
        reason = self.trouble or f"the store cannot write now: {describe(wait.error)}"
        held = [operation for operation, _, _ in wait.held]
        self._refuse([*held, *self._waiting], f"{reason}; the outcome is unknown")
        self._waiting = []

    def _check_failed(self, error: Exception) -> None:
        """The idle thread has found that the file is not where it was, or is unreadable."""
        if self._wait is None and not self._busy and self._broken is None:
            self._fail(error, [])

    def _break(self, error: BaseException, outcomes: Sequence[Outcome]) -> None:
        """Acknowledge nothing, and never write again."""
        first = self._broken is None
        self._broken = error
        operations = [operation for operation, _, _ in outcomes] + self._waiting
        self._waiting = []
        for operation in operations:
            if not operation.done.done():
                operation.done.set_exception(self._unavailable())
        if first:
            _log.error(
                "the store %s takes no more writes",
                self.path,
                exc_info=error,
                extra={"about": {}},  # no task's fault, whosever turn it was
            )
            base.notify(self._listener.broken, error)

    def _unavailable(self) -> UnavailableError:
        return UnavailableError(f"the store cannot write: {self._broken}; the outcome is unknown")

    # In the thread.

    def _work(self) -> None:
        while True:
            try:
                job = self._jobs.get(timeout=CHECK_EVERY)
            except queue.Empty:
                try:
                    self._check()
                except Exception as error:  # noqa: BLE001 - judged in the loop; the thread lives on
                    with suppress(RuntimeError):  # the loop has ended before the store
                        self._loop.call_soon_threadsafe(self._check_failed, error)
                continue
            if job is None:
                return
            job()

    def _check(self) -> None:
        """Look at the files, every ``CHECK_EVERY`` seconds.

        Raises:
            MovedError: They are not what was opened.
            CutOffError: They are shorter than what was written.
            OSError: They cannot be looked at.
        """
        self._checked = monotonic()
        size = self._file.log_size
        if self._has_long_log is not (size > LONG_LOG):
            self._has_long_log = size > LONG_LOG
            if self._has_long_log:
                _log.warning(
                    "the write-ahead log of %s has %.0f MB and cannot be shortened: another "
                    "program reads the store for long, or the database cannot be written; find "
                    "it (lsof), and look at the disk",
                    self.path,
                    size / 1e6,
                )
        self._file.check_place()
        self._file.check_content()

    def _close_file(self, closed: asyncio.Future[None]) -> None:
        try:
            self._file.close()
        except Exception:  # noqa: BLE001 - whoever closes it waits for it
            _log.exception("the store %s was not closed in order", self.path)
        finally:
            self._loop.call_soon_threadsafe(closed.set_result, None)

    def _finish(self, outcomes: Outcomes, long: Operation | None) -> None:
        failed: BaseException | None = None
        try:
            if long is not None:
                outcomes = [*outcomes, outcome_of(long, self._file)]
                long = None
            self._file.check_place()
            self._file.commit()
            outcomes = self._without_dropped(outcomes)
            self._file.check_place()
            if monotonic() - self._checked > CHECK_EVERY:
                self._check()
        except Exception as error:  # noqa: BLE001 - judged in the loop
            failed = error
        self._loop.call_soon_threadsafe(self._committed, outcomes, long, failed)

    def _attempt(self) -> None:
        """Try to write again what is held, or at least to begin."""
        failed: BaseException | None = None
        try:
            self._file.check_content()
            self._file.put_back_log()
            self._file.check_place()
            self._file.begin()
            if self._file.redo or not self._waiting:
                self._file.commit()
                self._file.check_place()
        except Exception as error:  # noqa: BLE001 - judged in the loop
            failed = error
        self._loop.call_soon_threadsafe(self._attempted, failed)
