"""The JavaScript client, in Node: with types that fit, over connections that break."""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
from pathlib import Path

import pytest

from tests.e2e.console.agents import app
from tests.support.nodejs import npm_folder
from tests.support.principals import ADA, ADA_KEY
from tests.support.programs import require
from tests.support.proxy import Cut, CuttingProxy, Kind
from tests.support.talk import serving

pytestmark = [
    pytest.mark.interop,
    pytest.mark.timeout(180),
]
ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "examples" / "javascript" / "run.mjs"
CUTTING = Path(__file__).with_name("cutting.mjs")
TYPESCRIPT = "typescript@7.0.2"
NODE = ("node", "--experimental-websocket", "--no-warnings")  # what Node 22 has without being told
CONSUMER = """
import { Client, type Event } from "ROOT/agentsrv/console/client.js";
const client = new Client("ws://127.0.0.1:8765");
const { task_id } = await client.create({ task_description: "x", execute: true });
const done: Event | undefined = await client.follow(task_id, (event) => {
  if (event.event_type === "partial_output") console.log(event.data.output.length);
});
const { final_output } = await client.run("x", { onInput: ({ prompt }) => prompt.length > 3 });
console.log(done?.seq, final_output.length);
// @ts-expect-error: there is no such field
await client.create({ task_descriptoin: "x" });
// @ts-expect-error: it has no such data
await client.follow(task_id, (event) => event.event_type === "task_queued" && event.data.output);
"""


async def node(*arguments: str, **environment: str) -> tuple[int, str, str]:
    """The exit status of a script, what it printed, and what it complained of."""
    require("node")
    process = await asyncio.create_subprocess_exec(
        *NODE,
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **environment},
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


def test_the_types_fit_the_client_and_those_who_use_it(tmp_path):
    """The client and the example pass the checks, and so does what the page promises."""
    consumer = tmp_path / "consumer.mts"
    consumer.write_text(CONSUMER.replace("ROOT", str(ROOT)))
    options = {
        "allowJs": True, "checkJs": True, "strict": True, "noEmit": True, "target": "es2023",
        "module": "nodenext", "lib": ["es2023", "dom", "dom.iterable"], "types": ["node"],
        "typeRoots": [str(npm_folder("node-types", "@types/node@22.20.5") / "node_modules/@types")],
    }  # fmt: skip
    config = tmp_path / "tsconfig.json"
    config.write_text(
        json.dumps({"compilerOptions": options, "files": [str(EXAMPLE), str(consumer)]})
    )
    compiler = npm_folder("typescript", TYPESCRIPT) / "node_modules" / ".bin" / "tsc"
    done = subprocess.run([compiler, "-p", config], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


async def test_the_example_runs_a_task():
    """Events on stderr, the output on stdout; a task that fails is told."""
    async with serving(app) as server:
        status, out, err = await node(str(EXAMPLE), "list", "writer", AGENTSRV_URL=server.url)
        failed = await node(str(EXAMPLE), "fail", "broken", AGENTSRV_URL=server.url)
    assert (status, out.count("- item")) == (0, 20)
    assert "   1  task_created" in err
    assert failed[0] == 1
    assert "task_failed" in failed[2]
    assert "out of paper" in failed[2]


@pytest.mark.slow
async def test_the_example_signs_in_and_gives_up_in_time():
    """By its token; and where there is no server, after some attempts."""
    async with serving(app, api_keys=ADA) as server:
        given = {"AGENTSRV_URL": server.url, "AGENTSRV_TOKEN": ADA_KEY}
        status, out, _ = await node(str(EXAMPLE), "list", "writer", **given)
    assert (status, out.count("- item")) == (0, 20)
    nobody = {"AGENTSRV_URL": "ws://127.0.0.1:1", "AGENTSRV_ATTEMPTS": "1"}
    status, _, err = await node(str(EXAMPLE), "x", **nobody)
    assert status == 1
    assert "no server" in err


async def test_cuts_lose_nothing_and_tell_nothing_twice():
    """Each event once and in order, and each task once, however often the connection breaks."""
    tasks, pieces = 6, 150
    chance = random.Random(7)
    async with serving(app) as server:
        proxy = CuttingProxy(server.port, lambda: Cut(chance.randrange(2_000, 120_000), Kind.CLOSE))
        async with proxy.running():
            status, out, err = await node(str(CUTTING), proxy.url, str(tasks), str(pieces))
    assert (status, err) == (0, "")
    result = json.loads(out)
    assert result["total"] == tasks
    assert result["connections"] >= 3
    for told in result["told"]:
        assert told["seen"] == list(range(1, told["seq"] + 1))
        assert told["late"] == told["seen"][3:]
    print(f"{proxy.cuts[Kind.CLOSE]} cuts, {sum(told['seq'] for told in result['told'])} events")
