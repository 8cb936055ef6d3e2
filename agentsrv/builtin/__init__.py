"""The built-in agents: retriever, analyzer, writer, validator, optimizer, and their planner.

An application like any other: it imports the names that authors import, and the knowledge
package's functions for texts. `app` is what ``agentsrv serve`` serves without a module. Another
application includes the agents, all or some of them, and may use their planner::

    from agentsrv import App
    from agentsrv.builtin import agents, plan

    app = App()
    app.include(agents)
    app.planner(plan)

`report` and `extract` hold what the agents share: the form of a report with citations, and the
choice of the sentences that it quotes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Annotated, Final

from pydantic import Field

from agentsrv import Agents, App, ExplainedPlan, TaskContext
from agentsrv.builtin.analyzer import AnalyzerAgent
from agentsrv.builtin.optimizer import OptimizerAgent
from agentsrv.builtin.planner import PlanName, plan
from agentsrv.builtin.retriever import RetrieverAgent
from agentsrv.builtin.validator import ValidatorAgent
from agentsrv.builtin.writer import WriterAgent

__all__ = ["agents", "app", "plan"]

RETRIEVED: Final = 300.0  # seconds for which the passages of an equal query are used again
RETRY_BASE: Final = 0.1  # seconds before the first retry: they call no service but the model

agents = Agents()
_local = partial(agents.agent, retry_base=RETRY_BASE, retry_jitter=False)
_local("retriever", on_failure="degrade", cache=RETRIEVED)(RetrieverAgent().run)
_local("analyzer")(AnalyzerAgent().run)
_local("writer")(WriterAgent().run)
_local("validator", on_failure="degrade")(ValidatorAgent().run)
_local("optimizer")(OptimizerAgent().run)


@asynccontextmanager
async def _lifespan(app: App) -> AsyncIterator[PlanName]:
    """``ctx.state`` is the setting ``default_plan``."""
    yield app.settings.default_plan


app = App(lifespan=_lifespan)
app.include(agents)


@app.planner
async def _plan_by_setting(
    task_description: str,
    ctx: TaskContext,
    name: Annotated[PlanName | None, Field(alias="plan")] = None,
) -> ExplainedPlan:
    """Plan as `plan`, with the setting ``default_plan`` where the task names no plan."""
    return await plan(task_description, ctx, name or ctx.state)
