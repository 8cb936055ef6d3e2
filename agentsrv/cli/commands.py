"""The commands, their options and help.

A function here, or in ``tools``, declares a command: name, options and help. Its body imports the
module that carries the command out. So ``--help`` and completion import only Typer and the modules
that every command needs. To add a command, add such a function, its line in `COMMANDS`, and a line
in ``tests/integration/test_imports.py`` with the packages that it must not import.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Annotated, Any, Final

import typer

from agentsrv.cli import keys, streams, tools, uncaught
from agentsrv.cli.exits import leave, leave_by_fault, use_json
from agentsrv.cli.lazy_group import Declared, LazyGroup
from agentsrv.cli.parameters import (
    DEFAULT_URL,
    Ca,
    Json,
    Knowledge,
    ReachedUrl,
    TakesSettings,
    Task,
    Token,
    Url,
)
from agentsrv.errors import AgentsrvError, ConfigurationError, missing_extra

COMPLETION: Final = "_AGENTSRV_COMPLETE"  # variable with which a shell asks for completions


def main() -> None:
    """Run the command line; an error is printed as one sentence, or as JSON with ``--json``."""
    use_json(wanted=False)
    if COMPLETION in os.environ:
        # For zsh and fish Typer would import Rich to remove markup from the help texts. They have
        # none, and what Rich takes for it ([default: 8765]) would be missing.
        sys.modules["rich"] = None  # type: ignore[assignment]  # its import fails
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


def demo() -> None:
    """Start a server, run one task over a few texts, show its events and report, and stop."""
    from agentsrv.cli import demo

    raise typer.Exit(demo.main())


@TakesSettings
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
    from agentsrv.cli.options import described_complaints
    from agentsrv.settings import read_settings

    streams.release()
    settings = read_settings(**given)
    if reload:
        from agentsrv.cli import reloading

        rest = [argument for argument in sys.argv[1:] if argument != "--reload"]
        raise typer.Exit(reloading.serve_reloading(rest))
    if settings.processes > 1:
        from agentsrv.cli import processes

        raise typer.Exit(processes.serve(target, settings, described_complaints()))
    from agentsrv.cli import serving

    raise typer.Exit(serving.serve(target, settings, described_complaints()))


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
    from agentsrv.cli import running
    from agentsrv.cli.signals import run_until_signal

    params = running.parse_params(param or [])
    text = streams.read_stdin() if text == "-" else streams.typed(text, "TEXT")
    job = running.Job(text, agent, params, json, timeout)
    raise typer.Exit(run_until_signal(running.run(job, url, token, ca, knowledge)))


def tail(
    task: Task,
    *,
    after: Annotated[
        int, typer.Option("--after", min=0, help="Number of the last event seen.")
    ] = 0,
    json: Json = False,
    url: Url = DEFAULT_URL,
    token: Token = None,
    ca: Ca = None,
) -> None:
    """Follow a task's events until it ends; exit as the task did. On a terminal as `run` does."""
    from agentsrv.cli import following
    from agentsrv.cli.signals import run_until_signal

    raise typer.Exit(run_until_signal(following.tail(task, after, json, url, token, ca)))


def status(
    task: Task,
    json: Json = False,
    url: Url = DEFAULT_URL,
    token: Token = None,
    ca: Ca = None,
) -> None:
    """Tell all about a task."""
    from agentsrv.cli import asking

    asking.status(asking.Server(url, token, ca), task, json=json)


def list_tasks(
    *,
    status: Annotated[str | None, typer.Option("--status", help="Only tasks in it.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Tasks at most.")] = 50,
    json: Annotated[
        bool, typer.Option("--json", callback=use_json, help="Print each task as JSON.")
    ] = False,
    url: Url = DEFAULT_URL,
    token: Token = None,
    ca: Ca = None,
) -> None:
    """List tasks, the newest first."""
    from agentsrv.cli import asking

    asking.list_tasks(asking.Server(url, token, ca), status, limit, json=json)


def cancel(
    task: Task,
    reason: Annotated[str | None, typer.Option("--reason", help="Told in the log.")] = None,
    url: Url = DEFAULT_URL,
    token: Token = None,
    ca: Ca = None,
) -> None:
    """Stop a task."""
    from agentsrv.cli import asking

    asking.cancel(asking.Server(url, token, ca), task, reason)


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
    url: Url = DEFAULT_URL,
    token: Token = None,
    ca: Ca = None,
) -> None:
    """Answer an agent's question."""
    from agentsrv.cli import asking

    asking.respond(asking.Server(url, token, ca), question, answer, decline=decline)


def agents(json: Json = False, url: Url = DEFAULT_URL, token: Token = None, ca: Ca = None) -> None:
    """Tell which agents the server has, and their parameters."""
    from agentsrv.cli import asking

    asking.agents(asking.Server(url, token, ca), json=json)


def top(
    url: Url = DEFAULT_URL,
    token: Token = None,
    ca: Ca = None,
    store: Annotated[
        str | None,
        typer.Option("--store", help="postgresql://…, to watch the nodes that share it, too."),
    ] = None,
) -> None:
    """Watch your tasks on a server; q quits. Without a terminal, tell of them once."""
    from agentsrv.cli.asking import Server
    from agentsrv.cli.live.top import show

    Server(url, token, ca).ask(lambda client: show(client, url, store))


def mcp(
    url: ReachedUrl = None, token: Token = None, ca: Ca = None, knowledge: Knowledge = None
) -> None:
    """Offer run, status, cancel and more as tools of the Model Context Protocol, on stdio."""
    if find_spec("mcp") is None:
        raise ConfigurationError(missing_extra("agentsrv mcp", "mcp"))
    from agentsrv.cli import running
    from agentsrv.cli.mcp.server import serve
    from agentsrv.cli.signals import run_until_signal

    async def offer() -> None:
        async with running.reached(url, token, ca, knowledge) as place:
            await serve(place.client)

    run_until_signal(offer())


COMMANDS: Final[Mapping[str, Declared]] = {
    "demo": demo,
    "serve": serve,
    "run": run,
    "tail": tail,
    "status": status,
    "list": list_tasks,
    "cancel": cancel,
    "respond": respond,
    "agents": agents,
    "top": top,
    "mcp": mcp,
    "index": tools.index,
    "backup": tools.backup,
    "doctor": tools.doctor,
    "nodes": tools.nodes,
    "schema": tools.schema,
    "bench": tools.bench,
    "keys": keys.app,
}


class _Commands(LazyGroup):
    declared = COMMANDS


app = typer.Typer(
    cls=_Commands,
    name="agentsrv",
    help="Serve agents over one WebSocket, and run tasks on them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _common(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        from agentsrv.version import __version__

        print(f"agentsrv {__version__}")
        raise typer.Exit
