"""TaskRunner: runs one claimed task from the end of its log to its terminal event.

Theory of operation
===================

A task runs until its steps are completed or ``stop`` is called. ``stop`` cancels every step that
runs, once, in the same turn of the event loop, and waits up to ``grace`` seconds for their code to
end. Then the terminal event is appended; it records whether all code has ended (``stopped``).
Releasing a task and losing it are ``stop`` without the event. There is no other way to end a task,
and no other place that cancels a step.

The life cycle is the field ``phase``:

========= =============== ========================== ===================== ======================
phase     steps           journal                    entered by            left for
========= =============== ========================== ===================== ======================
RUNNING   start and run   accepts events             the constructor       any other phase
STOPPING  were cancelled  accepts what the steps     ``stop`` with a       ENDED when the last
          once            still write, and their     cancel or a failure   step has ended or the
                          ends                                             grace period is over;
                                                                           RELEASED, LOST
ENDED     cut off if they contains the terminal      ``_complete``,        LOST, if the append is
          still run       event; closed              ``_end``              refused
RELEASED  were cancelled  closed, nothing pending    ``stop`` with         nothing
          once                                       ``Handover.RELEASE``
                                                     (drain, or a store
                                                     that cannot be read)
LOST      were cancelled  closed, nothing pending    ``stop`` with         nothing
          once                                       ``Handover.LOSS``: the
                                                     log has another
                                                     writer, or the store
                                                     cannot be used
========= =============== ========================== ===================== ======================

Invariants:

- A step is cancelled at most once, so no second cancellation interrupts its clean-up: only the
  transition out of RUNNING cancels.
- A step that waits for an answer, a back-off or admission is cancelled like any other: the
  ``finally`` blocks of an agent that asks are code that runs. A cancel ends the task in the same
  turn only if no step has an attempt under way (``_is_idle``).
- A cancel replaces a failure as the ending of a task that is stopping, and the grace period of the
  failure by its own.
- ``run`` returns when no code of the task runs any more, whatever the phase. Until then the task
  holds its worker's slot.
- ``TaskInfo.stopped`` is set before the cancellation and nowhere else. Code that catches
  ``CancelledError`` reads it instead of ``asyncio.Task.cancelling()``, which an agent can change.

Branches. Steps run in *branches*. The first branch is ``run``'s own asyncio task; it makes the plan
and then runs a chain of steps, so a chain needs no other task. If several steps are ready, each of
the others begins a branch with an asyncio task of its own. A branch ends when none of its steps is
ready; the last branch to end ends a task that is stopping.

How a branch ends (``_branch``):

=============================== ==================================================================
its work                        the task
=============================== ==================================================================
returns                         continues, or has completed in ``_start_steps``
``FencedError``                 is lost already: the journal has called ``stop``
``DamagedError``,               fails: a repetition would read the same
``NotFoundError``
``UnavailableError``            is released and begins again when it is claimed
``CancelledError``              is stopping; or, if the server did not cancel, fails
any other error                 fails with an incident id: it is a fault of the server
=============================== ==================================================================
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import replace
from enum import Enum, auto
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any

from agentsrv.engine.agent_errors import clear_cancellation
from agentsrv.engine.crash_suspects import SUSPECT_LOSSES, Interrupted
from agentsrv.engine.endings import CancelRequest, Ending, Handover, TaskFailure, append_ending
from agentsrv.engine.environment import TaskEnvironment
from agentsrv.engine.inputs import InputBroker
from agentsrv.engine.journal import Journal
from agentsrv.engine.planning import PlanningFailedError, make_plan
from agentsrv.engine.recovery import (
    append_losses,
    append_recovery,
    append_retries,
    append_taken_over_steps,
    interrupted_attempts,
)
from agentsrv.engine.steps import Outcome, StepRun, TaskInfo
from agentsrv.error_text import redact
from agentsrv.errors import (
    AgentsrvError,
    DamagedError,
    FencedError,
    NotFoundError,
    UnavailableError,
)
from agentsrv.models import events as e
from agentsrv.models.commands import Create
from agentsrv.models.plan import ReadySteps, Step
from agentsrv.models.states import StepStatus, TaskStatus
from agentsrv.models.task import TaskState
from agentsrv.store.base import Lease
from agentsrv.store.replay import load_state

if TYPE_CHECKING:
    from agentsrv.telemetry.tracing import TaskSpan

Work = Callable[[], Coroutine[Any, Any, None]]

_log = logging.getLogger("agentsrv.task")


class Phase(Enum):
    """A phase of a running task; the table is at the head of this module."""

    RUNNING = auto()
    STOPPING = auto()
    ENDED = auto()
    RELEASED = auto()
    LOST = auto()


class TaskRunner:
    """Runs one task; see the head of this module for its life cycle.

    Args:
        lease: The right to write the task's log.
        spec: The command that created the task.
        state: The task at the end of its log.
        environment: Dependencies and limits of the worker.
        attempts: Attempts that a crash of the last worker's process interrupted.
        other_cause: Whether attempts that were not suspects may have caused that crash.
        queued_at: When the task was queued on this node, by the event loop's clock.
        final_failure: How the task fails if it must not run again.
    """

    def __init__(
        self,
        lease: Lease,
        spec: Create,
        state: TaskState,
        environment: TaskEnvironment,
        attempts: Sequence[Interrupted] = (),
        *,
        other_cause: bool = False,
        queued_at: float | None = None,
        final_failure: TaskFailure | None = None,
    ) -> None:
        self._final_failure = final_failure
        self._environment = environment
        self._queued_at = queued_at
        self._started_at = asyncio.get_running_loop().time()
        self._earlier_seconds = 0.0  # that earlier runs took, by the wall clock
        self._spec = spec
        self._lease = lease
        self.log_context = {"principal": lease.owner, "task_id": lease.task_id}
        """Log fields that name the task; see ``logs.about``."""
        self.state = state
        """The fold of the task's events, including those that are not committed yet."""
        self.journal = Journal(
            environment.store,
            lease,
            state,
            now=environment.now,
            on_lost=self._on_lost,
            measures=environment.measures,
        )
        self.inputs = InputBroker(self.journal, environment.now, environment.vault)
        self._info = TaskInfo(
            lease.task_id,
            spec.task_description,
            spec.params,
            lease.owner,
            environment,
            self.inputs,
        )
        self._attempts = attempts
        self._other_cause = other_cause
        self.phase = Phase.RUNNING
        self._ending: Ending | None = None  # in the phase STOPPING
        self._branches: dict[asyncio.Task[None], StepRun | None] = {}
        """The step that each branch runs; ``None`` while the plan is made."""
        self._spawned: set[asyncio.Task[None]] = set()  # asyncio tasks that ``run`` waits for
        self._ready_steps: ReadySteps
        self._unsettled_steps = 0
        self._planner_mark = -1  # the slot in ``store.marks``, while code of the planner runs
        self._deadline_timer: asyncio.TimerHandle | None = None
        self._grace_timer: asyncio.TimerHandle | None = None  # in the phase STOPPING
        self._span: TaskSpan | None = None  # of this run, if the server is traced
        self._cancelled_at: float | None = None  # by the monotonic clock

    async def run(self) -> None:
        """Run the task until none of its code runs any more and its end is durable.

        Cancelling the call has no effect: an agent may cancel this asyncio task, because its code
        runs in it. Use ``stop``.
        """
        own = asyncio.current_task()
        assert own is not None
        tracing = self._environment.tracing
        if tracing is not None:
            self._span = tracing.task(self.state)
        try:
            self._branches[own] = None
            try:
                await self._branch(self._begin)
            finally:
                self._branch_ended(own)
            is_over = False
            while not is_over or own.cancelling():
                if own.cancelling():  # it was meant for a step, not for the following waits
                    await clear_cancellation(own)
                is_over = False
                try:
                    while self._spawned:
                        await asyncio.wait(self._spawned)
                    await self.journal.commit()
                except asyncio.CancelledError:
                    continue
                except AgentsrvError:
                    pass  # the task is lost: another worker appends its end
                is_over = True
        finally:
            for timer in (self._deadline_timer, self._grace_timer):
                if timer is not None:
                    timer.cancel()
            if self.phase is not Phase.ENDED:
                self.stop(Handover.RELEASE)
            self.journal.break_reference_cycle()
            if self._span is not None:
                self._span.end(self.state)

    async def snapshot(self) -> dict[str, Any]:
        """Return the reply to ``status``; everything in it is committed when this returns.

        Raises:
            FencedError: This worker has lost the task.
            UnavailableError: The store cannot commit.
        """
        snapshot = self.state.snapshot() | {"seq": self.journal.seal()}
        await self.journal.commit()
        return snapshot

    def cancel(self, request: CancelRequest) -> tuple[TaskStatus, bool]:
        """Stop the steps in this turn of the event loop, before the decision is durable.

        Otherwise the agents would run for as long as the commit takes. If the process crashes
        before the commit, no client has seen the decision, and recovery continues the task.

        Returns:
            The status, and whether the task had ended or was being cancelled before. Both are
            durable when the journal has committed.
        """
        is_over = self.phase not in (Phase.RUNNING, Phase.STOPPING)
        if is_over or isinstance(self._ending, CancelRequest):
            return self.state.status, True
        self._cancelled_at = monotonic()
        self.stop(request, request.grace)
        if self.phase is Phase.STOPPING:
            self.journal.append(e.TaskCancelling(request.reason, request.by, request.grace))
        return self.state.status, False

    def stop(self, reason: Ending | Handover, grace: float = 0.0) -> None:
        """End the run before the plan is completed; cancel the steps unless they were cancelled.

        Without effect if the phase does not permit the transition (see the head of this module),
        except that a cancel replaces the ending of a task that is stopping.

        Args:
            reason: A cancel or a failure, which ends with a terminal event; or a handover, after
                which nothing more is written.
            grace: Seconds until the terminal event is appended even if steps still run.
        """
        was = self.phase
        if isinstance(reason, Handover):
            if was in (Phase.RELEASED, Phase.LOST):
                return
            self.phase = Phase.RELEASED if reason is Handover.RELEASE else Phase.LOST
            self.journal.abandon()
        elif was is Phase.STOPPING:
            if isinstance(reason, CancelRequest):
                self._ending = reason
                self._start_grace_timer(grace)
            return
        elif was is Phase.RUNNING:
            self.phase, self._ending = Phase.STOPPING, reason
        else:
            return
        if was is not Phase.RUNNING:
            return
        self._info.stopped = True
        # The branch that reports a failure, or that the store cannot be read, ends by itself.
        own = None if reason is Handover.LOSS else asyncio.current_task()
        for branch in self._branches:
            if branch is not own:
                branch.cancel()
        if self.phase is not Phase.STOPPING:
            return
        if self._is_idle:
            self._end(stopped=True)
        else:
            self._start_grace_timer(grace)

    def _start_grace_timer(self, grace: float) -> None:
        """Give the steps ``grace`` seconds from now on to end."""
        if self._grace_timer is not None:
            self._grace_timer.cancel()
        loop = asyncio.get_running_loop()
        self._grace_timer = loop.call_later(grace, self._end_despite_running_steps, grace)

    @property
    def _is_idle(self) -> bool:
        """Whether no code of the task runs: no step has an attempt under way, no plan is made."""
        return all(run and not run.is_attempting for run in self._branches.values())

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run ``work`` in an asyncio task of its own; ``run`` waits for it."""
        task = asyncio.create_task(work)
        self._spawned.add(task)
        task.add_done_callback(self._spawned.discard)
        return task

    def _begin_branch(self, run: StepRun) -> None:
        task = self._spawn(self._branch(partial(self._run_steps, run)))
        self._branches[task] = run
        task.add_done_callback(self._branch_ended)  # also called if it is cancelled before it began

    def _branch_ended(self, task: asyncio.Task[None]) -> None:
        del self._branches[task]
        if self._branches:
            return
        if self._cancelled_at is not None:
            self._environment.measures.stopped.observe(monotonic() - self._cancelled_at)
        if self.phase is Phase.STOPPING:
            self._end(stopped=True)

    async def _branch(self, work: Work) -> None:
        """Do the work of a branch, and handle its errors; see the head of this module."""
        try:
            await work()
        except FencedError:
            pass
        except (DamagedError, NotFoundError) as error:
            self._fail(TaskFailure(error.message))
        except UnavailableError as error:
            _log.warning("task %s is released: %s", self.state.task_id, error)
            self.stop(Handover.RELEASE)
        except asyncio.CancelledError:
            if not self._info.stopped:  # an agent cancelled its branch after its attempt
                self._fail(TaskFailure("an agent of the task cancelled the server's own work"))
        except Exception as error:  # noqa: BLE001 - a fault of the server must not stop the worker
            incident = uuid.uuid4().hex[:12]
            _log.exception("incident %s in task %s", incident, self.state.task_id)
            message = error.message if isinstance(error, AgentsrvError) else "internal error"
            self._fail(TaskFailure(f"{message} (incident {incident})"))

    async def _begin(self) -> None:
        """Append the start or the recovery, make the plan if there is none, and run the steps."""
        state, journal, node = self.state, self.journal, self._environment.node
        traceparent = None if self._span is None else self._span.traceparent
        ending: Ending | None = self._final_failure
        is_new = state.status is TaskStatus.QUEUED
        if is_new:
            journal.append(e.TaskStarted(node, traceparent))
        else:
            self._earlier_seconds = state.elapsed(self._environment.now())
            ending = append_recovery(
                journal,
                node,
                self._attempts,
                traceparent,
                self._final_failure,
                other_cause=self._other_cause,
            )
        if ending is not None:  # nothing of the task runs yet
            self.phase, self._ending = Phase.STOPPING, ending
            return
        if self._attempts and not is_new:  # code that ends the process must not undo the losses
            self._attempts = ()
            await journal.commit()
        if self._spec.deadline is not None and not self._start_deadline_timer(self._spec.deadline):
            return
        if state.plan is None:
            spec, resumed = self._spec, None
            if spec.resume_from is not None:
                resumed = await load_state(self._environment.store, spec.resume_from)
            needs_planner = spec.agent is None and spec.plan is None and resumed is None
            try:
                if needs_planner and not await self._admit_planner():
                    return
                plan = await make_plan(spec, resumed, self._info, self._environment.registry)
            except PlanningFailedError as failure:
                self._fail(TaskFailure(failure.message, retries=failure.retries))
                return
            finally:
                if needs_planner:
                    self._release_planner()
            state.plan = plan
            described = plan.described(self._environment.registry.retries)
            journal.append(e.PlanCreated(described, *plan.origin))
            if resumed is not None:
                append_taken_over_steps(journal, resumed)
            if self._attempts and not needs_planner and not await self._append_step_losses():
                return
            ready = self._first_steps(has_results=resumed is not None)
        else:
            self._environment.registry.check_plan(state.plan)  # the application may have changed
            ready = self._first_steps(has_results=True)
        await self._run_steps(self._start_steps(ready))

    async def _admit_planner(self) -> bool:
        """Wait for admission, and mark or commit the start before the planner's code runs.

        Returns:
            Whether the planner may be called. If not, it has too many losses, and the task fails.
        """
        state, store = self.state, self._environment.store
        if self._attempts:
            failure = append_losses(self.journal, self._attempts, other_cause=self._other_cause)
            if failure is not None:
                self._fail(failure)
                return False
            await self.journal.commit()
        suspects = self._environment.suspects
        if suspects.is_restricted or state.losses >= SUSPECT_LOSSES:
            await suspects.admit(self, state.losses)
        if store.marks is not None:
            self._planner_mark = store.marks.enter(state.task_id, "", 1)
        elif store.commits_starts:
            await self.journal.commit()
        return True

    def _release_planner(self) -> None:
        if self._planner_mark >= 0 and self._environment.store.marks is not None:
            self._environment.store.marks.leave(self._planner_mark)
        self._environment.suspects.release(self)

    async def _append_step_losses(self) -> bool:
        """Append the losses of attempts that ran before their plan was committed.

        Returns:
            Whether the steps may run. If not, one has too many losses, and the task fails.
        """
        attempts = interrupted_attempts(self.state, self._lease)
        failure = append_losses(self.journal, attempts, other_cause=self._other_cause)
        if failure is not None:
            self._fail(failure)
            return False
        steps = self.state.steps.values()
        append_retries(self.journal, [step for step in steps if step.status is StepStatus.RUNNING])
        await self.journal.commit()
        return True

    def _start_deadline_timer(self, deadline: float) -> bool:
        """Let the task fail ``deadline`` seconds after it was queued.

        Returns:
            Whether time is left. If not, the task has failed.
        """
        failure = TaskFailure(f"the deadline of {deadline:g} s has passed")
        if self._queued_at is None:  # by an earlier process, or on another node
            waited = self.state.waited(self._environment.now())
        else:
            waited = self._started_at - self._queued_at
        left = deadline - waited
        if left <= 0:
            self._fail(failure)
            return False
        self._deadline_timer = asyncio.get_running_loop().call_later(left, self._fail, failure)
        return True

    async def _run_steps(self, run: StepRun | None) -> None:
        """Run a step, and then a chain of steps that become ready, each after the one before."""
        task = asyncio.current_task()
        assert task is not None
        while run is not None:
            self._branches[task] = run
            try:
                outcome = await run.run(task)
            except asyncio.CancelledError:
                # A step of a task that is handed over has no end in the log: it runs again.
                if self.phase is Phase.STOPPING:
                    self.journal.append(run.cancelled_event)
                raise
            step_id = run.step.step_id
            if outcome is Outcome.FAILED:
                message = run.state.error_message or "the step failed"
                self._fail(TaskFailure(message, step_id, run.state.failures))
                return
            self._unsettled_steps -= 1
            run = self._start_steps(self._ready_steps.settle(step_id))

    def _start_steps(self, ready: Sequence[Step]) -> StepRun | None:
        """Begin a branch for each ready step except the first; return the run of the first.

        Completes the task if no step is left.
        """
        if self.phase is not Phase.RUNNING:
            return None
        if not self._unsettled_steps:
            self._complete()
        first = None
        for step in ready:
            agent = self._environment.registry[step.agent]
            dependencies = {}
            for step_id in step.depends_on:
                dependencies[step_id] = self.state.steps[step_id]
            run = StepRun(step, agent, self._info, self.journal, dependencies)
            if first is None:
                first = run
            else:
                self._begin_branch(run)
        return first

    def _first_steps(self, *, has_results: bool) -> Sequence[Step]:
        """The steps with which the plan begins, or continues if steps may have settled before."""
        state = self.state
        assert state.plan is not None
        self._ready_steps = ReadySteps(state.plan)
        ready = self._ready_steps.start()
        self._unsettled_steps = len(state.steps)
        if not has_results:
            return ready
        settled = [step_id for step_id, step in state.steps.items() if step.is_settled]
        self._unsettled_steps -= len(settled)
        for step_id in settled:
            ready += self._ready_steps.settle(step_id)
        return [step for step in ready if step.step_id not in settled]

    def _complete(self) -> None:
        state = self.state
        missing = state.missing_steps
        self.phase = Phase.ENDED
        self.journal.append(
            e.TaskCompleted(
                "completed",
                state.written,
                bool(missing),
                missing,
                round(
                    self._earlier_seconds + asyncio.get_running_loop().time() - self._started_at, 3
                ),
            )
        )

    def _fail(self, failure: TaskFailure) -> None:
        """Stop the other steps, then end the task as failed."""
        redacted = replace(failure, message=redact(failure.message))
        self.stop(redacted, self._environment.grace)

    async def _measure_end(self, cancelled_at: float) -> None:
        """Observe the time from the cancel command to the commit of the terminal event."""
        with suppress(AgentsrvError):
            await self.journal.commit()
            self._environment.measures.cancelled.observe(monotonic() - cancelled_at)

    def _end_despite_running_steps(self, grace: float) -> None:
        """End the task although steps still run ``grace`` seconds after they were cancelled."""
        if self.phase is not Phase.STOPPING:
            return
        late = len(self._branches)
        self._end(stopped=False)
        self._environment.measures.orphaned += late
        _log.warning(
            "task %s: %d steps still run %s s after they were cancelled; they are cut off",
            self.state.task_id,
            late,
            grace,
            extra={"about": self.log_context},
        )

    def _end(self, *, stopped: bool) -> None:
        """Append the ending of a task that is stopping."""
        assert self._ending is not None
        self.phase = Phase.ENDED
        append_ending(self.journal, self._ending, stopped=stopped)
        if self._cancelled_at is not None:
            self._spawn(self._measure_end(self._cancelled_at))

    def _on_lost(self, error: AgentsrvError) -> None:
        """Stop the steps, because the journal can write nothing more."""
        if self.phase is not Phase.RELEASED:
            _log.info("task %s is lost to this worker: %s", self.state.task_id, error)
            self.stop(Handover.LOSS)
