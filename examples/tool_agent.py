"""An agent whose language model calls tools: the knowledge base and a calculator.

export AGENTSRV_LLM_URL=http://127.0.0.1:8080/v1 AGENTSRV_LLM_MODEL=my-model
agentsrv serve examples.tool_agent:app --knowledge agentsrv/cli/demo/knowledge
agentsrv run "How much memory do 4000 idle threads take?" --agent researcher
"""

from __future__ import annotations

import json
from typing import Any, Final, Literal

from pydantic import BaseModel, Field, ValidationError

from agentsrv import App, PermanentError, StepContext

MAX_ROUNDS: Final = 6  # answers of the model, so that it cannot call tools for ever

app = App()


class Search(BaseModel):
    """Find passages in the knowledge base."""

    query: str = Field(max_length=200)


class Calculate(BaseModel):
    """Apply one operation to two numbers."""

    operation: Literal["add", "subtract", "multiply", "divide"]
    left: float
    right: float


TOOLS: Final[dict[str, type[BaseModel]]] = {"search": Search, "calculate": Calculate}
DESCRIBED: Final = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": tool.__doc__,
            "parameters": tool.model_json_schema(),
        },
    }
    for name, tool in TOOLS.items()
]


async def call(name: str, arguments: str, ctx: StepContext) -> str:
    """Run a tool; what is wrong with the call is told to the model, which may mend it."""
    try:
        match TOOLS[name].model_validate_json(arguments):
            case Search(query=query):
                found = await ctx.search(query, 3)
                return "\n".join(passage.text for passage in found) or "nothing found"
            case Calculate(operation="add", left=left, right=right):
                return str(left + right)
            case Calculate(operation="subtract", left=left, right=right):
                return str(left - right)
            case Calculate(operation="multiply", left=left, right=right):
                return str(left * right)
            case Calculate(left=left, right=right):
                return str(left / right)
    except (ValidationError, KeyError, ZeroDivisionError) as error:
        return f"the call failed: {error}"
    return "no such tool"


@app.agent(retries=2, timeout=120)
async def researcher(ctx: StepContext) -> str:
    """Answer a question with a language model that may search and calculate."""
    if not ctx.llm:
        raise PermanentError("there is no language model; expected settings llm_url and llm_model")
    messages: list[dict[str, Any]] = [{"role": "user", "content": ctx.task_description}]
    used: list[str] = []
    for _ in range(MAX_ROUNDS):
        answer = (await ctx.llm.create(messages, tools=DESCRIBED)).choices[0].message
        if not answer.tool_calls:
            ctx.set_result({"tools": used, "usage": ctx.llm.usage.counts()})
            return answer.content or ""
        messages.append(answer.model_dump(exclude_none=True))
        for wanted in answer.tool_calls:
            if wanted.type != "function":
                continue
            used.append(wanted.function.name)
            await ctx.progress(len(used), None, f"{used[-1]} {wanted.function.arguments}")
            result = await call(used[-1], wanted.function.arguments, ctx)
            messages.append({"role": "tool", "tool_call_id": wanted.id, "content": result})
    raise PermanentError(f"no answer after {MAX_ROUNDS} rounds; the tools were: {json.dumps(used)}")
