import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import mcp_types
import pytest
from mcp import Client as McpClient
from mcp import MCPError, StdioServerParameters

from agentsrv import App, PermanentError
from agentsrv.client import Client, SyncClient
from agentsrv.settings import Settings
from tests.support.server_process import require_default_port
from tests.support.terminal import in_terminal

app = App()
MODERN, LEGACY = "2026-07-28", "legacy"
ERAS = pytest.mark.parametrize("mode", [MODERN, LEGACY])

OnForm = Callable[[mcp_types.ElicitRequestFormParams], mcp_types.ElicitResult | None]


@app.agent
async def greeter(step, ctx, name: str = "world"):
    """Greet somebody."""
    await ctx.progress(1, 2, "thinking")
    yield f"Hello {name}"


@app.agent(retries=0)
async def broken(step, ctx):
    """Fail for good."""
    yield "I begin"
    raise PermanentError("the machine is out of paper")


@app.agent(retries=0)
async def careful(step, ctx):
    """Ask twice."""
    if not await ctx.confirm("Shall I?"):
        return "not done"
    return f"done {await ctx.ask('How many?', int)} times"


@app.agent
async def endless(step, ctx):
    """Stay."""
    await asyncio.Event().wait()


@pytest.fixture
async def url() -> AsyncIterator[str]:
    """A real server."""
    async with app.running(Settings(port=0, store="memory:", drain_timeout=0.01)) as running:
        yield running.url


@asynccontextmanager
async def connected(
    *arguments: str, mode: str = MODERN, on_form: OnForm | None = None
) -> AsyncIterator[McpClient]:
    """The official client, with ``agentsrv mcp`` as its server in a process of its own."""
    command = ["-m", "agentsrv", "mcp", *arguments]
    server = StdioServerParameters(command=sys.executable, args=command)

    async def elicit(context: Any, params: Any) -> Any:
        assert on_form is not None
        return on_form(params) or mcp_types.ErrorData(code=-1, message="nobody there")

    async with McpClient(
        server, mode=mode, elicitation_callback=elicit if on_form is not None else None
    ) as client:
        yield client


def text_of(result: mcp_types.CallToolResult) -> str:
    """The text of a result."""
    [content] = result.content
    assert isinstance(content, mcp_types.TextContent)
    return content.text


def accept(**content: Any) -> mcp_types.ElicitResult:
    """A form that was filled in."""
    return mcp_types.ElicitResult(action="accept", content=content)


@ERAS
async def test_a_client_lists_and_calls_the_tools(url, mode):
    """Each says what it does and takes; run tells its progress and returns the output."""
    seen: list[tuple[float, str | None]] = []

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        seen.append((progress, message))

    async with connected("--url", url, mode=mode) as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert list(tools) == ["run", "respond", "status", "cancel", "list", "agents"]
        assert all(tool.description for tool in tools.values())
        assert tools["run"].input_schema["required"] == ["text"]
        assert set(tools["run"].input_schema["properties"]) == {"text", "agent", "params"}
        arguments = {"text": "Greet", "agent": "greeter", "params": {"name": "Ada"}}
        result = await client.call_tool("run", arguments, progress_callback=on_progress)
        assert (text_of(result), result.is_error) == ("Hello Ada", False)
        facts = result.structured_content
        assert facts["status"] == "completed"
        numbers, lines = zip(*seen, strict=True)
        assert sorted(set(numbers)) == list(numbers)
        assert lines[0] == "task created: Greet"
        assert "step_001 1/2 thinking" in lines
        status = await client.call_tool("status", {"task": facts["task_id"][:13]})
        assert status.structured_content["final_output"] == "Hello Ada"
        listed = await client.call_tool("list", {"status": "completed"})
        assert listed.structured_content["tasks"][0]["task_id"] == facts["task_id"]
        agents = await client.call_tool("agents", {})
        assert {"greeter", "careful"} < {
            each["name"] for each in agents.structured_content["agents"]
        }
        cancelled = await client.call_tool("cancel", {"task": facts["task_id"]})
        assert cancelled.structured_content["already"] is True


