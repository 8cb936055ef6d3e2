"""TaskRunner: one claimed task from where its log ends to its terminal event."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any

from agentsrv.errors import AgentsrvError, Fenced, Unavailable
from agentsrv.models import events as e
from agentsrv.models.commands import Create
from agentsrv.models.plan import Frontier, Step
from agentsrv.models.states import TaskStatus
from agentsrv.models.task import TaskState
from agentsrv.orchestrator.dialogue import Dialogue
from agentsrv.orchestrator.endings import CancelRequest, Ending, Failure, write_end
from agentsrv.orchestrator.journal import Journal
from agentsrv.orchestrator.logs import load_state
from agentsrv.orchestrator.planning import PlanningFailed, make_plan
from agentsrv.orchestrator.recovery import adopt, recover
from agentsrv.orchestrator.steps import Outcome, StepRun, TaskInfo
from agentsrv.orchestrator.surroundings import Surroundings
from agentsrv.store.base import Lease

if TYPE_CHECKING:
    from agentsrv.telemetry.tracing import TaskSpan

Work = Callable[[], Coroutine[Any, Any, None]]

_log = logging.getLogger("agentsrv.task")


class TaskRunner:
    """One task's work, in branches; ``run`` waits for all of them.

    The first branch is ``run``'s own task of asyncio: a chain of steps needs no other. Where
    more than one step is ready, each of the others begins a branch with a task of its own.

    A branch is cancelled at most once, directly, so that its step's cleaning up is not
    interrupted by a second cancellation. A step that does not end within the grace period is
    cut off from the log by closing the journal; ``run`` goes on until it has really ended.
    """

    def __init__(self, lease: Lease, spec: Create, state: TaskState, around: Surroundings) -> None:
        self._around = around
        self._spec = spec
        self._lease = lease
        self.about = {"principal": lease.owner, "task_id": lease.task_id}
        """What lines of the log name; see ``logs.about``."""
        self.state = state
        """The task as its log tells it, with what waits for its commit."""
        self.journal = Journal(
            around.store,
            lease,
            state,
            now=around.now,
            on_lost=self._on_lost,
            measures=around.measures,
        )
        self.dialogue = Dialogue(self.journal, around.now)
        self._info = TaskInfo(
            lease.task_id,
            spec.task_description,
            spec.params,
            lease.owner,
            around,
            self.dialogue,
        )
        self._branches: dict[asyncio.Task[None], StepRun | None] = {}
        self._stopped = False  # the branches were cancelled by this runner
        self._tasks: set[asyncio.Task[None]] = set()  # all that ``run`` has to wait for
        self._frontier: Frontier
        self._left = 0  # steps that have not settled
        self._cancel: CancelRequest | None = None
        self._failure: Failure | None = None
        self._winding_down = False
        self._deadline: asyncio.TimerHandle | None = None
        self._patience: asyncio.TimerHandle | None = None  # while the branches are being stopped
        self._span: TaskSpan | None = None  # of this run, where the server is traced
        self._cancelled_at: float | None = None  # of the monotonic clock

    async def run(self) -> None:
        """Work until nothing of the task runs any more and its end is durable.

        Cancelling this abandons the task: nothing more is written, and whoever claims it next
        goes on behind its completed steps.
        """
        own = asyncio.current_task()
        assert own is not None
        tracing = self._around.tracing
        if tracing is not None:
            self._span = tracing.task(self.state)
        try:
            self._branches[own] = None
            try:
                await self._branch(self._begin)
            finally:
                self._branch_ended(own)
            while self._tasks:
                await asyncio.wait(self._tasks)
            with suppress(AgentsrvError):  # lost: somebody else writes the end
                await self.journal.commit()
        except asyncio.CancelledError:
            self.journal.abandon()
            if self._tasks:
                await asyncio.wait(self._tasks)
            raise
        finally:
            for timer in (self._deadline, self._patience):
                if timer is not None:
                    timer.cancel()
            if not self.state.status.is_terminal:
                self.journal.abandon()
            self.journal.retire()
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

        The work does not run on for as long as a commit takes. Should a crash forget the decision,
        then nobody was told of it, and the task goes on as behind any other crash.

        Returns:
            The status, and whether the task was ended or being cancelled already; so it is when
            the journal has committed.
        """
        if self.journal.closed or self._cancel is not None:
            return self.state.status, True
        self._cancel = request
        self._cancelled_at = monotonic()
        if not self._winding_down:
            if self._is_idle:
                self._cut_off()
                return self.state.status, False
            self._wind_down(request.grace)  # first: what ends at once is in the decision's append
        self.journal.append(e.TaskCancelling(request.reason, request.by, request.grace))
        return self.state.status, False

    def abandon(self) -> None:
        """Stop without a word in the log: whoever claims the task next goes on from there."""
        self.journal.abandon()

    @property
    def waits_for_answers(self) -> bool:
        """Whether the task stands still until somebody answers."""
        return self.state.status is TaskStatus.INPUT_REQUIRED and self._is_idle

    @property
    def _is_idle(self) -> bool:
        """Whether no code of the task runs: its steps sit out a back-off or wait for answers."""
        return bool(self._branches) and all(run and run.waiting for run in self._branches.values())

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
            self._around.measures.stopped.observe(monotonic() - self._cancelled_at)
        if self._winding_down:
            self._end(stopped=True)

    async def _branch(self, work: Work) -> None:
        """Do one branch's work; a fault of the server fails the task, never the worker."""
        try:
            await work()
        except Fenced:
            pass  # the log is somebody else's
        except Unavailable:  # what the task needs to know cannot be read: it begins again
            self.journal.abandon()
        except asyncio.CancelledError:
            own = asyncio.current_task()
            if not self._stopped or (own is not None and own.uncancel()):
                raise  # from outside
        except Exception as error:  # noqa: BLE001 - a fault of ours must end in the log
            incident = uuid.uuid4().hex[:12]
            _log.exception("incident %s in task %s", incident, self.state.task_id)
            message = error.message if isinstance(error, AgentsrvError) else "internal error"
            self._fail(Failure(f"{message} (incident {incident})"))

    def _stop_branches(self, but: asyncio.Task[None] | None = None) -> None:
        self._stopped = True
        for task in self._branches:
            if task is not but:
                task.cancel()

    async def _begin(self) -> None:
        state, journal, node = self.state, self.journal, self._around.node
        traceparent = None if self._span is None else self._span.traceparent
        if state.status is TaskStatus.QUEUED:
            journal.append(e.TaskStarted(node, traceparent))
        else:
            ending = recover(journal, node, self._lease.losses, traceparent)
            if ending is not None:
                self._end_early(ending)
                return
        if not self._is_in_time():
            return
        if state.plan is None:
            earlier = await self._earlier()
            try:
                plan = await make_plan(self._spec, earlier, self._info, self._around.registry)
            except PlanningFailed as failure:
                self._fail(Failure(failure.message, retries=failure.retries))
                return
            state.plan = plan
            described = plan.described(self._around.registry.retries)
            journal.append(e.PlanCreated(described, *plan.origin))
            if earlier is not None:
                adopt(journal, earlier)
        else:
            self._around.registry.check_plan(state.plan)  # the application may have changed
        await self._run_steps(self._start(self._first_steps()))

    def _is_in_time(self) -> bool:
        """Watch the deadline; return whether it is still to come."""
        deadline = self._spec.deadline
        if deadline is None:
            return True
        failure = Failure(f"the deadline of {deadline:g} s has passed")
        left = deadline - self.state.waited(self._around.now())
        if left <= 0:
            self._fail(failure)
            return False
        self._deadline = asyncio.get_running_loop().call_later(left, self._fail, failure)
        return True

    async def _earlier(self) -> TaskState | None:
        """The task that this one resumes."""
        if self._spec.resume_from is None:
            return None
        return await load_state(self._around.store, self._spec.resume_from)

    def _end_early(self, ending: Ending) -> None:
        """End the task before anything of it runs."""
        if isinstance(ending, CancelRequest):
            self._cancel = ending
            self._end(stopped=True)
        else:
            self._fail(ending)

    async def _run_steps(self, run: StepRun | None) -> None:
        """Run a step and, one after the other, those that become ready with it."""
        task = asyncio.current_task()
        assert task is not None
        while run is not None:
            self._branches[task] = run
            try:
                outcome = await run.run()
            except asyncio.CancelledError:
                # An abandoned task is not a cancelled one: only a decision may stand in the log.
                if self._winding_down and not self.journal.closed:
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
        if self._winding_down or self.journal.closed or self._cancel:
            return None
        if not self._left:
            self._complete()
        runs = [self._make_run(step) for step in ready]
        for run in runs[1:]:
            self._begin_branch(run)
        return runs[0] if runs else None

    def _first_steps(self) -> Sequence[Step]:
        """The steps with which the plan begins, or goes on."""
        state = self.state
        assert state.plan is not None
        self._frontier = Frontier(state.plan)
        ready = self._frontier.start()
        settled = [step_id for step_id, step in state.steps.items() if step.is_settled]
        for step_id in settled:
            ready += self._frontier.settle(step_id)
        self._left = len(state.steps) - len(settled)
        return [step for step in ready if step.step_id not in settled]

    def _make_run(self, step: Step) -> StepRun:
        agent = self._around.registry[step.agent]
        dependencies = {step_id: self.state.steps[step_id] for step_id in step.depends_on}
        return StepRun(step, agent, self._info, self.journal, dependencies)

    def _complete(self) -> None:
        state = self.state
        missing = state.missing_steps
        self.journal.append(
            e.TaskCompleted(
                "completed",
                state.written,
                bool(missing),
                missing,
                state.elapsed(self._around.now()),
            )
        )

    def _fail(self, failure: Failure) -> None:
        """Stop what else runs, then end the task as failed."""
        if self._winding_down or self.journal.closed:
            return
        self._failure = failure
        # A branch that fails ends by itself.
        self._wind_down(self._around.grace, but=asyncio.current_task())

    async def _measure_end(self, cancelled_at: float) -> None:
        with suppress(AgentsrvError):
            await self.journal.commit()
            self._around.measures.cancelled.observe(monotonic() - cancelled_at)

    def _wind_down(self, grace: float, but: asyncio.Task[None] | None = None) -> None:
        """Cancel the work; the terminal event follows its end, or comes in ``grace`` seconds."""
        self._winding_down = True
        self._stop_branches(but)
        self._patience = asyncio.get_running_loop().call_later(grace, self._end_without, grace)

    def _end_without(self, grace: float) -> None:
        """End the task without those that have not stopped."""
        if self.journal.closed:
            return
        late = len(self._branches)
        self._end(stopped=False)
        self._around.measures.orphaned += late
        _log.warning(
            "task %s: %d steps still run %s s after they were cancelled; they are cut off",
            self.state.task_id,
            late,
            grace,
            extra={"about": self.about},
        )

    def _cut_off(self) -> None:
        """End the task while none of its code runs."""
        self._winding_down = True
        self._end(stopped=True)
        self._stop_branches()

    def _end(self, *, stopped: bool) -> None:
        """Write how the task ends; a cancel counts more than a failure."""
        ending = self._cancel or self._failure
        if ending is not None and not self.journal.closed:
            write_end(self.journal, ending, stopped=stopped)
            if self._cancelled_at is not None:
                self._beside(self._measure_end(self._cancelled_at))

    def _on_lost(self, error: AgentsrvError) -> None:
        _log.info("task %s is lost to this worker: %s", self.state.task_id, error)
        self._stop_branches()
