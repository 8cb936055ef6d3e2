"""What the console is tried with: ``agentsrv serve tests.e2e.console.agents``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final, Literal

from agentsrv import App, ExecutionPlan, PermanentError, Step, StepContext, TaskContext

TRICK: Final = "<img src=x onerror=alert(1)><script>alert(2)</script>"
LINKS: Final = (
    "[a](javascript:alert(3)) [b](JaVaScRiPt:alert(4)) [c](data:text/html,x) [d](//evil.example/x) "
    "![e](https://example.org/x.png) [f](https://example.org/ok) [g](mailto:ada@example.org) "
    "<a href='javascript:alert(5)'>h</a> https://example.org/bare [i](vbscript:x) [j](\\\\evil)"
)
_PARAGRAPH = "A *sentence* of **some** words with `code` and [a link](https://example.org/). " * 4
CHAPTER: Final = (
    f"## A chapter\n\n{_PARAGRAPH}\n\n- one\n- two\n\n```python\nprint('hello')\n```\n\n"
)

app = App()


@app.agent
async def writer(
    step: Step,
    ctx: StepContext,
    pieces: int = 20,
    pause: float = 0.02,
    tone: Literal["dry", "warm"] = "dry",
) -> AsyncIterator[str]:
    """Write a list, an item at a time."""
    yield f"## A {tone} list\n\nIt has **{pieces}** items, `code` and [a link](https://example.org/).\n\n"
    for number in range(pieces):
        await ctx.progress(number, pieces, "writing")
        yield f"- item {number}\n"
        await asyncio.sleep(pause)


@app.agent(retries=1, retry_base=0.3)
async def finder(step: Step, ctx: StepContext) -> AsyncIterator[str]:
    """Fail at first, then name its sources."""
    yield f"what attempt {ctx.attempt} wrote"
    if ctx.attempt == 1:
        raise ConnectionError("the source is away")
    ctx.set_result({"sources": [{"title": "Threads", "source": "threads.md", "line": 3}]})


@app.agent
async def clerk(step: Step, ctx: StepContext) -> str:
    """Ask before it goes on."""
    if not await ctx.confirm("May I *order* this?\n\n- one\n- two"):
        return "not ordered"
    count = await ctx.ask("How many?", int, key="many")
    size = await ctx.ask("Of which size?", options=["small", "large"], key="size")
    return f"ordered {count}, {size}"


@app.agent
async def twice(step: Step, ctx: StepContext) -> str:
    """Ask two questions at a time."""
    first, second = await asyncio.gather(
        ctx.confirm("One?", key="one"), ctx.confirm("Two?", key="two")
    )
    return f"{first} {second}"


@app.agent
async def broken(step: Step, ctx: StepContext) -> str:
    """Fail for good."""
    raise PermanentError(f"out of paper {TRICK}")


@app.agent
async def waiter(step: Step, ctx: StepContext) -> AsyncIterator[str]:
    """Wait until cancelled."""
    yield "so far"
    await asyncio.Event().wait()


@app.agent
async def listener(step: Step, ctx: StepContext) -> str:
    """Say what it is told."""
    return f"I was told: {await anext(aiter(ctx.messages()))}"


@app.agent
async def trickster(step: Step, ctx: StepContext) -> AsyncIterator[str]:
    """Write, name and ask what a page must not take for its own."""
    yield f"{TRICK}\n\n{LINKS}\n\n```html\n{TRICK}\n```\n\n| {TRICK} | b |\n|---|---|\n| {LINKS} | c |\n\n"
    yield f"> {TRICK}\n\n# {TRICK}\n"
    ctx.set_result({"sources": [{"title": TRICK, "source": "javascript:alert(6)"}]})
    await ctx.ask(f"{TRICK} {LINKS}", options=[TRICK, "no"])


@app.agent
async def novelist(step: Step, ctx: StepContext, characters: int = 1_000_000) -> AsyncIterator[str]:
    """Write a lot of Markdown."""
    for _ in range(characters // len(CHAPTER)):
        yield CHAPTER
    yield "The end."


@app.planner
async def plan(task_description: str, ctx: TaskContext) -> ExecutionPlan:
    """Find and write side by side, then ask, then write."""
    return ExecutionPlan(
        steps=(
            Step(step_id="find", agent="finder", description="Find sources"),
            Step(step_id="draft", agent="writer", description="Write a draft"),
            Step(step_id="order", agent="clerk", depends_on=("find",)),
            Step(step_id="report", agent="writer", depends_on=("find", "draft", "order")),
        )
    )
