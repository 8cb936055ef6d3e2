"""An application for fault tests: parallel steps, retries, results, and a trace of each attempt."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

from agentsrv import App, ExecutionPlan, Step, StepContext, TaskContext
from agentsrv.store.sqlite.log import SqliteLog

TRACE = "TEST_TRACE"  # the file in which each attempt leaves a line when it begins
SYNCHRONOUS = "TEST_SYNCHRONOUS"  # weakens the store, to see whether a test notices
PIECES = 6
PAUSE = 0.004  # seconds between two pieces

app = App()


@app.agent
async def words(step: Step, ctx: StepContext) -> AsyncIterator[str]:
    """Write some words with pauses between them."""
    leave_trace(step, ctx)
    for number in range(PIECES):
        yield word(ctx.task_id, step.step_id, number)
        await asyncio.sleep(PAUSE)


@app.agent(retry_base=0.01)
async def flaky(step: Step, ctx: StepContext) -> AsyncIterator[str]:
    """Fail in the middle of each odd attempt."""
    leave_trace(step, ctx)
    for number in range(PIECES):
        yield word(ctx.task_id, step.step_id, number)
        await asyncio.sleep(PAUSE)
        if ctx.attempt % 2 and number == PIECES // 2:
            raise ConnectionError("the line is bad")


@app.agent
async def figures(step: Step, ctx: StepContext) -> dict[str, int]:
    """Return a structured result."""
    leave_trace(step, ctx)
    await asyncio.sleep(PAUSE)
    return {"pieces": PIECES}


@app.planner
async def plan(task_description: str, ctx: TaskContext) -> ExecutionPlan:
    """Two steps at the same time between a first one and a last one."""
    return ExecutionPlan(
        steps=(
            Step(step_id="first", agent="words"),
            Step(step_id="left", agent="flaky", depends_on=("first",)),
            Step(step_id="right", agent="figures", depends_on=("first",)),
            Step(step_id="last", agent="words", depends_on=("left", "right")),
        )
    )


def word(task_id: str, step_id: str, number: int) -> str:
    """What a step writes as its piece ``number``, in each attempt the same."""
    return f"{task_id[:4]}-{step_id}-{number} "


def final_output(task_id: str, agent: str | None) -> str:
    """What a task that completes has written: one of the planner's, or of ``figures`` alone."""
    if agent == "figures":
        return f'{{"pieces":{PIECES}}}'
    return "".join(word(task_id, "last", number) for number in range(PIECES))


def leave_trace(step: Step, ctx: StepContext) -> None:
    """Say outside, in one write, that an attempt begins: task, step, attempt, key."""
    if TRACE in os.environ:
        line = f"{ctx.task_id} {step.step_id} {ctx.attempt} {ctx.step_key}\n"
        trace = os.open(os.environ[TRACE], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            os.write(trace, line.encode())
        finally:
            os.close(trace)


def weaken(level: str) -> None:
    """Let every store of this process promise less than it should: ``OFF`` or ``NORMAL``."""
    patched: Any = SqliteLog
    connect = patched._connect

    def connect_and_weaken(log: Any) -> None:
        connect(log)
        log._db.execute(f"PRAGMA synchronous={level}")

    patched._connect = connect_and_weaken


if SYNCHRONOUS in os.environ:
    weaken(os.environ[SYNCHRONOUS])
