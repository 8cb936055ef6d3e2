"""Each program of docs/howto/agents.md runs; docs/reference/agents.md lists every name."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest

from agentsrv import App
from agentsrv.agents.agent import AgentOptions, StepContext
from agentsrv.models.commands import ADAPTER
from tests.e2e.docs.pages import DOCS
from tests.support.fake_model import fake_model
from tests.support.talk import Talk, talking

PAGE = (DOCS / "howto" / "agents.md").read_text(encoding="utf-8")
REFERENCE = (DOCS / "reference" / "agents.md").read_text(encoding="utf-8")
PROGRAMS = [
    (
        f"{text.partition(chr(10))[0].removeprefix('## ')} {number}".removesuffix(" 0"),
        re.findall(r"```(\w+)\n(.*?)```", program, re.DOTALL),
    )
    for text in re.split(r"^(?=## )", PAGE, flags=re.MULTILINE)
    for number, program in enumerate(re.findall(r"```python\n.*?(?=```python|\Z)", text, re.DOTALL))
]
SERVED = [(title, blocks) for title, blocks in PROGRAMS if "__main__" not in blocks[0][1]]
AWAITED = {"cancel": "partial_output", "respond": "input_required", "send": "step_started"}
SCRIPTS = [blocks for _, blocks in PROGRAMS if "__main__" in blocks[0][1]]


def load(program: str, folder: Path) -> App:
    """Import a program of the page as a module, as its processes do, and return its app."""
    name = f"page_{uuid.uuid4().hex}"
    (folder / f"{name}.py").write_text(program)
    app = importlib.import_module(name).app
    assert isinstance(app, App)
    return app


async def run(talk: Talk, frames: list[dict[str, Any]]) -> dict[str, Any]:
    """Send a ``create``, and what follows it once the agent has come to where it is awaited."""
    first, *others = frames
    task_id = (await talk.ask(first))["task_id"]
    for frame in others:
        event = await talk.until(AWAITED[frame["command"]])
        given = {"task_id": task_id, "input_id": event["data"].get("input_id")}
        await talk.ask({key: given.get(key, value) for key, value in frame.items()})
    return (await talk.log(task_id))[-1]


@pytest.mark.parametrize(("title", "blocks"), SERVED, ids=[title for title, _ in SERVED])
async def test_each_program_does_what_the_page_shows(title, blocks, monkeypatch, tmp_path):
    """The program is served, the frames below it are sent, and the last event is the one shown.

    After an event another ``create`` may follow.
    """
    (_, program), *rest = blocks
    stories: list[tuple[list[Any], Any]] = []
    frames: list[Any] = []
    for _, block in rest:
        if "event_type" in (read := json.loads(block)):
            stories.append((frames, read))
            frames = []
        else:
            ADAPTER.validate_json(json.dumps(read))
            frames.append(read)
    assert stories
    assert not frames
    async with fake_model() as fake:
        fake.script("A short text.")
        settings = fake.settings(drain_timeout=0.2, cancel_grace=1)
        monkeypatch.syspath_prepend(tmp_path)
        async with load(program, tmp_path).running(settings) as server, talking(server) as talk:
            for frames, shown in stories:
                last = await run(talk, frames)
                assert last["event_type"] == shown["event_type"], last
                assert last["data"] | shown["data"] == last["data"]


@pytest.mark.parametrize("blocks", SCRIPTS, ids=["served", "tested"])
def test_a_script_prints_what_the_page_shows(blocks, tmp_path):
    """It is run as a program of its own."""
    (_, program), (_, output) = blocks
    file = tmp_path / "script.py"
    file.write_text(program)
    done = subprocess.run(
        [sys.executable, file], cwd=tmp_path, capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout == output


def test_every_option_and_every_name_of_the_context_is_told():
    """The tables have the options of ``AgentOptions`` and the public names of ``StepContext``."""
    options = re.findall(r"^\| `(\w+)` \|", REFERENCE.partition("## Options")[2], re.MULTILINE)
    assert options[: len(AgentOptions.__annotations__)] == list(AgentOptions.__annotations__)
    told = set(
        re.findall(r"`(?:await )?(\w+)(?:\(.*?\))?`", REFERENCE.partition("## The contexts")[2])
    )
    public = {name for kind in StepContext.__mro__[:-1] for name in vars(kind)} | set(
        StepContext.__dataclass_fields__
    )
    # How the server hands things in and out.
    hidden = {"result", "reporter", "searcher", "model", "asker", "mailbox", "processes"}
    hidden |= {"registry", "app_state", "dependencies"}
    assert {name for name in public if not name.startswith("_")} - hidden <= told
