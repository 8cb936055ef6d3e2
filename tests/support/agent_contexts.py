"""Contexts for running one agent without an orchestrator."""

import asyncio

from agentsrv.agents.agent import StepContext
from agentsrv.models.events import InputReceived
from agentsrv.models.plan import Step


async def find_nothing(query, limit):
    """Search as if no knowledge base were configured."""
    return []


async def report_nothing(done, total, message):
    """Take a progress report and forget it."""


async def decline(question):
    """Decline whatever is asked."""
    return InputReceived("task/step/1", "step", "decline", None, "tester")


async def wait_for_ever(number):
    """Have no message."""
    await asyncio.Event().wait()


def make_context(
    task, search=find_nothing, results=None, outputs=None, model=None, *, registry=None
):
    """Return the context of a step of ``task``."""
    return StepContext(
        task_id="task",
        task_description=task,
        params={},
        principal="tester",
        searcher=search,
        attempt=1,
        step_key="key",
        outputs=outputs or {},
        results=results or {},
        reporter=report_nothing,
        model=model,
        registry=registry,
        asker=decline,
        mailbox=wait_for_ever,
    )


async def run(agent, ctx, step=None, **params):
    """Run ``agent`` and return its streamed output and its result."""
    step = step or Step(step_id="step", agent="agent")
    pieces = [piece async for piece in agent.run(step, ctx, **params)]
    return "".join(pieces), ctx.result
