"""``agentsrv keys``: make API keys, tell which there are, revoke them."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Annotated

import typer

from agentsrv.cli.exits import say
from agentsrv.cli.streams import as_json
from agentsrv.errors import ConfigurationError, NotFoundError

app = typer.Typer(
    help="Make, list and revoke API keys.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)

File = Annotated[
    Path | None,
    typer.Option("--key-file", help="The file; by default the one that the server is set to."),
]


@app.command()
def create(
    principal: Annotated[str, typer.Argument(help="Whose key it is: the owner of the tasks.")],
    key_file: File = None,
) -> None:
    """Make a key and print it, once; the file has only its hash.

    A server that runs takes it at once.
    """
    from agentsrv.server.auth.keys import add_key, make_key, read_keys

    file = _file(key_file)
    taken = read_keys(file)
    text, key = make_key(principal, _today())
    while key.key_id in taken:
        text, key = make_key(principal, _today())
    add_key(file, key)
    say(f"key {key.key_id} of {principal} is in {file}; it is shown only now")
    print(text)


@app.command("list")
def list_keys(
    key_file: File = None,
    json: Annotated[bool, typer.Option("--json", help="Print each key as JSON.")] = False,
) -> None:
    """Tell which keys there are; not the keys themselves, which nobody knows."""
    from agentsrv.server.auth.keys import read_keys

    for key in read_keys(_file(key_file)).values():
        if json:
            fields = {name: value for name, value in key._asdict().items() if name != "digest"}
            print(as_json(fields))
        else:
            end = f", revoked {key.revoked}" if key.revoked is not None else ""
            print(f"{key.key_id}  {key.principal}  created {key.created}{end}")


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(help="The key's id, as list tells it.")],
    key_file: File = None,
) -> None:
    """Let a key count no more; connections that came in by it are closed within seconds."""
    from agentsrv.server.auth.keys import read_keys, revoke_key

    file = _file(key_file)
    key = read_keys(file).get(key_id)
    if key is None:
        raise NotFoundError(f"{file} has no key {key_id!r}; agentsrv keys list tells them")
    if key.revoked is None:
        revoke_key(file, key_id, _today())
    print(f"key {key_id} of {key.principal} is revoked")


def _file(given: Path | None) -> Path:
    if given is not None:
        return given
    from agentsrv.cli.options import make_settings

    file = make_settings().key_file
    if file is None:
        raise ConfigurationError("there is no key file; expected --key-file, or the setting")
    return file


def _today() -> dt.date:
    return dt.datetime.now(dt.UTC).date()
