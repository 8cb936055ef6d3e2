"""Planning: obtains the plan of a task, from its command, a resumed task, or the planner."""

from __future__ import annotations

import asyncio
import logging
from functools import partial

from agentsrv.agents.agent import TaskContext
from agentsrv.agents.registry import Registry
from agentsrv.engine.agent_errors import (
    clear_cancellation,
    diagnose,
    is_agent_error,
    log_agent_error,
)
from agentsrv.engine.steps import TaskInfo
from agentsrv.error_text import safely
from agentsrv.errors import AgentsrvError, InvalidCommandError, PermanentError
from agentsrv.models.commands import Create
from agentsrv.models.plan import ExecutionPlan
from agentsrv.models.retry import RetryPolicy
from agentsrv.models.task import TaskState

_log = logging.getLogger("agentsrv.planning")


class PlanningFailedError(AgentsrvError):
    """The task has no valid plan; ``retries`` counts the repeated calls of the planner."""

    def __init__(self, reason: str, retries: int) -> None:
        super().__init__(f"planning failed: {reason}")
        self.retries = retries


async def make_plan(
    spec: Create, resumed: TaskState | None, task: TaskInfo, registry: Registry
) -> ExecutionPlan:
    """Return the plan of the command, of the resumed task, or of the planner.

    A planner that raises is called again, with the retries and waits that steps have by default.
    Cancelling the call cancels the planner.

    Raises:
        PlanningFailedError: The planner has failed for good, or the plan cannot run on this server.
    """
    policy = RetryPolicy()
    failures = 0
    while True:
        try:
            plan = registry.given_plan(spec.agent, spec.plan)
            if plan is None and resumed is not None:
                plan = resumed.plan
            if plan is None:
                plan = await _ask_planner(task, registry)
            registry.check_plan(plan)
            registry.check_params(spec.params, plan)
        except (InvalidCommandError, PermanentError) as error:
            kind = type(error).__name__  # for an author's class that has no message
            raise PlanningFailedError(safely(partial(_message, error), kind), failures) from error
        except BaseException as error:
            if not is_agent_error(error, stopped=task.stopped):
                raise
            own = asyncio.current_task()
            if own is not None and own.cancelling():
                await clear_cancellation(own)
            if task.stopped:
                raise asyncio.CancelledError from error
            failures += 1
            failure = diagnose(error)
            log_agent_error(_log, f"planning of task {task.task_id}", error, failure.message, ())
            if failure.permanent or not policy.allows(failures):
                raise PlanningFailedError(failure.message, failures - 1) from error
            await asyncio.sleep(policy.delay(failures, failure.retry_after))
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
