"""The built-in agents: they answer a task from the knowledge base, with or without a model.

The default plan is retriever, analyzer, writer; the plan ``research`` adds validator, optimizer.

- `retriever` searches the knowledge base for passages.
- `analyzer` selects the passages' sentences that answer the task, grouped by theme.
- `writer` writes a Markdown report from them, with numbered sources.
- `validator` checks each statement of a report against the passages that it cites.
- `optimizer` corrects a report according to the validator's findings.
- `planner` plans a task by rules or with a language model.

Shared modules: `extract` ranks sentences, `report` parses and writes reports with citations,
`evidence` decides by words whether a passage supports a statement, `prompts` contains the prompts.

The package is an application like any other: it imports only the names that authors import, and
functions of the knowledge package for texts. ``agentsrv serve`` without a module serves `app`.
Another application can include the agents and use their planner::

    from agentsrv import App
    from agentsrv.builtin import agents, plan

    app = App()
    app.include(agents)
    app.planner(plan)
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
