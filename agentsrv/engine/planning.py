"""Planning: which steps a task has."""

from __future__ import annotations

import asyncio
import logging
from functools import partial

from agentsrv.agents.agent import TaskContext
from agentsrv.agents.registry import Registry
from agentsrv.engine.agent_errors import is_authors, take_back
from agentsrv.engine.failures import examine, log_failure
from agentsrv.engine.steps import TaskInfo
from agentsrv.error_text import safely
from agentsrv.errors import AgentsrvError, InvalidCommandError, PermanentError
from agentsrv.models.commands import Create
from agentsrv.models.plan import ExecutionPlan
from agentsrv.models.retry import RetryPolicy
from agentsrv.models.task import TaskState

_log = logging.getLogger("agentsrv.planning")


class PlanningFailedError(AgentsrvError):
    """There is no plan; ``retries`` tells how often the planner was asked again."""

    def __init__(self, reason: str, retries: int) -> None:
        super().__init__(f"planning failed: {reason}")
        self.retries = retries


async def make_plan(
    spec: Create, earlier: TaskState | None, task: TaskInfo, registry: Registry
) -> ExecutionPlan:
    """The plan that the task brings, that of the task it resumes, or the planner's.

    A planner that raises is asked again, as often and with the same waits as a step by default.
    Cancelling the call cancels the planner.

    Raises:
        PlanningFailedError: The planner went on raising, or the plan cannot run here.
    """
    policy = RetryPolicy()
    failures = 0
    while True:
        try:
            plan = registry.given_plan(spec.agent, spec.plan)
            if plan is None and earlier is not None:
                plan = earlier.plan
            if plan is None:
                plan = await _ask_planner(task, registry)
            registry.check_plan(plan)
            registry.check_params(spec.params, plan)
        except (InvalidCommandError, PermanentError) as error:
            kind = type(error).__name__  # an author's class may have no message
            raise PlanningFailedError(safely(partial(_message, error), kind), failures) from error
        except BaseException as error:
            if not is_authors(error, stopped=task.stopped):
                raise
            own = asyncio.current_task()
            if own is not None and own.cancelling():
                await take_back(own)
            if task.stopped:
                raise asyncio.CancelledError from error
            failures += 1
            found = examine(error)
            log_failure(_log, f"planning of task {task.task_id}", error, found, ())
            if found.permanent or not policy.allows(failures):
                raise PlanningFailedError(found.message, failures - 1) from error
            await asyncio.sleep(policy.delay(failures, found.retry_after))
        else:
            return plan


def _message(error: AgentsrvError) -> str:
    return str.__str__(error.message)


async def _ask_planner(task: TaskInfo, registry: Registry) -> ExecutionPlan:
    return await registry.ask_planner(
        TaskContext(
            task_id=task.task_id,
            task_description=task.description,
            params=task.params,
            principal=task.principal,
            searcher=task.environment.search,
            model=task.environment.model,
            registry=registry,
            app_state=task.environment.state,
        )
    )
