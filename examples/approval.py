"""Nothing is sent before somebody has approved it, and nothing is sent twice.

    agentsrv serve examples.approval:app
    agentsrv run "The release is out."

`run` asks you at its prompt. From elsewhere: agentsrv respond TASK_ID yes
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from agentsrv import App, ExecutionPlan, InputDeclined, Step, StepContext

DAY = 86_400.0  # seconds
OUTBOX = Path(os.environ.get("OUTBOX", "outbox"))

app = App()


@app.agent
async def drafter(ctx: StepContext) -> str:
    """Write the message; a step of its own, so that what was approved is what is sent."""
    return f"Hello everybody,\n\n{ctx.task_description}\n"


@app.agent
async def sender(ctx: StepContext) -> str:
    """Ask whether the draft may go out, and send it."""
    draft = ctx.result_of(drafter)
    try:
        approved = await ctx.confirm(f"Send this?\n\n{draft}", default=False, timeout=DAY)
    except InputDeclined as declined:
        return f"Not sent: {declined.message}"
    if not approved:
        return "Not sent."
    # A crash behind this line runs the step again: the answer is given again, and the key tells
    # whoever delivers that it is the same message.
    await asyncio.to_thread(deliver, draft, idempotency_key=ctx.step_key)
    return "Sent."


def deliver(text: str, *, idempotency_key: str) -> None:
    """Put a message into a folder, as a mail service would: the same key sends it once."""
    OUTBOX.mkdir(exist_ok=True)
    try:
        with (OUTBOX / f"{idempotency_key.replace('/', '-')}.txt").open("x") as letter:
            letter.write(text)
    except FileExistsError:
        pass  # an earlier attempt has sent it


@app.planner
async def plan() -> ExecutionPlan:
    """Draft, then ask and send."""
    draft = Step(step_id="draft", agent="drafter", description="Write the message")
    send = Step(step_id="send", agent="sender", description="Send it", depends_on=("draft",))
    return ExecutionPlan(steps=(draft, send))
