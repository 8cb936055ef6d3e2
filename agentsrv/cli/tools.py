"""The commands that need no server: read texts, look after things, print, measure."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from agentsrv.cli.exits import use_json
from agentsrv.cli.parameters import TakesSettings, Token
from agentsrv.cli.streams import as_json
from agentsrv.error_text import redact_url
from agentsrv.errors import ConfigurationError


def index(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", exists=True, file_okay=False, help="The texts.")
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="The index; by default where `serve` looks for it."),
    ] = None,
) -> None:
    """Read a folder into the knowledge base's index, or bring it up to date.

    With the setting embedding_model its passages are given vectors, too.
    """
    from agentsrv.cli import indexing

    indexing.run(folder, out)


@TakesSettings
def doctor(**given: Any) -> None:
    """Check configuration and environment; exit with 1 where the server would fail."""
    from agentsrv.cli import doctor
    from agentsrv.cli.signals import run_until_signal

    raise typer.Exit(run_until_signal(doctor.run(given)))


def backup(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="The copy; there must be no such file yet.")
    ],
    store: Annotated[
        str | None, typer.Option("--store", help="By default the one that the server is set to.")
    ] = None,
) -> None:
    """Copy the SQLite store as it is at this moment, also while a server runs; and check the copy.

    To restore it, stop the server, remove the store with its -wal and -shm, and put the copy there.
    """
    from agentsrv.cli.options import make_settings
    from agentsrv.resources import store_file
    from agentsrv.store.sqlite.backup import back_up

    settings = make_settings(**({"store": store} if store is not None else {}))
    source = store_file(settings)
    if source is None:
        raise ConfigurationError(
            f"store is {redact_url(settings.store)!r}; expected sqlite:///FILE"
        )
    found = back_up(source, file)
    megabytes = file.stat().st_size / 1e6
    print(f"{file}: {megabytes:,.1f} MB, tasks: {found.tasks}, unfinished: {found.unfinished}")


def nodes(
    store: Annotated[
        str | None,
        typer.Option("--store", help="postgresql://…; by default the setting of that name."),
    ] = None,
    *,
    json: Annotated[
        bool, typer.Option("--json", callback=use_json, help="Print each as a line of JSON.")
    ] = False,
) -> None:
    """List the servers that share a store: lease, tasks that they run, delay of their loops."""
    from agentsrv.cli import nodes
    from agentsrv.cli.options import make_settings
    from agentsrv.cli.signals import run_until_signal

    settings = make_settings(**({} if store is None else {"store": store}))
    run_until_signal(nodes.run(settings.store, json=json))


def schema(
    *,
    typescript: Annotated[
        bool, typer.Option("--typescript", help="Declarations for TypeScript instead.")
    ] = False,
) -> None:
    """Print the protocol's schema, an AsyncAPI 3 document."""
    from agentsrv.protocol.schema import document
    from agentsrv.protocol.typescript import declarations
    from agentsrv.version import __version__

    if typescript:
        print(declarations(document(__version__)), end="")
        return
    print(as_json(document(__version__), indent=True))


def bench(
    probes: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PROBE]...", help="What to measure; by default everything."),
    ] = None,
    *,
    store: Annotated[
        str | None,
        typer.Option(
            "--store", help="sqlite:///FILE that does not exist yet, memory:, or postgresql://…"
        ),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option("--url", help="A server that serves agentsrv.bench.app, in place of its own."),
    ] = None,
    token: Token = None,
    loop: Annotated[
        str, typer.Option("--loop", help="The server's event loop: asyncio, uvloop or auto.")
    ] = "auto",
    quick: Annotated[bool, typer.Option("--quick", help="Less of all: half a minute.")] = False,
    connections: Annotated[
        int | None, typer.Option("--connections", min=1, help="Idle connections at most.")
    ] = None,
    stored: Annotated[
        int | None, typer.Option("--stored", min=0, help="Events stored before, at most.")
    ] = None,
    json: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the figures there too.")
    ] = None,
) -> None:
    """Measure what a server costs on this machine.

    It starts servers of its own with a store in a scratch folder, or in a schema of its own in
    PostgreSQL, which is removed. Without --quick it takes some minutes.
    """
    from agentsrv.bench import suite
    from agentsrv.bench.figures import Report
    from agentsrv.bench.sizes import FULL, QUICK, Bench, limited
    from agentsrv.bench.target import LocalServer, RemoteServer
    from agentsrv.cli.live.progress import progress
    from agentsrv.cli.options import make_settings
    from agentsrv.cli.signals import run_until_signal

    if url is not None and store is not None:
        raise ConfigurationError("--url and --store: expected one of them")
    sizes = limited(QUICK if quick else FULL, connections=connections, stored=stored)
    report = Report(lambda line: print(line, flush=True))
    place = (
        LocalServer(store, make_settings(loop=loop).loop)
        if url is None
        else RemoteServer(url, token)
    )
    try:
        with progress() as on_progress:
            run_until_signal(suite.measure(Bench(place, sizes, report), probes or (), on_progress))
    finally:
        if isinstance(place, LocalServer):
            place.close()
    if json is not None:
        suite.write(report, json)
