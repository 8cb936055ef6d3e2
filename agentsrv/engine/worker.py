"""Worker: claims tasks while it has slots, runs them, recovers and drains.

Theory of operation of runs that break off.

A run of a task *breaks off* if it returns without the task's end although no drain began: an append
was refused, the log could not be read, the server has a fault. The task is then released, claimed
again, here or on another node, and run from its log. Whatever broke it off may do so again, so
that every one of these runs is counted, backed off and bounded, in this process and by task:

    count     ``_Returns.times``: all of them. ``_Returns.taken``: those whose task another worker
              has taken over (``Journal.is_taken``). ``_Returns.faults``: those that the task itself
              may have caused, because the store refused what it wrote (``Journal.fault``) or the
              server failed on it. Faults that affect several tasks, with no commit in between, are
              those of the store. A run of more than ``LONG_RUN`` seconds restarts the counts.
    back off  Before each release the worker waits twice as long as before the last one, up to a
              minute. Meanwhile the task has a lease, but no slot.
    bound     After ``MAX_FAULTS`` faults or ``MAX_RETURNS`` runs that were not taken, the next run
              only writes that the task has failed. If even that is refused, the task is left alone:
              it keeps its lease, the log and a metric say so, and it is tried again after a restart
              of the server.

While the whole store cannot write, nothing is released or claimed: an outage counts at most once.
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
from agentsrv.engine.endings import LOSS, RELEASE, Failure
from agentsrv.engine.environment import TaskEnvironment
from agentsrv.engine.recovery import interrupted
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

MAX_PREPARED: Final = 1000  # queued tasks of which the state is kept
MAX_PREPARED_SPEC: Final = 2048  # bytes of JSON; a larger command is read when its task is claimed
MAX_RETURNED: Final = 1000  # tasks of which is known how often they were given back
MAX_FAULTS: Final = 10  # runs of a task that a fault broke off, until it fails: some 4 minutes
MAX_RETURNS: Final = 60  # runs of a task that broke off for whatever reason: about an hour
LONG_RUN: Final = 600.0  # seconds after which a run that breaks off counts as the first one

_BACK_OFF: Final = RetryPolicy()

_log = logging.getLogger("agentsrv.worker")


@dataclass(slots=True)
class _Returns:
    """How often this worker has given a task back that has not ended; see the module."""

    times: int = 0
    taken: int = 0
    faults: int = 0
    reason: str = "its log could not be read or written"

    @property
    def failure(self) -> Failure | None:
        """How the task ends, if it is not to be run again."""
        if self.faults < MAX_FAULTS and self.times - self.taken < MAX_RETURNS:
            return None
        return Failure(
            f"the task was run {self.times} times and broke off each time: {self.reason}"
        )


class Worker:
    """Runs up to ``concurrency`` tasks; owns the tasks of asyncio in which they run.

    A slot is free again when nothing of its task runs any more, however long ago the task was
    cancelled on the wire.
    """

    def __init__(self, environment: TaskEnvironment, concurrency: int) -> None:
        self._environment = environment
        self._concurrency = concurrency
        self.measures: ServerMetrics = environment.measures
        """What the worker and its tasks are counted in."""
        self._live: dict[str, TaskRunner] = {}
        self._prepared: dict[str, tuple[Create | None, TaskState | None, float]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._releases: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self.wake = self._wake.set
        """Look for tasks to claim; called by the store."""
        self._loop_task: asyncio.Task[None] | None = None
        self._draining = asyncio.Event()
        self._returned: dict[str, _Returns] = {}
        """The tasks that this worker has given back and that have not ended here since; of many
        only those that were given back last."""
        self._faults = 0  # tries since the last one that was not a fault of the store

    @property
    def running(self) -> int:
        """Slots that are taken."""
        return len(self._tasks)

    @property
    def vault(self) -> Vault:
        """Encrypts the answers to secret questions."""
        return self._environment.vault

    def live(self, task_id: str) -> TaskRunner | None:
        """The task's runner, where it runs here and is not lost."""
        runner = self._live.get(task_id)
        return None if runner is None or runner.journal.is_lost else runner

    def runs(self, task_id: str) -> bool:
        """Whether the task runs here and is not lost."""
        return self.live(task_id) is not None

    def prepare(self, spec: Create, state: TaskState, size: int) -> None:
        """Keep what is in the log of a task that was queued just now: it need not be read.

        Of many, only the newest are kept; of a large command only when it was queued.

        Args:
            spec: The task's command.
            state: The task's.
            size: Bytes of the command as JSON. As objects it takes some twenty times as much.
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
        """Begin to claim."""
        step_tasks.watch()
        self._loop_task = asyncio.create_task(self._claim_forever(), name="agentsrv-worker")

    def abandon(self) -> None:
        """Stop all running tasks without appending events: other nodes may own them by now.

        For stores whose leases expire. A task whose code does not stop keeps its slot, but what
        it writes is refused.
        """
        if self._live:
            _log.error("the leases of %d tasks may be others'; they stop here", len(self._live))
        for runner in list(self._live.values()):
            runner.stop(LOSS)

    async def drain(self, timeout: float) -> int:  # noqa: ASYNC109 - both phases share it
        """Claim nothing more, let tasks end for ``timeout`` seconds, then give the rest back.

        This includes tasks that wait for an answer: other code of the same step may work in the
        meantime. A task that was given back has no event of it in its log; it is recovered where
        it is claimed next. A task that is being stopped already may still write its end within
        the grace period.

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
                runner.stop(RELEASE)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self._environment.grace)
        for runner in list(self._live.values()):
            runner.stop(RELEASE)
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
        """Claim tasks; none while the store is away, which says when it may give some again."""
        faults = self.measures.store_faults
        try:
            leases = await self._environment.store.claim(self._environment.node, free)
        except AgentsrvError as error:
            if faults.claims is None:
                _log.error("no tasks are claimed: %s", error)
            faults.claims = str(error)
            return ()
        except Exception as error:  # noqa: BLE001 - ``wake`` is not called when it has passed
            _log.exception("no tasks are claimed: the store failed by a fault of its own")
            faults.claims = describe(error)
            self._faults += 1
            delay = _BACK_OFF.delay(self._faults)
            asyncio.get_running_loop().call_later(delay, self._wake.set)
            return ()
        self._faults = 0
        if faults.claims is not None:
            _log.info("tasks are claimed again")
        faults.claims = None
        return leases

    def _done(self, task: asyncio.Task[None]) -> None:
        # While there was a free slot, the last claim has got all that there was, and the store
        # calls ``wake`` if there is more. A claim that has failed has got nothing.
        was_full = len(self._tasks) >= self._concurrency
        self._tasks.discard(task)
        if was_full or self.measures.store_faults.claims is not None:
            self._wake.set()

    async def _load(self, lease: Lease) -> tuple[Create, TaskState, float | None]:
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
        is_loaded, began = False, asyncio.get_running_loop().time()
        returns = self._returned.get(lease.task_id)
        given_up = None if returns is None else returns.failure
        try:
            attempts: Sequence[Interrupted] = ()
            other_cause = False
            if review is None:
                spec, state, queued_at = await self._load(lease)
            else:
                try:
                    spec, state, queued_at = await self._load(lease)
                    attempts = interrupted(state, lease)
                except BaseException:
                    self._environment.suspects.withdraw(review)  # before the lease is given back
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
                given_up=given_up,
            )
            self._live[lease.task_id] = runner
            logs.about.set(runner.about)
            fault: str | None = None
            try:
                await runner.run()
            except BaseException as error:
                fault = describe(error)
                raise
            finally:
                if self._live.get(lease.task_id) is runner:  # not lost, and claimed anew
                    del self._live[lease.task_id]
                if runner.phase is Phase.ENDED:
                    self._returned.pop(lease.task_id, None)
                else:
                    is_taken = fault is None and runner.journal.is_taken
                    fault = fault or runner.journal.fault
                    await self._give_back(lease, began, fault, is_taken=is_taken)
        except AgentsrvError as error:
            _log.warning("task %s: its run broke off: %s", lease.task_id, error)
            # A damaged log stays leased: the next worker could not read it either.
            if (
                isinstance(error, UnavailableError)
                and not isinstance(error, DamagedError)
                and not is_loaded
            ):
                await self._give_back(lease, began, None)
        except (Exception, BaseExceptionGroup) as error:  # noqa: BLE001 - it ends one task
            _log.exception("task %s: its run broke off", lease.task_id)
            if not is_loaded:
                await self._give_back(lease, began, describe(error))

    async def _give_back(
        self, lease: Lease, began: float, fault: str | None, *, is_taken: bool = False
    ) -> None:
        """Count a run that broke off, and release its lease beside it; its slot is free at once.

        Only where very many leases wait for their release the slot is kept until this one's: else
        a worker that cannot run anything would lease the whole queue.

        Args:
            lease: That of the run.
            began: When the run began, by the loop's clock.
            fault: What the task itself may have caused, if that broke the run off.
            is_taken: Whether another worker has taken the task over.
        """
        returns = self._returned.pop(lease.task_id, None)
        if returns is None or asyncio.get_running_loop().time() - began > LONG_RUN:
            returns = _Returns()
        was_given_up = returns.failure is not None
        returns.times += 1
        returns.taken += is_taken
        if fault is not None:
            returns.faults += not self.measures.store_faults.is_general
            returns.reason = fault
        self._returned[lease.task_id] = returns  # the newest is the last
        if len(self._returned) > MAX_RETURNED:
            del self._returned[next(iter(self._returned))]
        if was_given_up and not self._draining.is_set():
            self._leave_alone(lease, returns.reason)
            return
        release = self._release(lease, returns.times)
        releasing = asyncio.create_task(release, name=f"release {lease.task_id}")
        self._releases.add(releasing)
        releasing.add_done_callback(self._releases.discard)
        if len(self._releases) > MAX_RETURNED:
            await asyncio.wait({releasing})

    def _leave_alone(self, lease: Lease, reason: str) -> None:
        """Keep the lease and do not run the task: another worker could not write more of it."""
        self.measures.left_alone += 1
        self.measures.store_faults.tasks.pop(lease.task_id, None)  # no others are known to fail
        _log.error(
            "task %s is left alone: it broke off too often, and its failure or its release cannot "
            "be written: %s. It is tried again after a restart of the server",
            lease.task_id,
            reason,
            extra={"about": {"task_id": lease.task_id}},
        )

    async def _release(self, lease: Lease, times: int) -> None:
        """Release a lease, outside of a drain after the wait that follows ``times`` returns.

        A release that the store cannot carry out now is tried again after a longer wait, but not in
        a drain.
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
                _log.warning("task %s was not given back: %s", lease.task_id, error)
                if (
                    is_last
                    or isinstance(error, DamagedError)
                    or not isinstance(error, UnavailableError)
                ):
                    return
            except Exception as error:  # noqa: BLE001 - nobody waits for it
                _log.exception("task %s was not given back", lease.task_id)
                faults += 1
                if is_last:  # the next start takes it
                    return
                if faults == MAX_FAULTS:
                    self._leave_alone(lease, describe(error))
                    return
            times += 1
