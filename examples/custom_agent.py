"""An agent of your own, in a plan together with the built-in retriever.

agentsrv serve examples.custom_agent:app --knowledge agentsrv/cli/demo/knowledge
agentsrv run "Why does back-pressure matter?" --param quotes=2
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated

from pydantic import Field

from agentsrv import App, ExecutionPlan, Step, StepContext
from agentsrv.builtin import agents as builtin_agents

app = App()
app.include(builtin_agents, only=["retriever"])


@app.agent(retries=1, timeout=30)
async def quoter(
    ctx: StepContext, quotes: Annotated[int, Field(ge=1, le=10)] = 3
) -> AsyncIterator[str]:
    """Quote the passages that speak about the task, each with its source."""
    found = ctx.result_of("retriever")["passages"][:quotes]
    yield f"# {ctx.task_description}\n\n"  # each piece is streamed as it is yielded
    for number, passage in enumerate(found, start=1):
        await ctx.progress(number, len(found), f"quoting {passage['source']}")
        yield f"> {passage['text']}\n\n{passage['source']}, line {passage['line']}\n\n"
    if not found:
        yield "The knowledge base has nothing on this.\n"
    ctx.set_result({"sources": [passage["source"] for passage in found]})


@app.planner
async def plan() -> ExecutionPlan:
    """Find passages, then quote them."""
    find = Step(step_id="find", agent="retriever", description="Find passages")
    quote = Step(step_id="quote", agent="quoter", description="Quote them", depends_on=("find",))
    return ExecutionPlan(steps=(find, quote))
