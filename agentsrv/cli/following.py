"""``agentsrv tail``: show the events of an existing task."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Final

from agentsrv.cli.connection import watched
from agentsrv.cli.exits import Exit
from agentsrv.cli.prompt import Prompt
from agentsrv.cli.render import Printer
from agentsrv.cli.screen import JsonLines, Screen, is_live, shown
from agentsrv.client import Client, OnInput, Options, TaskHandle
from agentsrv.client.answers import answering
from agentsrv.models import events as e

_ENDS: Final = {"task_completed": Exit.DONE, "task_failed": Exit.FAILED}


async def tail(  # noqa: PLR0917 - as the command line gives them
    prefix: str, after: int, json: bool, url: str, token: str | None, ca: Path | None
) -> int:
    """Show the events of a task after number ``after`` until it ends; return the exit code.

    From the beginning and on a terminal it looks like ``run``, and the task's questions can be
    answered. Ctrl-C leaves the task running.
    """
    async with (
        Client(url, Options(ca=ca), token=token) as client,
        _screen(json=json, whole=not after) as (screen, on_input),
    ):
        task = await client.find(prefix)
        async with watched(client, screen.tell):
            return await _follow(task, after, screen, on_input)


@asynccontextmanager
async def _screen(*, json: bool, whole: bool) -> AsyncIterator[tuple[Screen, OnInput | None]]:
    if json:
        yield JsonLines(), None
    elif whole and sys.stdout.isatty() and is_live():
        async with shown(json=False) as screen:
            yield screen, Prompt(screen.pause).ask if Prompt.is_possible() else None
    else:
        yield Printer(sys.stdout), None


async def _follow(task: TaskHandle, after: int, screen: Screen, on_input: OnInput | None) -> int:
    snapshot = await task.status()
    async with (
        answering(task.respond, on_input, snapshot, after) as see,
        aclosing(task.events(after)) as events,
    ):
        async for record in events:
            see(record)
            screen.event(record)
            if record.event_type == e.TaskCompleted.event_type:
                screen.output(record.data["final_output"])
            if record.is_terminal:
                return _ENDS.get(record.event_type, Exit.CANCELLED)
    raise AssertionError(f"the log of task {task.id} ended without a terminal event")