async def test_what_fails_is_told_to_the_model(url):
    """A task's failure with what it wrote, a refusal with its reason; the client goes on."""
    async with connected("--url", url) as client:
        failed = await client.call_tool("run", {"text": "Print", "agent": "broken"})
        assert failed.is_error
        assert "failed in step_001: PermanentError: the machine is out of paper" in text_of(failed)
        assert text_of(failed).endswith("What it had written:\n\nI begin")
        assert failed.structured_content["status"] == "failed"
        for tool, arguments, reason in (
            ("run", {"text": "Greet", "agent": "nobody"}, "the agents are broken, careful"),
            ("run", {"text": "Greet", "agent": "greeter", "params": {"name": []}}, "params.name: "),
            ("status", {"task": "zzz"}, "there is no task 'zzz'"),
            ("respond", {"question": "zzz", "answer": True}, "there is no task 'zzz'"),
        ):
            refused = await client.call_tool(tool, arguments)
            assert refused.is_error
            assert reason in text_of(refused)


@ERAS
async def test_a_cancelled_call_cancels_its_task(url, mode):
    """On the server, with the reason in its log; the connection serves other calls."""
    started = asyncio.Event()

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        if message is not None and "step_001 started" in message:
            started.set()

    async with connected("--url", url, mode=mode) as client, Client(url) as direct:
        call = asyncio.create_task(
            client.call_tool(
                "run", {"text": "Wait", "agent": "endless"}, progress_callback=on_progress
            )
        )
        await started.wait()
        [task] = (await direct.list()).tasks
        call.cancel()
        await asyncio.wait({call})
        log = [record async for record in direct.task(task.task_id).events()]
        assert log[-1].event_type == "task_cancelled"
        assert log[-1].data["reason"] == "the tool call was cancelled"
        assert (await client.call_tool("agents", {})).is_error is False


async def test_a_client_that_goes_cancels_what_it_waited_for(url):
    """Nobody could be told the result."""
    started = asyncio.Event()

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        started.set()

    async with Client(url) as direct:
        async with connected("--url", url) as client:
            call = asyncio.create_task(
                client.call_tool(
                    "run", {"text": "Wait", "agent": "endless"}, progress_callback=on_progress
                )
            )
            await started.wait()
            [task] = (await direct.list()).tasks
        await asyncio.wait({call})
        assert isinstance(call.exception(), MCPError)
        log = [record async for record in direct.task(task.task_id).events()]
        assert log[-1].event_type == "task_cancelled"


@ERAS
async def test_questions_are_put_to_the_user_as_forms(url, mode):
    """One after the other; after an answer that is none, the form comes again and says why."""
    forms: list[mcp_types.ElicitRequestFormParams] = []
    answers: list[Any] = [True, "many", 3]

    def on_form(params: mcp_types.ElicitRequestFormParams) -> mcp_types.ElicitResult:
        forms.append(params)
        return accept(answer=answers[len(forms) - 1])

    async with connected("--url", url, mode=mode, on_form=on_form) as client:
        result = await client.call_tool("run", {"text": "Ask", "agent": "careful"})
        assert text_of(result) == "done 3 times"
    first, second, again = forms
    assert first.message == "step_001 asks: Shall I?"
    assert first.requested_schema == {
        "type": "object",
        "properties": {"answer": {"type": "boolean"}},
        "required": ["answer"],
    }
    assert second.requested_schema["properties"]["answer"]["type"] == "integer"
    assert 'found "many"' in again.message
    assert again.message.endswith("step_001 asks: How many?")


