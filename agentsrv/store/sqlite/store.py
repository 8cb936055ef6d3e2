"""SqliteStore: one file, one connection, one commit at a time.

Theory of operation
===================
*Group commit.* Callers queue operations (``_submit``). At the end of the loop's turn, ``_turn``
executes all of them in the event loop, in one transaction, some microseconds each. A thread then
executes the COMMIT with its ``fsync``; meanwhile (``_busy``) the loop does not use the connection,
and further operations queue for the next turn. So a single write is committed at once, and under
load one ``fsync`` serves many. After the commit the loop resolves the callers' futures
(``_resolve``) and calls the listener.

    1 _submit        loop      queue the operation, schedule a turn
    2 _turn          loop      execute the waiting operations up to one that is long
    3 _finish        thread    execute the long operation (``list``, ``purge``); COMMIT
    4 _committed     loop      resolve futures, call listeners, schedule the next turn

Claims are resolved in step 2 (``is_early``): a claim is durable with the first append that it
allows. A turn without a write and without a long operation ends with step 2.

Statements are not executed in the thread because each of them releases the interpreter lock and
then waits up to 5 ms for a busy loop to return it. There is one connection because SQLite before
3.51.3 can corrupt a write-ahead log that two connections checkpoint. ``synchronous`` is ``FULL``,
because ``NORMAL`` loses commits at a power cut.

A refused operation leaves nothing in the transaction; the others are committed (`operation`).

*A store that cannot write.* `faults` classifies errors. After one that may pass (another program's
lock, a full disk, a moved file) the store waits: ``_wait`` is set, and it holds the operations that
were executed but not committed. A timer makes the thread try again, every ``FIRST_RETRY_DELAY`` to
``MAX_RETRY_DELAY`` seconds; between the attempts the loop uses the connection for reads. Meanwhile

    reads                                   are answered, unless the file was moved: commits in a
                                            moved file may not be found again
    appends of running tasks, releases,     wait as long as the store does (``is_patient``): running
    claims                                  tasks continue where they were
    creates, appends to tasks that do not   wait ``REFUSE_AFTER`` seconds, in which most locks end;
    run, purges                             after that they raise ``UnavailableError``

After ``REFUSE_AFTER`` seconds ``trouble`` is set, ``/readyz`` answers 503, and the log states the
reason and what to do. When the store can write again, the held operations are committed first, and
resolved in their order. After any other error the store is broken (``_break``): nothing more is
written or acknowledged, and the server exits with status 1, because only opening the file again
shows what a failed ``fsync`` left in it.

                error that may pass
      writing ----------------------> waiting --+  another attempt fails
         ^                             |   ^    |
         +-----------------------------+   +----+
              an attempt succeeds

      any other error, in both states: broken.  ``close``: closed.
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
    CallResult,
    CallResults,
    Operation,
    Work,
    execute,
    is_replay,
    read_span,
)

T = TypeVar("T")

MAX_EVENTS_PER_TURN = 2000  # written in one turn of the loop: about 5 ms
FIRST_RETRY_DELAY: Final = 0.05  # seconds; doubled before each further attempt
MAX_RETRY_DELAY: Final = 0.5  # seconds
REFUSE_AFTER: Final = 2.0  # seconds for which the store waits before it refuses clients
OPEN_TIMEOUT: Final = 20.0  # seconds that ``open`` waits; a supervisor then restarts the server
FILE_CHECK_INTERVAL: Final = 1.0  # seconds
LONG_WAL_BYTES: Final = 4 * WAL_LIMIT  # a write-ahead log that another program keeps from shrinking
CLOSED: Final = UnavailableError("the store is closed")

_log = logging.getLogger("agentsrv.store")


@dataclass(slots=True, eq=False)
class _Wait:
    """The state of a store that cannot write."""

    error: BaseException
    since: float
    """Time of the monotonic clock."""
    delays: Iterator[float] = field(
        default_factory=lambda: backoff(FIRST_RETRY_DELAY, MAX_RETRY_DELAY)
    )
    held: CallResults = field(default_factory=list)
    """Operations that were executed and are not committed yet."""


class SqliteStore:
    """The default store: durable, embedded, for one server at a time; see the module.

    ``open`` starts the thread, ``close`` ends it.
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
        """When the current transaction began, by the monotonic clock."""
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="agentsrv-sqlite", daemon=True)
        self._listener = base.SILENT

    async def open(self, listener: StoreListener = base.SILENT) -> None:
        """See ``Store.open``."""
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        give_up, is_logged = monotonic() + OPEN_TIMEOUT, False
        while True:
            try:
                await self._open_file()
                break
            except StoreInUseError:
                raise
            except UnavailableError as error:
                if not may_pass(error.__cause__) or monotonic() > give_up:
                    raise
                if not is_logged:
                    _log.warning("%s; waiting up to %g s for it", error, OPEN_TIMEOUT)
                is_logged = True
            await asyncio.sleep(MAX_RETRY_DELAY)
        if is_logged:
            _log.info("the store %s is open", self.path)
        self._thread.start()

    async def _open_file(self) -> None:
        """Open the file in a thread. A cancellation leaves the file closed."""
        opening = asyncio.ensure_future(asyncio.to_thread(self._file.open))
        try:
            await asyncio.shield(opening)
        except asyncio.CancelledError:
            await asyncio.wait({opening})
            if opening.exception() is None:
                self._file.close()
            raise

    async def announce_stop(self) -> None:
        """See ``Store.announce_stop``; it works on a full disk, too."""
        self._file.marks.announce_stop()

    async def close(self) -> None:
        """See ``Store.close``."""
        if self._thread.is_alive():
            if self._wait is not None:
                self._give_up_waiting()
            with suppress(UnavailableError):  # broken: there is nothing to finish
                await self._submit(SqliteLog.commit, is_long=True, writes=True)
            if self._wait is not None:  # since the commit failed
                self._give_up_waiting()
            self._broken = self._broken or CLOSED
            closed: asyncio.Future[None] = self._loop.create_future()
            # In this store's thread: blocking agents may occupy all threads of the loop.
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
        return await self._submit(lambda log: log.find(owner, prefix), default=())

    async def find_key(self, owner: str, idempotency_key: str) -> str | None:
        """See ``Store.find_key``."""
        return await self._submit(lambda log: log.find_key(owner, idempotency_key))

    async def read(self, task_id: str, after: int, limit: int) -> Sequence[bytes]:
        """See ``Store.read``."""
        return await self._submit(
            lambda log: log.read(task_id, after, limit), task_id=task_id, default=()
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
            default=Page([], 0, None),
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

        The claim is durable with the first append that it allows. Without one, the next process
        finds the task as it was.
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
        default: Any = None,
    ) -> asyncio.Future[T]:
        """Queue an operation; the arguments are the attributes of `Operation`."""
        done: asyncio.Future[T] = self._loop.create_future()
        if self._broken is not None:
            done.set_exception(UnavailableError(self._reason()))
            return done
        if self.trouble is not None and writes and not is_patient:
            done.set_exception(UnavailableError(self.trouble))
            return done
        self._waiting.append(
            Operation(work, done, commit, is_long, is_early, writes, task_id, default, is_patient)
        )
        if not self._scheduled and not self._busy:
            self._scheduled = True
            # At the end of the turn, together with the other operations of this turn.
            self._loop.call_soon(self._turn)
        return done

    def _turn(self) -> None:
        """Execute the waiting operations; give the commit and a long operation to the thread."""
        self._scheduled = False
        if self._broken is not None:
            self._break(self._broken, [])
            return
        if self._wait is not None:
            self._read_only_turn()
            return
        results: CallResults = []
        since = monotonic()
        try:
            long = self._execute(results)
            self._file.flush()
            results = self._without_dropped(results)
        except Exception as error:  # noqa: BLE001 - after any error nothing is acknowledged
            self._fail(error, results)
            return
        if long is None and not self._file.has_changes:
            self._resolve(results)
            return
        self._busy = True
        self._since = since if self._file.has_changes else None
        early = [each for each in results if each.operation.is_early]
        later = [each for each in results if not each.operation.is_early]
        self._jobs.put(lambda: self._finish(later, long))
        self._resolve(early)

    def _without_dropped(self, results: CallResults) -> CallResults:
        """Refuse the operations on tasks that the transaction has left out as damaged."""
        dropped = self._file.take_dropped()
        if not dropped:
            return results
        for task_id, reason in dropped.items():
            self._file.note_damage(task_id, reason)
        kept: CallResults = []
        for each in results:
            operation, value, refusal = each
            if operation.writes and operation.task_id in dropped:
                if operation.commit is not None:
                    self._file.queue.drop(operation.task_id, operation.commit.owner)
                kept.append(CallResult(operation, None, base.damaged(operation.task_id)))
            elif operation.is_early and value:  # a task that cannot be written is not run
                leases = [lease for lease in value if lease.task_id not in dropped]
                if len(leases) < len(value):  # there may be other tasks to claim instead
                    self._loop.call_soon_threadsafe(base.notify, self._listener.ready)
                kept.append(CallResult(operation, leases, refusal))
            else:
                kept.append(each)
        return kept

    def _execute(self, results: CallResults) -> Operation | None:
        """Execute waiting operations up to a long one, which is returned.

        After an error that is not the operation's own, the operation stays first in the queue.
        """
        waiting, events = self._waiting, 0
        for position, operation in enumerate(waiting):
            if operation.is_long or events > MAX_EVENTS_PER_TURN:
                self._waiting = waiting[position + operation.is_long :]
                return operation if operation.is_long else None
            try:
                results.append(execute(operation, self._file))
            except sqlite3.Error:
                self._waiting = waiting[position:]
                raise
            if operation.commit is not None:
                events += len(operation.commit.events)
        self._waiting = []
        return None

    def _resolve(self, results: Sequence[CallResult]) -> None:
        """Resolve the callers' futures, and call the listeners."""
        for operation, value, refusal in results:
            if refusal is None:
                if not operation.done.done():  # cancelled, or refused while the store waited
                    operation.done.set_result(value)
                if operation.commit is not None and not is_replay(value):
                    base.notify(self._listener.committed, operation.commit)
            elif not operation.done.done():
                operation.done.set_exception(refusal)
        if not self._busy and self._file.take_ready_changed():
            base.notify(self._listener.ready)
        if self._waiting and not self._scheduled and not self._busy and self._wait is None:
            self._scheduled = True
            self._loop.call_soon(self._turn)

    def _committed(
        self, results: CallResults, left: Operation | None, error: BaseException | None
    ) -> None:
        """Called after ``_finish``; ``left`` is a long operation that it could not execute."""
        self._busy = False
        if left is not None:
            self._waiting.insert(0, left)
        if error is not None:
            self._fail(error, results)
        else:
            if self._since is not None:
                base.notify(self._listener.durable, monotonic() - self._since)
            self._resolve(results)

    def _fail(self, error: BaseException, results: CallResults) -> None:
        """Wait after an error that may pass; otherwise break."""
        if fault_of(error) is not Fault.PASSING:
            self._break(error, results)
            return
        self._file.roll_back()
        self._wait = _Wait(error, monotonic())
        self._wait.held = [each for each in results if each.operation.writes]
        # Reads of the same turn may have seen uncommitted rows: they are executed again.
        reads = [operation for operation, _, _ in results if not operation.writes]
        self._waiting = [*reads, *self._waiting]
        self._announce_when_due()
        self._schedule_retry(self._wait)
        self._schedule_reads()

    # While the store waits.

    def _read_only_turn(self) -> None:
        """Execute the reads; writes stay in the queue."""
        if self._busy:
            return  # the thread uses the connection, and schedules a turn afterwards
        assert self._wait is not None
        is_moved = isinstance(self._wait.error, MovedError)
        waiting, self._waiting = self._waiting, []
        results: CallResults = []
        for operation in waiting:
            if operation.writes:
                self._waiting.append(operation)
                continue
            if is_moved:
                refusal = UnavailableError(self.trouble or "")
                results.append(CallResult(operation, None, refusal))
                continue
            try:
                results.append(execute(operation, self._file))
            except sqlite3.Error as error:
                refusal = UnavailableError(f"the store cannot be read now: {describe(error)}")
                results.append(CallResult(operation, None, refusal))
        self._resolve(results)

    def _schedule_reads(self) -> None:
        if not self._scheduled and not all(operation.writes for operation in self._waiting):
            self._scheduled = True
            self._loop.call_soon(self._turn)

    def _schedule_retry(self, wait: _Wait) -> None:
        self._retry = self._loop.call_later(next(wait.delays), self._try_again)

    def _try_again(self) -> None:
        self._busy = True
        self._jobs.put(self._attempt)

    def _attempted(self, error: BaseException | None) -> None:
        """Called after ``_attempt``; if it succeeded, the held operations are committed."""
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
            _log.warning("the store %s can write again, after %.1f s", self.path, waited)
            self.trouble = None
            base.notify(self._listener.resumed)
        self._resolve(self._without_dropped(wait.held))

    def _announce_when_due(self) -> None:
        """After ``REFUSE_AFTER`` seconds, set ``trouble``, log it, and refuse waiting clients."""
        wait = self._wait
        assert wait is not None
        waited = monotonic() - wait.since
        if self.trouble is not None or (
            waited < REFUSE_AFTER and not isinstance(wait.error, MovedError)
        ):
            return
        reason, hint = describe(wait.error).partition(": ")[2], hint_for(wait.error)
        writer = writer_of(self.path)
        if writer is not None and not isinstance(wait.error, MovedError):
            reason += f" (process {writer})"
        self.trouble = f"the store cannot write now: {reason}"
        _log.error(
            "the store %s has been unable to write for %.1f s: %s. Clients get `unavailable`, "
            "running tasks wait, and all continue when the store can write again: %s",
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
        """Refuse the held and the waiting operations: the store is closed while it waits."""
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
        """Called if a check of the file failed while the store was idle."""
        if self._wait is None and not self._busy and self._broken is None:
            self._fail(error, [])

    def _break(self, error: BaseException, results: Sequence[CallResult]) -> None:
        """Refuse all operations, and never write again."""
        first = self._broken is None
        self._broken = error
        operations = [operation for operation, _, _ in results] + self._waiting
        self._waiting = []
        self._refuse(operations, self._reason())
        if first:
            _log.error(
                "the store %s cannot write any more",
                self.path,
                exc_info=error,
                extra={"about": {}},  # not the task in whose context this runs
            )
            base.notify(self._listener.broken, error)

    def _reason(self) -> str:
        return f"the store cannot write: {self._broken}; the outcome is unknown"

    # In the thread.

    def _work(self) -> None:
        while True:
            try:
                job = self._jobs.get(timeout=FILE_CHECK_INTERVAL)
            except queue.Empty:
                try:
                    self._check()
                except Exception as error:  # noqa: BLE001 - handled in the loop
                    with suppress(RuntimeError):  # the loop was closed before the store
                        self._loop.call_soon_threadsafe(self._check_failed, error)
                continue
            if job is None:
                return
            job()

    def _check(self) -> None:
        """Check the files; called every ``FILE_CHECK_INTERVAL`` seconds.

        Raises:
            MovedError: They are not the files that were opened.
            CutOffError: They are shorter than what was written.
            OSError: They cannot be examined.
        """
        self._checked = monotonic()
        size = self._file.log_size
        if self._has_long_log is not (size > LONG_WAL_BYTES):
            self._has_long_log = size > LONG_WAL_BYTES
            if self._has_long_log:
                _log.warning(
                    "the write-ahead log of %s has %.0f MB and cannot be shortened: another "
                    "program has been reading the store for a long time, or the database cannot be "
                    "written; find the program (lsof), and check the disk",
                    self.path,
                    size / 1e6,
                )
        self._file.check_place()
        self._file.check_content()

    def _close_file(self, closed: asyncio.Future[None]) -> None:
        try:
            self._file.close()
        except Exception:  # noqa: BLE001 - `close` waits for it
            _log.exception("the store %s could not be closed cleanly", self.path)
        finally:
            self._loop.call_soon_threadsafe(closed.set_result, None)

    def _finish(self, results: CallResults, long: Operation | None) -> None:
        """Execute a long operation, and commit."""
        failed: BaseException | None = None
        try:
            if long is not None:
                results = [*results, execute(long, self._file)]
                long = None
            self._file.check_place()
            self._file.commit()
            results = self._without_dropped(results)
            self._file.check_place()
            if monotonic() - self._checked > FILE_CHECK_INTERVAL:
                self._check()
        except Exception as error:  # noqa: BLE001 - handled in the loop
            failed = error
        self._loop.call_soon_threadsafe(self._committed, results, long, failed)

    def _attempt(self) -> None:
        """Try to commit the held operations, or at least to begin a transaction."""
        failed: BaseException | None = None
        try:
            self._file.check_content()
            self._file.put_back_log()
            self._file.check_place()
            self._file.begin()
            if self._file.redo or not self._waiting:
                self._file.commit()
                self._file.check_place()
        except Exception as error:  # noqa: BLE001 - handled in the loop
            failed = error
        self._loop.call_soon_threadsafe(self._attempted, failed)
