"""The official AG-UI client, with the transport of the example, against a real server."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from agentsrv import App, ExecutionPlan, PermanentError, Step, StepContext, TaskContext
from tests.e2e.docs.pages import URL, of
from tests.support.nodejs import npm_folder
from tests.support.principals import ADA, ADA_KEY
from tests.support.talk import serving

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "examples" / "ag-ui"
PACKAGES = ("@ag-ui/client@1.0.0", "rxjs@7.8.1", "ws@8.23.0")
PIECES = [f"piece {number}. " for number in range(20)]

pytestmark = [pytest.mark.interop, pytest.mark.timeout(300)]  # the first time it is installed


def make_app() -> App:
    """Agents for each thing that a front end may meet."""
    app = App()

    @app.agent
    async def echo(step: Step, ctx: StepContext, times: int = 1) -> str:
        """Say the task again."""
        return ctx.task_description * times

    @app.agent(retries=2, retry_base=0.01)
    async def moody(step: Step, ctx: StepContext) -> AsyncIterator[str]:
        """Fail twice, behind some text."""
        yield f"attempt {ctx.attempt}"
        if ctx.attempt < 3:
            raise ConnectionError("no route")

    @app.agent
    async def talker(step: Step, ctx: StepContext) -> AsyncIterator[str]:
        """Write many pieces."""
        for piece in PIECES:
            yield piece
            await asyncio.sleep(0.01)

    @app.agent
    async def asker(step: Step, ctx: StepContext) -> AsyncIterator[str]:
        """Ask in the middle of a text."""
        yield "May I? "
        yield str(await ctx.confirm("May I?"))

    @app.agent
    async def waiter(step: Step, ctx: StepContext) -> AsyncIterator[str]:
        """Wait until cancelled."""
        yield "Waiting."
        await asyncio.Event().wait()

    @app.agent
    async def broken(step: Step, ctx: StepContext) -> AsyncIterator[str]:
        """Fail for good."""
        yield "So far."
        raise PermanentError("no such thing")

    @app.planner
    async def plan(task_description: str, ctx: TaskContext) -> ExecutionPlan:
        """Where a front end names no agent."""
        return ExecutionPlan(steps=(Step(step_id="step_001", agent="echo"),))

    return app


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A folder with the example, the scenarios, and the packages that both import."""
    folder = npm_folder("ag-ui", *PACKAGES)
    for file in (EXAMPLE / "websocket-agent.mjs", EXAMPLE / "run.mjs", EXAMPLE / "package.json",
                 Path(__file__).with_name("ag_ui.mjs")):  # fmt: skip
        shutil.copy(file, tmp_path)
    (tmp_path / "node_modules").symlink_to(folder / "node_modules")
    return tmp_path


async def start(folder: Path, *arguments: str) -> asyncio.subprocess.Process:
    """Start a program of the folder."""
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(
        "node", *arguments, cwd=folder, stdin=pipe, stdout=pipe
    )


async def test_the_official_client_finds_no_violation(program):
    """A task, a retry, a parallel plan, a question, a cancel, a failure and a lost connection."""
    async with serving(make_app(), api_keys=ADA) as server:
        process = await start(program, "ag_ui.mjs", server.url, ADA_KEY)
        printed, _ = await process.communicate()
    told: dict[str, Any] = json.loads(printed)
    complaints = told.pop("complaints")
    assert complaints == []
    assert {name: each["failures"] for name, each in told.items()} == {
        name: ["ConnectionLost"] if name == "lost" else [] for name in told
    }
    texts = {
        name: [message["content"] for message in each["messages"] if message["role"] != "user"]
        for name, each in told.items()
    }
    whole = "".join(PIECES)
    assert texts == {
        "task": ["Hello. Hello. "],
        "retry": ["attempt 3"],
        "parallel": [whole] * 3,
        "question": ["May I? True"],
        "cancel": ["Waiting."],
        "failure": ["So far."],
        "lost": [whole],
    }
    assert {name: each["state"]["agentsrv"]["status"] for name, each in told.items()} == {
        name: {"cancel": "cancelled", "failure": "failed"}.get(name, "completed") for name in told
    }
    assert all(each["state"]["mine"] == 1 for each in told.values())
    assert told["task"]["runs"][0]["result"] == "Hello. Hello. "
    assert told["retry"]["customs"].count("agentsrv.step_retrying") == 2
    assert "MESSAGES_SNAPSHOT" in told["retry"]["types"]
    assert told["parallel"]["types"].count("STEP_FINISHED") == 3
    (asked,) = told["question"]["asked"]
    assert (asked["message"], asked["responseSchema"]) == ("May I?", {"type": "boolean"})
    assert told["question"]["interrupts"] == []
    assert told["cancel"]["types"][-1] == "RUN_FINISHED"
    assert told["failure"]["types"][-1] == "RUN_ERROR"
    assert told["lost"]["before"] == 2
    assert told["lost"]["types"].count("RUN_STARTED") == 2


async def test_the_example_s_program_shows_a_task_and_asks(program):
    """As a person at a terminal sees it."""
    async with serving(make_app()) as server:
        process = await start(program, "run.mjs", server.url, "x", "asker")
        assert process.stdout is not None
        prompt = 'May I? {"type":"boolean"} '
        shown = (await process.stdout.readuntil(prompt.encode())).decode()
        assert shown == f"\n[step_001]\nMay I? \n[interrupt]\n{prompt}"
        rest, _ = await process.communicate(b"true\n")
    assert rest.decode() == "\n[step_001]\nMay I? True\n[success]\n"
    assert process.returncode == 0


async def test_the_page_s_program_runs_a_task(program):
    """That of docs/howto/ag-ui.md, under Node.js with the WebSocket that it lacks before 22."""
    (page,) = of("howto/ag-ui.md", "js")
    assert URL in page
    before = 'import { WebSocket } from "ws";\nglobalThis.WebSocket ??= WebSocket;\n'
    after = "console.log(agent.messages.at(-1).content);\n"
    async with serving(make_app()) as server:
        (program / "page.mjs").write_text(before + page.replace(URL, server.url) + after)
        printed, _ = await (await start(program, "page.mjs")).communicate()
    assert printed.decode() == "How does async I/O affect throughput?\n"
