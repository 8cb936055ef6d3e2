"""TaskRunner: runs one claimed task from the end of its log to its terminal event.

Theory of operation
===================

A task runs until its steps are done or ``stop`` is called. ``stop`` cancels every step under way
once, in the same turn of the event loop, and waits up to ``grace`` seconds for their code to end;
then the terminal event is written and says whether all of it has ended (``stopped``). Giving the
task back and losing it are ``stop`` without the event. There is no other way to end a task and no
other place that cancels a step.

The life cycle is the field ``phase``:

========= =============== ========================== ===================== ======================
phase     the steps       the journal                entered by            left for
========= =============== ========================== ===================== ======================
RUNNING   start, run      takes events               the constructor       any other phase
STOPPING  were cancelled  takes what they still      ``stop`` with a       ENDED when the last
          once            write, and their ends      cancel or a failure   step has ended or the
                                                                           grace period is over;
                                                                           RELEASED, LOST
ENDED     cut off if they holds the terminal event;  ``_complete``,        LOST, if the append is
          still run       closed                     ``_end``              refused
RELEASED  were cancelled  closed, nothing waits      ``stop(RELEASE)``:    nothing
          once                                       drain
LOST      were cancelled  closed, nothing waits      ``stop(LOSS)``: the   nothing
          once                                       log has another
                                                     writer, or the store
                                                     cannot be used
========= =============== ========================== ===================== ======================

What follows from the table:

- A step is cancelled at most once, so its clean-up is never interrupted by a second
  cancellation: only the transition out of RUNNING cancels.
- A step that waits for an answer, a back-off or its turn is cancelled like any other: the
  ``finally`` blocks of an agent that asks are code that runs. Only where no attempt is under way
  in any step does a cancel end the task in the same turn (``_is_idle``).
- A cancel replaces a failure as the ending of a task that is stopping, and the failure's grace
  period by its own.
- ``run`` returns when no code of the task runs any more, whatever the phase: until then the
  task holds its worker's slot.
- ``TaskInfo.stopped`` is set before the cancellation and by nothing else. Code that catches
  ``CancelledError`` asks it, and not ``asyncio.Task.cancelling()``, which an agent changes too.

The steps run in *branches*. The first branch is ``run``'s own asyncio task: a chain of steps
needs no other. Where more than one step is ready, each of the others begins a branch with an
asyncio task of its own.
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

from agentsrv.engine.agent_errors import take_back
from agentsrv.engine.crash_suspects import SUSPECT_AT, Interrupted
from agentsrv.engine.endings import (
    LOSS,
    RELEASE,
    CancelRequest,
    Departure,
    Ending,
    Failure,
    write_end,
)
from agentsrv.engine.environment import TaskEnvironment
from agentsrv.engine.inputs import InputBroker
from agentsrv.engine.journal import Journal
from agentsrv.engine.planning import PlanningFailedError, make_plan
from agentsrv.engine.recovery import adopt, count_losses, interrupted, recover, restart
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
    """Where a running task is in its life; the table is at the head of this module."""

    RUNNING = auto()
    STOPPING = auto()
    ENDED = auto()
    RELEASED = auto()
    LOST = auto()


class TaskRunner:
    """Runs one task; see the head of this module for its life cycle."""

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
        given_up: Failure | None = None,
    ) -> None:
        self._given_up = given_up  # how the task ends, if it is not to be run again
        self._environment = environment
        self._queued_at = queued_at  # of the loop's clock, where the task was queued here
        self._began = asyncio.get_running_loop().time()
        self._before = 0.0  # seconds that earlier runs took, by the wall clock
        self._spec = spec
        self._lease = lease
        self.about = {"principal": lease.owner, "task_id": lease.task_id}
        """What lines of the log name; see ``logs.about``."""
        self.state = state
        """The task as its log tells it, with what waits for its commit."""
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
        self._attempts = attempts  # that a crash of the last worker's process interrupted
        self._other_cause = other_cause
        self.phase = Phase.RUNNING
        self._ending: Ending | None = None  # how the task ends, once it is stopping
        self._branches: dict[asyncio.Task[None], StepRun | None] = {}
        """The step that each branch runs; ``None`` while the plan is made."""
        self._tasks: set[asyncio.Task[None]] = set()  # all that ``run`` has to wait for
        self._frontier: ReadySteps
        self._left = 0  # steps that have not settled
        self._mark = -1  # in the store's marks, while a planner's code runs
        self._deadline: asyncio.TimerHandle | None = None
        self._patience: asyncio.TimerHandle | None = None  # while the branches are being stopped
        self._span: TaskSpan | None = None  # of this run, where the server is traced
        self._cancelled_at: float | None = None  # of the monotonic clock

    async def run(self) -> None:
        """Work until no code of the task runs any more and its end is durable.

        Cancelling the call changes nothing: an agent may do it, whose asyncio task this is. Use
        ``stop``.
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
                if own.cancelling():  # by ``stop``, or by an agent: not what follows is meant
                    await take_back(own)
                is_over = False
                try:
                    while self._tasks:
                        await asyncio.wait(self._tasks)
                    await self.journal.commit()
                    is_over = True
                except AgentsrvError:  # lost: another worker writes the end
                    is_over = True
                except asyncio.CancelledError:
                    pass
        finally:
            for timer in (self._deadline, self._patience):
                if timer is not None:
                    timer.cancel()
            if self.phase is not Phase.ENDED:
                self.stop(RELEASE)
            self.journal.break_reference_cycle()
            if self._span is not None:
                self._span.end(self.state)

    async def snapshot(self) -> dict[str, Any]:
        """What ``status`` answers; everything in it is committed when this returns.

        Raises:
            Fenced: This worker has lost the task.
            Unavailable: The store cannot tell.
        """
        snapshot = self.state.snapshot() | {"seq": self.journal.mark()}
        await self.journal.commit()
        return snapshot

    def cancel(self, request: CancelRequest) -> tuple[TaskStatus, bool]:
        """Decide the cancellation, and stop the work in the same turn of the loop.

        The work does not continue for as long as a commit takes. If a crash forgets the decision,
        no client has seen it, and the task is recovered like after any other crash.

        Returns:
            The status, and whether the task was ended or being cancelled already; both are
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

    def stop(self, ending: Ending | Departure, grace: float = 0.0) -> None:
        """End the task other than by completing; cancels the steps if that was not done before.

        Args:
            ending: A cancel or a failure, which the log will tell; or ``RELEASE`` or ``LOSS``,
                after which nothing more is written.
            grace: Seconds that the steps have to end before the terminal event is written
                without them.
        """
        was = self.phase
        if isinstance(ending, Departure):
            if was in (Phase.RELEASED, Phase.LOST):
                return
            self.phase = Phase.RELEASED if ending is RELEASE else Phase.LOST
            self.journal.abandon()
        elif was is Phase.STOPPING:
            if isinstance(ending, CancelRequest):
                self._ending = ending
                self._wait_for_steps(grace)
            return
        elif was is Phase.RUNNING:
            self.phase, self._ending = Phase.STOPPING, ending
        else:
            return
        if was is not Phase.RUNNING:
            return
        self._info.stopped = True
        # The branch that failed, or found that it must be given back, ends by itself.
        own = None if ending is LOSS else asyncio.current_task()
        for branch in self._branches:
            if branch is not own:
                branch.cancel()
        if self.phase is not Phase.STOPPING:
            return
        if self._is_idle:
            self._end(stopped=True)
        else:
            self._wait_for_steps(grace)

    def _wait_for_steps(self, grace: float) -> None:
        """Give the steps so many seconds from now on to end."""
        if self._patience is not None:
            self._patience.cancel()
        self._patience = asyncio.get_running_loop().call_later(grace, self._cut_off, grace)

    @property
    def _is_idle(self) -> bool:
        """Whether no code of the task runs: no step is in an attempt, and no plan is made."""
        return all(run and not run.is_attempting for run in self._branches.values())

    def _beside(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run ``work`` in a task of its own, for which ``run`` waits."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _begin_branch(self, run: StepRun) -> None:
        task = self._beside(self._branch(partial(self._run_steps, run)))
        self._branches[task] = run
        task.add_done_callback(self._branch_ended)  # also where it is cancelled before it began

    def _branch_ended(self, task: asyncio.Task[None]) -> None:
        del self._branches[task]
        if self._branches:
            return
        if self._cancelled_at is not None:
            self._environment.measures.stopped.observe(monotonic() - self._cancelled_at)
        if self.phase is Phase.STOPPING:
            self._end(stopped=True)

    async def _branch(self, work: Work) -> None:
        """Do one branch's work; a fault of the server fails the task, never the worker."""
        try:
            await work()
        except FencedError:
            pass  # the log has another writer
        except (DamagedError, NotFoundError) as error:  # another try would read the same
            self._fail(Failure(error.message))
        except (
            UnavailableError
        ) as error:  # what the task needs to know cannot be read: it begins again
            _log.warning("task %s is given back: %s", self.state.task_id, error)
            self.stop(RELEASE)
        except asyncio.CancelledError:
            if not self._info.stopped:  # an agent cancelled its branch after its attempt
                self._fail(Failure("an agent of the task cancelled the server's own work"))
        except Exception as error:  # noqa: BLE001 - a fault of ours must end in the log
            incident = uuid.uuid4().hex[:12]
            _log.exception("incident %s in task %s", incident, self.state.task_id)
            message = error.message if isinstance(error, AgentsrvError) else "internal error"
            self._fail(Failure(f"{message} (incident {incident})"))

    async def _begin(self) -> None:
        state, journal, node = self.state, self.journal, self._environment.node
        traceparent = None if self._span is None else self._span.traceparent
        ending: Ending | None = self._given_up
        is_new = state.status is TaskStatus.QUEUED
        if is_new:
            journal.append(e.TaskStarted(node, traceparent))
        else:
            self._before = state.elapsed(self._environment.now())
            ending = recover(
                journal,
                node,
                self._attempts,
                traceparent,
                self._given_up,
                other_cause=self._other_cause,
            )
        if ending is not None:  # nothing of the task runs yet
            self.phase, self._ending = Phase.STOPPING, ending
            return
        if self._attempts and not is_new:  # code that ends the process must not undo the count
            self._attempts = ()
            await journal.commit()
        if self._spec.deadline is not None and not self._is_in_time(self._spec.deadline):
            return
        if state.plan is None:
            earlier, spec = None, self._spec
            if spec.resume_from is not None:
                earlier = await load_state(self._environment.store, spec.resume_from)
            is_asked = spec.agent is None and spec.plan is None and earlier is None
            try:
                if is_asked and not await self._may_ask_planner():
                    return
                plan = await make_plan(spec, earlier, self._info, self._environment.registry)
            except PlanningFailedError as failure:
                self._fail(Failure(failure.message, retries=failure.retries))
                return
            finally:
                if is_asked:
                    self._end_planning()
            state.plan = plan
            described = plan.described(self._environment.registry.retries)
            journal.append(e.PlanCreated(described, *plan.origin))
            if earlier is not None:
                adopt(journal, earlier)
            if self._attempts and not is_asked and not await self._count_step_losses():
                return
            ready = self._first_steps(has_results=earlier is not None)
        else:
            self._environment.registry.check_plan(state.plan)  # the application may have changed
            ready = self._first_steps(has_results=True)
        await self._run_steps(self._start(ready))

    async def _may_ask_planner(self) -> bool:
        """Have the start of the planning marked or committed before the planner's code runs."""
        state, store = self.state, self._environment.store
        if self._attempts:
            failure = count_losses(self.journal, self._attempts, other_cause=self._other_cause)
            if failure is not None:
                self._fail(failure)
                return False
            await self.journal.commit()
        suspects = self._environment.suspects
        if suspects.closed or state.losses >= SUSPECT_AT:
            await suspects.admit(self, state.losses)
        if store.marks is not None:
            self._mark = store.marks.enter(state.task_id, "", 1)
        elif store.commits_starts:
            await self.journal.commit()
        return True

    def _end_planning(self) -> None:
        if self._mark >= 0 and self._environment.store.marks is not None:
            self._environment.store.marks.leave(self._mark)
        self._environment.suspects.leave(self)

    async def _count_step_losses(self) -> bool:
        """Log the losses of attempts for which the log did not even have the plan."""
        attempts = interrupted(self.state, self._lease)
        failure = count_losses(self.journal, attempts, other_cause=self._other_cause)
        if failure is not None:
            self._fail(failure)
            return False
        steps = self.state.steps.values()
        restart(self.journal, [step for step in steps if step.status is StepStatus.RUNNING])
        await self.journal.commit()
        return True

    def _is_in_time(self, deadline: float) -> bool:
        """Watch the deadline, of seconds after the queueing; return whether it is to come."""
        failure = Failure(f"the deadline of {deadline:g} s has passed")
        if self._queued_at is None:  # by an earlier process, or another node
            waited = self.state.waited(self._environment.now())
        else:
            waited = self._began - self._queued_at
        left = deadline - waited
        if left <= 0:
            self._fail(failure)
            return False
        self._deadline = asyncio.get_running_loop().call_later(left, self._fail, failure)
        return True

    async def _run_steps(self, run: StepRun | None) -> None:
        """Run a step and, one after the other, those that become ready with it."""
        task = asyncio.current_task()
        assert task is not None
        while run is not None:
            self._branches[task] = run
            try:
                outcome = await run.run(task)
            except asyncio.CancelledError:
                # Only a decision is logged: a step of a released task has no end.
                if self.phase is Phase.STOPPING:
                    self.journal.append(run.cancelled_event)
                raise
            step_id = run.step.step_id
            if outcome is Outcome.FAILED:
                message = run.state.error_message or "the step failed"
                self._fail(Failure(message, step_id, run.state.failures))
                return
            self._left -= 1
            run = self._start(self._frontier.settle(step_id))

    def _start(self, ready: Sequence[Step]) -> StepRun | None:
        """Begin a branch for each ready step but the first; return the first one's run.

        Completes the task where no step is left.
        """
        if self.phase is not Phase.RUNNING:
            return None
        if not self._left:
            self._complete()
        if not ready:
            return None
        first, *others = ready
        for step in others:
            self._begin_branch(self._make_run(step))
        return self._make_run(first)

    def _first_steps(self, *, has_results: bool) -> Sequence[Step]:
        """The steps with which the plan begins, or continues if steps may have settled before."""
        state = self.state
        assert state.plan is not None
        self._frontier = ReadySteps(state.plan)
        ready = self._frontier.start()
        self._left = len(state.steps)
        if not has_results:
            return ready
        settled = [step_id for step_id, step in state.steps.items() if step.is_settled]
        for step_id in settled:
            ready += self._frontier.settle(step_id)
        self._left -= len(settled)
        return [step for step in ready if step.step_id not in settled]

    def _make_run(self, step: Step) -> StepRun:
        agent = self._environment.registry[step.agent]
        steps = self.state.steps
        dependencies = {step_id: steps[step_id] for step_id in step.depends_on}
        return StepRun(step, agent, self._info, self.journal, dependencies)

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
                round(self._before + asyncio.get_running_loop().time() - self._began, 3),
            )
        )

    def _fail(self, failure: Failure) -> None:
        """Stop what else runs, then end the task as failed."""
        shown = replace(failure, message=redact(failure.message))
        self.stop(shown, self._environment.grace)

    async def _measure_end(self, cancelled_at: float) -> None:
        with suppress(AgentsrvError):
            await self.journal.commit()
            self._environment.measures.cancelled.observe(monotonic() - cancelled_at)

    def _cut_off(self, grace: float) -> None:
        """End the task without the steps that have not stopped within ``grace`` seconds."""
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
            extra={"about": self.about},
        )

    def _end(self, *, stopped: bool) -> None:
        """Write how a task ends that is stopping."""
        assert self._ending is not None
        self.phase = Phase.ENDED
        write_end(self.journal, self._ending, stopped=stopped)
        if self._cancelled_at is not None:
            self._beside(self._measure_end(self._cancelled_at))

    def _on_lost(self, error: AgentsrvError) -> None:
        if self.phase is not Phase.RELEASED:
            _log.info("task %s is lost to this worker: %s", self.state.task_id, error)
            self.stop(LOSS)
