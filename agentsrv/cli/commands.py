"""The commands, their options and help."""

from __future__ import annotations

import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from agentsrv.cli import following, keys, reloading, running, serving, streams, tools, uncaught
from agentsrv.cli.exits import leave, leave_by_fault, say, use_json
from agentsrv.cli.options import (
    Ca,
    Token,
    described_complaints,
    read_settings,
    takes_settings,
)
from agentsrv.cli.prompt import find_question
from agentsrv.cli.render import parse_status, shorten, status_word
from agentsrv.cli.signals import run_until_signal
from agentsrv.client import Client, Options
from agentsrv.errors import AgentsrvError, ConfigurationError, InvalidCommand, missing_extra
from agentsrv.models.commands import MAX_LIST
from agentsrv.protocol.replies import TaskRow
from agentsrv.protocol.shell import read_answer
from agentsrv.version import __version__

app = typer.Typer(
    name="agentsrv",
    help="Serve agents over one WebSocket, and run tasks on them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.add_typer(keys.app, name="keys")

Url = Annotated[str, typer.Option("--url", envvar="AGENTSRV_URL", help="Where the server is.")]
ReachedUrl = Annotated[
    str | None,
    typer.Option(
        "--url",
        envvar="AGENTSRV_URL",
        help=f"Where the server is. Without it: {running.DEFAULT_URL}, or this process.",
        show_default=False,
    ),
]
Knowledge = Annotated[
    Path | None,
    typer.Option("--knowledge", help="Folder of texts, where this process serves itself."),
]
Json = Annotated[bool, typer.Option("--json", callback=use_json, help="Print JSON.")]
Task = Annotated[str, typer.Argument(help="The task's id, or the beginning of it.")]

_NARROW: Final = 70  # columns, below which a list has no times
_WIDTH: Final = 120  # columns of a list that is not shown on a terminal


def main() -> None:
    """Run the command line; an error is printed as one sentence, or as JSON with ``--json``."""
    use_json(wanted=False)
    try:
        with streams.guarded():
            try:
                with uncaught.printed():
                    app()
            except (AgentsrvError, OSError) as error:
                leave(error)
            except Exception as error:  # noqa: BLE001 - a fault of ours
                leave_by_fault(error)
    except streams.OutputLost as error:
        leave(error)


@app.callback(invoke_without_command=True)
def _common(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print(f"agentsrv {__version__}")
        raise typer.Exit


@app.command()
def demo() -> None:
    """Start a server, run one task over a few texts, show its events and report, and stop."""
    from agentsrv.cli import demo

    raise typer.Exit(demo.main())


@app.command()
@takes_settings
def serve(
    target: Annotated[
        str | None,
        typer.Argument(metavar="MODULE:APP", help="An App of yours; else the built-in agents."),
    ] = None,
    *,
    reload: Annotated[
        bool, typer.Option("--reload", help="Start again when a Python file here changes.")
    ] = False,
    **given: Any,
) -> None:
    """Serve agents until SIGTERM or Ctrl-C.

    Every option is also a variable AGENTSRV_..., a line of .env and a key of agentsrv.toml;
    the command line counts most, then the environment, .env and agentsrv.toml.
    """
    streams.release()
    settings = read_settings(**given)
    if reload:
        rest = [argument for argument in sys.argv[1:] if argument != "--reload"]
        raise typer.Exit(reloading.serve_reloading(rest))
    if settings.processes > 1:
        from agentsrv.cli import processes

        raise typer.Exit(processes.serve(target, settings, described_complaints()))
    raise typer.Exit(serving.serve(target, settings, described_complaints()))


@app.command()
def run(
    text: Annotated[
        str, typer.Argument(metavar="TEXT", help="What is to be done; - reads it from stdin.")
    ],
    *,
    agent: Annotated[
        str | None, typer.Option("--agent", help="The one agent that does it.")
    ] = None,
    param: Annotated[
        list[str] | None,
        typer.Option("--param", metavar="NAME=VALUE", help="For the agents: JSON or a string."),
    ] = None,
    json: Annotated[
        bool,
        typer.Option(
            "--json", callback=use_json, help="Print each event as a line of JSON instead."
        ),
    ] = False,
    timeout: Annotated[
        float | None, typer.Option("--timeout", min=0, help="Seconds, then cancel the task.")
    ] = None,
    url: ReachedUrl = None,
    token: Token = None,
    ca: Ca = None,
    knowledge: Knowledge = None,
) -> None:
    """Run one task: events on stderr, the result on stdout. Ctrl-C cancels it."""
    params = running.parse_params(param or [])
    text = streams.read_stdin() if text == "-" else streams.typed(text, "TEXT")
    job = running.Job(text, agent, params, json, timeout)
    raise typer.Exit(run_until_signal(running.run(job, url, token, ca, knowledge)))


@app.command()
def tail(
    task: Task,
    *,
    after: Annotated[
        int, typer.Option("--after", min=0, help="Number of the last event seen.")
    ] = 0,
    json: Json = False,
    url: Url = running.DEFAULT_URL,
    token: Token = None,
    ca: Ca = None,
) -> None:
    """Follow a task's events until it ends; exit as the task did. On a terminal as `run` does."""
    raise typer.Exit(run_until_signal(following.tail(task, after, json, url, token, ca)))


@app.command()
def status(
    task: Task,
    json: Json = False,
    url: Url = running.DEFAULT_URL,
    token: Token = None,
    ca: Ca = None,
) -> None:
    """Tell all about a task."""

    async def ask() -> None:
        async with Client(url, Options(ca=ca), token=token) as client:
            found = await client.status(await client.resolve(task))
        if json:
            print(streams.as_json(found))
            return
        print(f"task {found['task_id']}: {status_word(found['status'])}")
        print(f"  {shorten(found['user_input'])}")
        print(f"  created {found['created_at']}, updated {found['updated_at']}")
        print(f"  {found['seq']} events{', degraded' if found['degraded'] else ''}")
        for step in found["steps"]:
            attempt = f", attempt {step['attempt']}" if step["attempt"] > 1 else ""
            print(f"  {step['step_id']} {step['agent']}: {status_word(step['status'])}{attempt}")
            if step["error_message"]:
                print(f"    {shorten(step['error_message'])}")
        for asked in found["inputs"]:
            print(f"  {asked['step_id']} asks {asked['input_id']}: {shorten(asked['prompt'])}")
        if found["error_message"]:
            print(f"  {found['error_message']}")
        output = found["final_output"] or found["partial_output"]
        if output:
            print(f"\n{output.rstrip()}")

    run_until_signal(ask())


@app.command("list")
def list_tasks(
    *,
    status: Annotated[str | None, typer.Option("--status", help="Only tasks in it.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Tasks at most.")] = 50,
    json: Annotated[
        bool, typer.Option("--json", callback=use_json, help="Print each task as JSON.")
    ] = False,
    url: Url = running.DEFAULT_URL,
    token: Token = None,
    ca: Ca = None,
) -> None:
    """List tasks, the newest first."""
    wanted = None if status is None else parse_status(status)

    async def ask() -> None:
        left, cursor = limit, None
        async with Client(url, Options(ca=ca), token=token) as client:
            while True:
                page = await client.list(status=wanted, limit=min(left, MAX_LIST), cursor=cursor)
                for row in page["tasks"]:
                    print(streams.as_json(row) if json else _row(row, _columns()))
                left, cursor = left - len(page["tasks"]), page["next_cursor"]
                if not left or cursor is None:
                    break
        if page["total"] > limit:
            say(f"{limit} of {page['total']} tasks; --limit shows more")

    run_until_signal(ask())


@app.command()
def cancel(
    task: Task,
    reason: Annotated[str | None, typer.Option("--reason", help="Told in the log.")] = None,
    url: Url = running.DEFAULT_URL,
    token: Token = None,
    ca: Ca = None,
) -> None:
    """Stop a task."""

    async def ask() -> None:
        async with Client(url, Options(ca=ca), token=token) as client:
            reply = await client.cancel(await client.resolve(task), reason=reason)
        already = " already" if reply["already"] else ""
        print(f"task {reply['task_id']} is {reply['status']}{already}")

    run_until_signal(ask())


@app.command()
def respond(
    question: Annotated[
        str,
        typer.Argument(help="The question's id, or the beginning of the id of a task that asks."),
    ],
    answer: Annotated[
        str | None, typer.Argument(help="yes, no, a text or JSON; not with --decline.")
    ] = None,
    *,
    decline: Annotated[bool, typer.Option("--decline", help="Refuse to answer.")] = False,
    url: Url = running.DEFAULT_URL,
    token: Token = None,
    ca: Ca = None,
) -> None:
    """Answer an agent's question."""
    if (answer is None) is not decline:
        raise InvalidCommand("expected an answer, or --decline")

    async def ask() -> None:
        async with Client(url, Options(ca=ca), token=token) as client:
            asked = await find_question(client, question)
            value = (
                None if answer is None else read_answer(streams.typed(answer, "the answer"), asked)
            )
            reply = await client.respond(asked.input_id, value, decline=decline)
        print(f"question {reply['input_id']} is {'declined' if decline else 'answered'}")

    run_until_signal(ask())


@app.command()
def agents(
    json: Json = False, url: Url = running.DEFAULT_URL, token: Token = None, ca: Ca = None
) -> None:
    """Tell which agents the server has, and their parameters."""

    async def ask() -> None:
        async with Client(url, Options(ca=ca), token=token) as client:
            found = await client.agents()
        if json:
            print(streams.as_json(found))
            return
        for agent in found:
            print(f"{agent['name']}: {agent['description']}")
            required = agent["params"].get("required", [])
            for name, schema in agent["params"].get("properties", {}).items():
                kind = schema.get("type", "any")
                need = "required" if name in required else f"default {schema.get('default')!r}"
                print(f"  --param {name}=…  ({kind}, {need})")

    run_until_signal(ask())


@app.command()
def top(
    url: Url = running.DEFAULT_URL,
    token: Token = None,
    ca: Ca = None,
    store: Annotated[
        str | None,
        typer.Option("--store", help="postgresql://…, to watch the nodes that share it, too."),
    ] = None,
) -> None:
    """Watch your tasks on a server; q quits. Without a terminal, tell of them once."""
    from agentsrv.cli.live.top import show

    async def watch() -> None:
        async with Client(url, Options(ca=ca), token=token) as client:
            await show(client, url, store)

    run_until_signal(watch())


@app.command()
def mcp(
    url: ReachedUrl = None, token: Token = None, ca: Ca = None, knowledge: Knowledge = None
) -> None:
    """Offer run, status, cancel and more as tools of the Model Context Protocol, on stdio."""
    if find_spec("mcp") is None:
        raise ConfigurationError(missing_extra("agentsrv mcp", "mcp"))
    from agentsrv.cli.mcp.server import serve

    async def offer() -> None:
        async with running.reached(url, token, ca, knowledge) as place:
            await serve(place.client)

    run_until_signal(offer())


for _tool in (tools.index, tools.backup, tools.doctor, tools.nodes, tools.schema, tools.bench):
    app.command()(_tool)


def _row(row: TaskRow, columns: int) -> str:
    """A line of a list; in a narrow terminal the text counts more than the time."""
    word = f"{status_word(row['status']):9}"
    if columns < _NARROW:
        return shorten(f"{row['task_id'][:8]}  {word}  {row['user_input']}", columns)
    line = f"{row['task_id']}  {word}  {row['created_at']}  {row['user_input']}"
    return shorten(line, columns)


def _columns() -> int:
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else _WIDTH