@ERAS
async def test_a_form_may_be_declined(url, mode):
    """The agent is told."""
    decline = mcp_types.ElicitResult(action="decline")
    async with connected("--url", url, mode=mode, on_form=lambda _: decline) as client:
        result = await client.call_tool("run", {"text": "Ask", "agent": "careful"})
        assert result.is_error
        assert "InputDeclined: anonymous declined to answer: Shall I?" in text_of(result)


@ERAS
async def test_a_question_that_is_left_open_is_told(url, mode):
    """The form is closed without an answer: the task waits, and the model may come back."""
    dismiss = mcp_types.ElicitResult(action="cancel")
    async with connected("--url", url, mode=mode, on_form=lambda _: dismiss) as client:
        result = await client.call_tool("run", {"text": "Ask", "agent": "careful"})
        assert result.structured_content["status"] == "input_required"
        input_id = result.structured_content["input_id"]
        arguments = {"question": input_id, "answer": False}
        assert text_of(await client.call_tool("respond", arguments)) == "not done"


@ERAS
async def test_without_forms_the_result_tells_the_question_and_how_to_answer(url, mode):
    """The tool respond answers and follows the task to the next question, and to its end."""
    async with connected("--url", url, mode=mode) as client:
        result = await client.call_tool("run", {"text": "Ask", "agent": "careful"})
        assert not result.is_error
        facts = result.structured_content
        assert f"Task {facts['task_id']} waits for an answer. step_001 asks: Shall I?" in text_of(
            result
        )
        assert f"the tool respond, question {facts['input_id']}" in text_of(result)
        refused = await client.call_tool(
            "respond", {"question": facts["task_id"], "answer": "perhaps"}
        )
        assert refused.is_error
        result = await client.call_tool("respond", {"question": facts["task_id"], "answer": "yes"})
        assert "asks: How many?" in text_of(result)
        arguments = {"question": result.structured_content["input_id"], "answer": 2}
        assert text_of(await client.call_tool("respond", arguments)) == "done 2 times"


async def test_a_server_of_its_own_serves_where_there_is_none(tmp_path, monkeypatch):
    """With the built-in agents; what it prints does not disturb the protocol."""
    (tmp_path / "tea.md").write_text("# Tea\n\nTea is made of leaves and hot water.\n")
    require_default_port()
    monkeypatch.delenv("AGENTSRV_URL", raising=False)
    monkeypatch.chdir(tmp_path)
    async with connected("--knowledge", str(tmp_path)) as client:
        result = await client.call_tool("run", {"text": "What is tea made of?"})
        assert "leaves and hot water" in text_of(result)


HALVES = [
    {"name": "run", "arguments": {"text": "a\ud83d"}},
    {"name": "run", "arguments": {"text": "a", "params": {"name": ["\udc00"]}}},
    {"name": "run", "arguments": {"text": "a", "params": {"\ud83d": 1}}},
    {"name": "respond", "arguments": {"question": "0123456789abcdef/a/1", "answer": "\ud83d"}},
    {"name": "status", "arguments": {"task": "\ud83d"}},
    {"name": "cancel", "arguments": {"task": "0123456789abcdef", "reason": "\ud83dx"}},
]


async def test_a_call_with_half_a_surrogate_pair_is_answered(url):
    """By an error that says what is wrong; the next call is carried out."""
    initialize = {
        "protocolVersion": "2025-06-18",
        "capabilities": {},
        "clientInfo": {"name": "t", "version": "0"},
    }
    emoji = {
        "name": "run",
        "arguments": {"text": "a", "agent": "greeter", "params": {"name": "😀 \\ud83d"}},
    }
    lines = [message(1, "initialize", initialize), message(None, "notifications/initialized")]
    lines += [
        message(number, "tools/call", call) for number, call in enumerate([*HALVES, emoji], 2)
    ]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "agentsrv", "mcp", "--url", url,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("".join(lines).encode())
    answers: dict[int, Any] = {}
    async with asyncio.timeout(60):
        while len(answers) < len(HALVES) + 2:
            answer = json.loads(await process.stdout.readline())
            if "id" in answer:
                answers[answer["id"]] = answer["result"]
    process.stdin.close()
    await process.communicate()
    for number in range(2, 2 + len(HALVES)):
        assert answers[number]["isError"]
        assert "half of a surrogate pair" in answers[number]["content"][0]["text"]
    assert answers[2 + len(HALVES)]["content"][0]["text"] == "Hello 😀 \\ud83d"


