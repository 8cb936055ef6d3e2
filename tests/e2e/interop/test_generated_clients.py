"""Clients generated of the published schema, as docs/reference/protocol.md tells, talk to a real server."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, Union

import pytest
from pydantic import Field, TypeAdapter, ValidationError
from websockets.asyncio.client import connect

from tests.support.nodejs import npm_folder
from tests.support.programs import require
from tests.support.talk import serving

HERE = Path(__file__).parent
PAGE = (HERE.parents[2] / "docs" / "reference" / "protocol.md").read_text(encoding="utf-8")
FOR_PYTHON, FOR_TYPESCRIPT = re.findall(
    r"```sh\n(.*?)```", PAGE.partition("## Schema")[2], re.DOTALL
)
PACKAGES = (
    "json-schema-to-typescript@16.0.0",
    "typescript@7.0.2",
    "ws@8.23.0",
    "@types/ws@8.18.2",
    "@types/node@26.6.6",
)
COMPILE = "tsc --strict --noUncheckedIndexedAccess --module nodenext --types node typed_client.ts"

pytestmark = [pytest.mark.interop, pytest.mark.timeout(300)]  # the first time it is installed


def shell(script: str, folder: Path, *programs: Path) -> None:
    """Run a script with our programs and others on the path."""
    require("jq")
    path = os.pathsep.join([str(Path(sys.executable).parent), *map(str, programs)])
    environment = {**os.environ, "PATH": f"{path}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["sh", "-ec", script], cwd=folder, env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


async def test_a_python_client_runs_a_task_that_asks(tmp_path, monkeypatch):
    """It writes commands and reads frames by the generated models alone."""
    shell(FOR_PYTHON, tmp_path)
    spec = importlib.util.spec_from_file_location("models", tmp_path / "models.py")
    assert spec is not None
    assert spec.loader is not None
    models = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "models", models)  # where pydantic looks for it
    spec.loader.exec_module(models)

    names = "HelloFrame CreateReply RespondReply InputRequiredEvent TaskCompletedEvent".split()
    kinds = [getattr(models, name) for name in names]
    union: Any = Union[*kinds, dict[str, Any]]
    frames = TypeAdapter[Any](Annotated[union, Field(union_mode="left_to_right")])
    with pytest.raises(ValidationError, match="descripton"):
        models.Create(command="create", task_description="x", descripton="y")
    async with serving() as server, connect(server.url) as socket, asyncio.timeout(20):

        async def send(command: Any) -> None:
            await socket.send(command.model_dump_json(exclude_unset=True))

        step = models.Step(step_id="one", agent="asker")
        plan = models.ExecutionPlan(steps=[step])
        await send(models.Create(command="create", task_description="x", plan=plan, execute=True))
        seen = []
        while True:
            frame = frames.validate_json(await socket.recv())
            seen.append(type(frame).__name__)
            if isinstance(frame, models.InputRequiredEvent):
                answer = {"input_id": frame.data.input_id, "value": True}
                await send(models.Respond(command="respond", **answer))
            if isinstance(frame, models.TaskCompletedEvent):
                break
    assert frame.data.final_output == "one: True"
    assert {"HelloFrame", "CreateReply", "RespondReply"} <= set(seen)


async def test_a_typescript_client_runs_a_task_that_asks(tmp_path):
    """The compiler takes it, refuses what the schema refuses, and what it makes does its work."""
    modules = npm_folder("typescript", *PACKAGES) / "node_modules"
    (tmp_path / "node_modules").symlink_to(modules)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    shutil.copy(HERE / "typed_client.ts", tmp_path)
    shell(FOR_TYPESCRIPT, tmp_path, modules / ".bin")
    shell(COMPILE, tmp_path, modules / ".bin")
    async with serving() as server:
        process = await asyncio.create_subprocess_exec(
            "node", "typed_client.js", server.url, cwd=tmp_path, stdout=asyncio.subprocess.PIPE
        )
        printed, _ = await process.communicate()
    told = json.loads(printed)
    assert told["output"] == "one: True"
    assert {"hello", "reply", "input_required", "input_received"} <= set(told["kinds"])
