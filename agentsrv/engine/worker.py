"""Worker: claims tasks while it has free slots, runs them, and drains them at shutdown.

Theory of operation
===================

*Claiming.* One asyncio task claims as many tasks as there are free slots, then waits until the
store reports that tasks may be claimable (``wake``). The end of a task is a reason to claim only if
every slot was in use, or if the last claim has failed: otherwise that claim took all that there
was. A slot is free when no code of its task runs any more, however long ago the task ended for its
clients.

*Running.* Each claimed task has an asyncio task of the worker (``_run``): it loads the task's
state, joins the review of a crash if the lease reports one (`CrashSuspects`), and runs a
`TaskRunner`. The state of a task that this process has queued just now is kept (``prepare``) and
not read again.

*Lost leases.* ``abandon`` is for stores whose leases expire: when the node cannot renew them, it
stops all tasks without appending events, since other nodes may own them by now. A single lost lease
shows in the journal, whose append is refused.

*Draining.* ``drain`` has four stages, and each ends early if nothing is left to wait for:

1. Nothing more is claimed, and the store records that this process stops (``announce_stop``).
2. Tasks have ``timeout`` seconds to end.
3. Tasks that still run are released; tasks that are stopping keep their grace period. The steps of
   both have ``grace`` seconds to end.
4. All others are released, and the worker waits up to ``grace`` seconds for releases in progress.

*Runs that break off.* A run *breaks off* if it returns without the task's end although no drain
began: an append was refused, the log could not be read, or the server has a fault. The task is then
released, claimed again, here or on another node, and run from its log. The cause may still be
there, so these runs are counted, backed off and bounded, in this process and for each task:

count     ``_BrokenRuns.times``: all of them. ``taken_over``: those whose task another worker has
          claimed (``Journal.is_taken_over``). ``faults``: those that the task itself may have
          caused, because the store refused its events (``Journal.fault``) or the server failed on
          it. A fault that affects several tasks, with no commit in between, is one of the store and
          does not count. A run of more than ``LONG_RUN`` seconds restarts the counts.
back off  Before each release the worker waits about twice as long as before the last one, up to a
          minute. Meanwhile the task has a lease, but no slot.
bound     After ``MAX_FAULTS`` faults, or ``MAX_BROKEN_RUNS`` runs that were not taken over, the
          next run only appends that the task has failed. If that is refused too, the worker keeps
          the lease and stops retrying. A log line and a metric report it, and the task is tried
          again after a restart of the server.

While the whole store cannot write, nothing is released or claimed, so an outage counts at most
once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from agentsrv.engine import step_tasks
from agentsrv.engine.crash_suspects import CrashReview, Interrupted
from agentsrv.engine.endings import Handover, TaskFailure
from agentsrv.engine.environment import TaskEnvironment
from agentsrv.engine.recovery import interrupted_attempts
from agentsrv.engine.runner import Phase, TaskRunner
from agentsrv.engine.vault import Vault
from agentsrv.error_text import describe
from agentsrv.errors import AgentsrvError, DamagedError, UnavailableError
from agentsrv.models.commands import Create
from agentsrv.models.retry import RetryPolicy
from agentsrv.models.task import TaskState
from agentsrv.store.base import Lease, damaged
from agentsrv.store.replay import load_state
from agentsrv.telemetry import logs
from agentsrv.telemetry.server_metrics import ServerMetrics

MAX_PREPARED: Final = 1000  # queued tasks whose state is kept
MAX_PREPARED_SPEC: Final = 2048  # bytes of JSON; a larger command is read when its task is claimed
MAX_TRACKED_TASKS: Final = 1000  # tasks whose broken runs are counted, and releases in progress
MAX_FAULTS: Final = 10  # runs of a task that a fault broke off; reached after about 4 minutes
MAX_BROKEN_RUNS: Final = 60  # runs of a task that broke off; reached after about an hour
LONG_RUN: Final = 600.0  # seconds after which a run that breaks off counts as the first one

_BACK_OFF: Final = RetryPolicy()

_log = logging.getLogger("agentsrv.worker")


@dataclass(slots=True)
class _BrokenRuns:
    """Counts of a task's runs that broke off; see the head of this module."""

    times: int = 0
    taken_over: int = 0
    faults: int = 0
    reason: str = "its log could not be read or written"

    @property
    def failure(self) -> TaskFailure | None:
        """How the task fails, if it must not run again."""
        if self.faults < MAX_FAULTS and self.times - self.taken_over < MAX_BROKEN_RUNS:
            return None
        return TaskFailure(
            f"the task was run {self.times} times and broke off each time: {self.reason}"
        )


