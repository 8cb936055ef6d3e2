import os
import subprocess
import sys
from pathlib import Path

import pytest

from agentsrv import InputDeclined
from agentsrv.cli import demo
from agentsrv.cli.demo import KNOWLEDGE
from agentsrv.client import Client
from agentsrv.errors import InvalidCommandError
from agentsrv.models.events import Record
from agentsrv.settings import Settings
from examples import approval, cpu_bound, custom_agent
from examples import client as client_example
from tests.support.clients import run_task
from tests.support.listening import listening

ROOT = Path(__file__).parents[3]


def settings(tmp_path: Path) -> Settings:
    """Of a server with the examples' knowledge."""
    index = tmp_path / "index.db"
    return Settings(port=0, store="memory:", knowledge=KNOWLEDGE, knowledge_index=index)


def test_the_demonstration_ends_by_itself_with_exit_status_0(tmp_path):
    """It shows every event, the report with its sources, and how the server ended.

    Settings of the environment and of the current folder do not apply to its server.
    """
    (tmp_path / "agentsrv.toml").write_text('store = "nonsense"')
    env = {**os.environ, "AGENTSRV_API_KEYS": "ada:secret", "AGENTSRV_KNOWLEDGE": "/nowhere"}
    command = [sys.executable, "-m", "agentsrv", "demo"]
    result = subprocess.run(
        command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=90, check=False
    )
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    numbers = [int(line[:4]) for line in lines if line[:4].strip().isdigit() and line[4:6] == "  "]
    assert numbers == list(range(1, numbers[-1] + 1))
    assert "throughput-and-latency.md" in result.stdout.partition("## Sources")[2]
    assert lines[-1] == "The server stopped at SIGTERM with exit status 0."


def test_a_demonstration_that_fails_says_so(monkeypatch, capsys):
    """With the server's log and another exit status."""
    monkeypatch.setattr(demo, "KNOWLEDGE", Path("/nowhere"))
    assert demo.main() == 1
    err = capsys.readouterr().err
    assert "the server ended before it listened" in err
    assert "expected a folder" in err


def test_the_client_example_is_short_and_needs_a_server(capsys, monkeypatch):
    """Without one it says so."""
    source = (ROOT / "examples/client.py").read_text()
    assert len(source.splitlines()) < 60
    monkeypatch.setattr(sys, "argv", ["client.py", "Why?", "--url", "ws://127.0.0.1:1"])
    assert client_example.main() == 1
    assert "no_server: no server at" in capsys.readouterr().err


async def test_the_client_example_prints_events_and_the_result(tmp_path, capsys):
    """Against the application of the other example."""
    async with custom_agent.app.running(settings(tmp_path)) as running:
        assert await client_example.ask("Why does back-pressure matter?", running.url) == 0
        assert await client_example.ask("Nothing", running.url) == 0
    out = capsys.readouterr().out
    assert "[1] task_created" in out
    assert "\n--- the result ---\n# Why does back-pressure matter?" in out


async def test_the_custom_agent_quotes_what_the_retriever_found(tmp_path):
    """As many passages as its parameter says; a wrong one is refused before anything runs."""
    async with custom_agent.app.running(settings(tmp_path)) as running, Client(running.url) as c:
        done = await run_task(c, "Why does back-pressure matter?", params={"quotes": 2})
        assert done.final_output.count("\n> ") == 2
        assert "back-pressure.md, line" in done.final_output
        with pytest.raises(InvalidCommandError, match=r"params\.quotes"):
            await c.create("Why?", params={"quotes": 99})


async def test_nothing_is_sent_without_approval(tmp_path, monkeypatch):
    """Whoever approves sees what is sent, once however often its step runs; else nothing is."""
    monkeypatch.setattr(approval, "OUTBOX", tmp_path / "outbox")
    prompts = []

    def answer(asked, refusal):
        prompts.append(asked.prompt)
        if "secret" in asked.prompt:
            raise InputDeclined("never")
        return "release" in asked.prompt

    outputs = {}
    async with approval.app.running(settings(tmp_path)) as running, Client(running.url) as client:
        for text in ("A secret.", "A rumour.", "The release is out."):
            outputs[text] = (await run_task(client, text, on_input=answer)).final_output
    assert outputs["A secret."].startswith("Not sent: anonymous declined")
    assert outputs["A rumour."] == "Not sent."
    assert outputs["The release is out."] == "Sent."
    [letter] = (tmp_path / "outbox").iterdir()
    assert prompts[-1] == f"Send this?\n\n{letter.read_text()}"
    approval.deliver("again", idempotency_key=letter.stem.replace("-", "/"))
    assert letter.read_text() == "Hello everybody,\n\nThe release is out.\n"


async def test_long_computations_run_in_processes_of_their_own(tmp_path):
    """Four parts, each counted elsewhere, and their sum."""
    records: list[Record] = []
    async with cpu_bound.app.running(settings(tmp_path)) as running, Client(running.url) as client:
        done = await run_task(client, "How many?", params={"below": 1000}, on_event=records.append)
    assert done.final_output == "There are 168 primes."
    started = [record.data["step_id"] for record in records if record.event_type == "step_started"]
    assert started == ["part_0", "part_1", "part_2", "part_3", "sum"]


@pytest.mark.parametrize(
    ("folder", "target"),
    [(ROOT, "examples.custom_agent:app"), (ROOT / "examples", "custom_agent:app")],
)
def test_the_custom_agent_is_served_by_its_name(folder: Path, target: str):
    """From the checkout, and from its own folder."""
    with listening(folder, target) as url:
        assert url.startswith("ws://")
