"""An agent of another framework (Pydantic AI), served with the configured model.

pip install pydantic-ai-slim
export AGENTSRV_LLM_URL=http://127.0.0.1:8080/v1 AGENTSRV_LLM_MODEL=my-model
agentsrv serve examples.framework_agent:app
agentsrv run "The sea at night" --agent poet
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from agentsrv import App, PermanentError, StepContext

app = App()
framework_agent = Agent(instructions="Write a short poem about what the user names.")


@app.agent
async def poet(ctx: StepContext) -> AsyncIterator[str]:
    """Write a short poem."""
    if not ctx.llm:
        raise PermanentError("there is no language model; expected settings llm_url and llm_model")
    model = OpenAIChatModel(ctx.llm.model, provider=OpenAIProvider(openai_client=ctx.llm.client))
    async with framework_agent.run_stream(ctx.task_description, model=model) as answer:
        async for piece in answer.stream_text(delta=True):
            yield piece