class Worker:
    """Runs up to ``concurrency`` tasks at a time; see the head of this module."""

    def __init__(self, environment: TaskEnvironment, concurrency: int) -> None:
        self._environment = environment
        self._concurrency = concurrency
        self.measures: ServerMetrics = environment.measures
        """Metrics of the server."""
        self._live: dict[str, TaskRunner] = {}
        self._prepared: dict[str, tuple[Create | None, TaskState | None, float]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._releases: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self.wake = self._wake.set
        """Claim if a slot is free; the store calls it when tasks may be claimable."""
        self._loop_task: asyncio.Task[None] | None = None
        self._draining = asyncio.Event()
        self._broken_runs: dict[str, _BrokenRuns] = {}
        """By task, the latest first to last; deleted when the task ends here, or if there are more
        than ``MAX_TRACKED_TASKS``."""
        self._claim_faults = 0  # consecutive claims that failed by a fault of the store

    @property
    def running(self) -> int:
        """Number of slots in use."""
        return len(self._tasks)

    @property
    def vault(self) -> Vault:
        """Encrypts the answers to secret questions."""
        return self._environment.vault

    def live(self, task_id: str) -> TaskRunner | None:
        """Return the runner of a task that runs on this node and is not lost."""
        runner = self._live.get(task_id)
        return None if runner is None or runner.journal.is_lost else runner

    def runs(self, task_id: str) -> bool:
        """Whether the task runs on this node and is not lost."""
        return self.live(task_id) is not None

    def prepare(self, spec: Create, state: TaskState, size: int) -> None:
        """Keep the state of a task that was queued just now, so that its log need not be read.

        Only the newest ``MAX_PREPARED`` tasks are kept. For a command larger than
        ``MAX_PREPARED_SPEC``, only the time of queueing is kept.

        Args:
            spec: The command that created the task.
            state: The state of the task.
            size: Bytes of the command as JSON. As objects it takes about twenty times as much.
        """
        queued_at = asyncio.get_running_loop().time()
        is_small = size <= MAX_PREPARED_SPEC
        self._prepared[state.task_id] = (
            spec if is_small else None,
            state if is_small else None,
            queued_at,
        )
        if len(self._prepared) > MAX_PREPARED:
            del self._prepared[next(iter(self._prepared))]

    def start(self) -> None:
        """Begin to claim tasks."""
        step_tasks.install_task_factory()
        self._loop_task = asyncio.create_task(self._claim_forever(), name="agentsrv-worker")

    def abandon(self) -> None:
        """Stop all running tasks without appending events: other nodes may own them by now.

        For stores whose leases expire. A task whose code does not stop keeps its slot, but its
        events are refused.
        """
        if self._live:
            _log.error(
                "the leases of %d tasks may have expired; the tasks stop on this node",
                len(self._live),
            )
        for runner in list(self._live.values()):
            runner.stop(Handover.LOSS)

    async def drain(self, timeout: float) -> int:  # noqa: ASYNC109 - one of several waits
        """Claim nothing more, give tasks ``timeout`` seconds to end, then release the others.

        Tasks that wait for an answer have this time too: other code of the same step may work in
        the meantime. A release is not in the log; the task is recovered when it is claimed again.
        A task that is stopping already can still append its end within the grace period.

        Returns:
            How many tasks still run code that does not stop.
        """
        self._draining.set()
        await self._environment.store.announce_stop()
        if self._loop_task is not None:
            self._loop_task.cancel()
            await asyncio.wait({self._loop_task})
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout)
        for runner in list(self._live.values()):
            if runner.phase is Phase.RUNNING:
                runner.stop(Handover.RELEASE)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self._environment.grace)
        for runner in list(self._live.values()):
            runner.stop(Handover.RELEASE)
        if self._releases:
            await asyncio.wait(self._releases, timeout=self._environment.grace)
        return len(self._tasks)

    async def _claim_forever(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._wake.clear()
            free = self._concurrency - len(self._tasks)
            leases: Sequence[Lease] = ()
            if free > 0:
                leases = await self._claim(free)
            crashed = [lease for lease in leases if lease.interrupted != ()]
            review = self._environment.suspects.begin_review(len(crashed)) if crashed else None
            for lease in leases:
                work = self._run(lease, None if lease.interrupted == () else review)
                task = loop.create_task(work, name=f"task {lease.task_id}")
                self._tasks.add(task)
                task.add_done_callback(self._done)
            if len(leases) < free or free <= 0:
                await self._wake.wait()

    async def _claim(self, free: int) -> Sequence[Lease]:
        """Claim up to ``free`` tasks; return none if the store fails.

        An unavailable store calls ``wake`` when it is available again. After a fault of its own it
        does not; then a timer wakes the worker up.
        """
        faults = self.measures.store_faults
        try:
            leases = await self._environment.store.claim(self._environment.node, free)
        except AgentsrvError as error:
            if faults.claims is None:
                _log.error("no tasks are claimed: %s", error)
            faults.claims = str(error)
            return ()
        except Exception as error:  # noqa: BLE001 - a fault of the store must not end the worker
            _log.exception("no tasks are claimed: the store failed by a fault of its own")
            faults.claims = describe(error)
            self._claim_faults += 1
            delay = _BACK_OFF.delay(self._claim_faults)
            asyncio.get_running_loop().call_later(delay, self._wake.set)
            return ()
        self._claim_faults = 0
        if faults.claims is not None:
            _log.info("tasks are claimed again")
        faults.claims = None
        return leases

    def _done(self, task: asyncio.Task[None]) -> None:
        was_full = len(self._tasks) >= self._concurrency
        self._tasks.discard(task)
        if was_full or self.measures.store_faults.claims is not None:
            self._wake.set()

    async def _load(self, lease: Lease) -> tuple[Create, TaskState, float | None]:
        """Return the command, the state, and when the task was queued on this node (loop's clock).

        Raises:
            DamagedError: The log or the command cannot be read.
        """
        prepared = self._prepared.pop(lease.task_id, None)
        spec, state, queued_at = prepared or (None, None, None)
        if spec is None or state is None or state.seq != lease.seq:
            try:
                spec = Create.model_validate_json(lease.spec)
            except ValueError as error:
                raise damaged(lease.task_id) from error
            state = await load_state(self._environment.store, lease.task_id)
            if state.seq < lease.seq:
                raise damaged(lease.task_id)
        return spec, state, queued_at

    async def _run(self, lease: Lease, review: CrashReview | None) -> None:
        """Run a claimed task; release its lease if the run breaks off.

        Args:
            lease: The lease of the task.
            review: The review of the crash that interrupted the task, if one did.
        """
        is_loaded, started_at = False, asyncio.get_running_loop().time()
        broken_runs = self._broken_runs.get(lease.task_id)
        final_failure = None if broken_runs is None else broken_runs.failure
        try:
            attempts: Sequence[Interrupted] = ()
            other_cause = False
            if review is None:
                spec, state, queued_at = await self._load(lease)
            else:
                try:
                    spec, state, queued_at = await self._load(lease)
                    attempts = interrupted_attempts(state, lease)
                except BaseException:
                    self._environment.suspects.withdraw(review)  # before the lease is released
                    raise
                other_cause = await self._environment.suspects.report(review, attempts)
            if state.status.is_terminal or self._draining.is_set():
                await self._environment.store.release(lease.task_id, lease.epoch)
                return
            is_loaded = True
            runner = TaskRunner(
                lease,
                spec,
                state,
                self._environment,
                attempts,
                other_cause=other_cause,
                queued_at=queued_at,
                final_failure=final_failure,
            )
            self._live[lease.task_id] = runner
            logs.about.set(runner.log_context)
            fault: str | None = None
            try:
                await runner.run()
            except BaseException as error:
                fault = describe(error)
                raise
            finally:
                if self._live.get(lease.task_id) is runner:  # else it was lost and claimed again
                    del self._live[lease.task_id]
                if runner.phase is Phase.ENDED:
                    self._broken_runs.pop(lease.task_id, None)
                else:
                    is_taken_over = fault is None and runner.journal.is_taken_over
                    fault = fault or runner.journal.fault
                    await self._start_release(lease, started_at, fault, is_taken_over=is_taken_over)
        except AgentsrvError as error:
            _log.warning("task %s: its run broke off: %s", lease.task_id, error)
            # A damaged log stays leased: the next worker could not read it either.
            if not is_loaded and _is_temporary(error):
                await self._start_release(lease, started_at, None)
        except (Exception, BaseExceptionGroup) as error:  # noqa: BLE001 - it ends one task
            _log.exception("task %s: its run broke off", lease.task_id)
            if not is_loaded:
                await self._start_release(lease, started_at, describe(error))

    async def _start_release(
        self, lease: Lease, started_at: float, fault: str | None, *, is_taken_over: bool = False
    ) -> None:
        """Count a run that broke off, and release its lease in an asyncio task of its own.

        The slot of the run is free at once. If more than ``MAX_TRACKED_TASKS`` releases are in
        progress, the call waits for this one, so that a worker that cannot run anything does not
        lease the whole queue.

        Args:
            lease: The lease of the run.
            started_at: When the run began, by the event loop's clock.
            fault: What broke the run off, if the task itself may have caused it.
            is_taken_over: Whether another worker has claimed the task.
        """
        broken_runs = self._broken_runs.pop(lease.task_id, None)
        if broken_runs is None or asyncio.get_running_loop().time() - started_at > LONG_RUN:
            broken_runs = _BrokenRuns()
        had_failed = broken_runs.failure is not None
        broken_runs.times += 1
        broken_runs.taken_over += is_taken_over
        if fault is not None:
            broken_runs.faults += not self.measures.store_faults.is_general
            broken_runs.reason = fault
        self._broken_runs[lease.task_id] = broken_runs  # the newest is the last
        if len(self._broken_runs) > MAX_TRACKED_TASKS:
            del self._broken_runs[next(iter(self._broken_runs))]
        if had_failed and not self._draining.is_set():
            self._stop_retrying(lease, broken_runs.reason)
            return
        release = self._release(lease, broken_runs.times)
        releasing = asyncio.create_task(release, name=f"release {lease.task_id}")
        self._releases.add(releasing)
        releasing.add_done_callback(self._releases.discard)
        if len(self._releases) > MAX_TRACKED_TASKS:
            await asyncio.wait({releasing})

    def _stop_retrying(self, lease: Lease, reason: str) -> None:
        """Keep the lease without running the task: another worker could not write it either."""
        self.measures.left_alone += 1
        self.measures.store_faults.tasks.pop(lease.task_id, None)  # no longer a failing task
        _log.error(
            "task %s is left alone: it broke off too often, and its failure or its release cannot "
            "be written: %s. It is tried again after a restart of the server",
            lease.task_id,
            reason,
            extra={"about": {"task_id": lease.task_id}},
        )

    async def _release(self, lease: Lease, times: int) -> None:
        """Release a lease after the back-off for ``times`` broken runs; at once in a drain.

        If the store cannot release it now, the release is tried again after a longer wait, but not
        in a drain.
        """
        faults = 0
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._draining.wait(), _BACK_OFF.delay(times))
            is_last = self._draining.is_set()
            try:
                await self._environment.store.release(lease.task_id, lease.epoch)
                return
            except AgentsrvError as error:
                _log.warning("task %s was not released: %s", lease.task_id, error)
                if is_last or not _is_temporary(error):
                    return
            except Exception as error:  # noqa: BLE001 - no other code awaits this asyncio task
                _log.exception("task %s was not released", lease.task_id)
                faults += 1
                if is_last:  # the next start of the server claims the task
                    return
                if faults == MAX_FAULTS:
                    self._stop_retrying(lease, describe(error))
                    return
            times += 1


def _is_temporary(error: AgentsrvError) -> bool:
    """Whether the store may succeed later."""
    return isinstance(error, UnavailableError) and not isinstance(error, DamagedError)