UNREADABLE = {
    "no JSON": (b"{", -32700, None),
    "no UTF-8": (b'{"jsonrpc": "2.0", "id": 7, "method": "\xff"}', -32700, None),
    "too deep": (b"[" * 100_000, -32700, None),
    "too large a number": (b'{"jsonrpc": "2.0", "id": %s, "method": "ping"}' % (b"9" * 6000), -32700, None),
    "too long": (b" " * (16 << 20) + b"1", -32700, None),
    "no object": (b"[1]", -32600, None),
    "no version": (b'{"id": 7, "method": "ping"}', -32600, 7),
    "a method that is no text": (b'{"jsonrpc": "2.0", "id": "a", "method": 7}', -32600, "a"),
    "an id that is none": (b'{"id": [1], "method": "ping"}', -32600, None),
    "a response that is none": (b'{"jsonrpc": "2.0", "id": 1, "result": 5}', -32600, None),
}  # fmt: skip


async def test_a_line_that_is_no_message_is_answered(url):
    """By the error that JSON-RPC has for it, and empty lines by nothing; the next call works."""
    initialize = {
        "protocolVersion": "2025-06-18",
        "capabilities": {},
        "clientInfo": {"name": "t", "version": "0"},
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "agentsrv", "mcp", "--url", url,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None

    async def answer() -> Any:
        assert process.stdout is not None
        return json.loads(await process.stdout.readline())

    async with asyncio.timeout(60):
        process.stdin.write(message(1, "initialize", initialize).encode())
        assert "result" in await answer()
        process.stdin.write(message(None, "notifications/initialized").encode())
        for name, (line, code, number) in UNREADABLE.items():
            process.stdin.write(b"\n \r\n" + line + b"\n")
            found = await answer()
            assert (found["id"], found["error"]["code"]) == (number, code), name
        process.stdin.write(message(2, "ping").encode())
        assert (await answer())["id"] == 2
    process.stdin.close()
    await process.communicate()


@pytest.mark.parametrize("signal", ["\x03", 15, 1], ids=["Ctrl-C", "SIGTERM", "SIGHUP"])
async def test_a_signal_ends_it_as_the_end_of_stdin_does(url, signal):
    """Though it waits for a line; the task of a call is cancelled first."""
    initialize = {
        "protocolVersion": "2025-06-18",
        "capabilities": {},
        "clientInfo": {"name": "test", "version": "0"},
    }
    call = {"name": "run", "arguments": {"text": "Wait", "agent": "endless"}}

    def talk() -> int:
        with in_terminal("mcp", "--url", url, columns=2000) as terminal:
            terminal.type(message(1, "initialize", initialize))
            terminal.wait_for('"serverInfo"')
            terminal.type(message(None, "notifications/initialized"))
            terminal.type(message(2, "tools/call", call))
            with SyncClient(url) as direct:
                while not direct.list(status="running").tasks:
                    time.sleep(0.01)
            if isinstance(signal, str):
                terminal.type(signal)
            else:
                terminal.process.kill(signal)
            return terminal.end()

    assert await asyncio.to_thread(talk) == 0
    async with Client(url) as direct:
        [task] = (await direct.list()).tasks
        log = [record async for record in direct.task(task.task_id).events()]
    assert log[-1].event_type == "task_cancelled"


def message(number: int | None, method: str, params: Any = None) -> str:
    """A line of JSON-RPC."""
    fields = {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
    given = {name: value for name, value in fields.items() if value is not None}
    return json.dumps(given) + "\n"
