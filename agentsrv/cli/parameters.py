"""The arguments and options that several commands share.

The declarations of the commands use them, also for ``--help`` and completion; so this module
imports no package but Typer.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import update_wrapper
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from agentsrv.cli.exits import use_json

DEFAULT_URL: Final = "ws://127.0.0.1:8765"

Url = Annotated[str, typer.Option("--url", envvar="AGENTSRV_URL", help="Where the server is.")]
ReachedUrl = Annotated[
    str | None,
    typer.Option(
        "--url",
        envvar="AGENTSRV_URL",
        help=f"Where the server is. Without it: {DEFAULT_URL}, or this process.",
        show_default=False,
    ),
]
Token = Annotated[
    str | None,
    typer.Option(
        "--token",
        envvar="AGENTSRV_TOKEN",
        help="API key or JSON Web Token; better as the variable, which others cannot see.",
    ),
]
Ca = Annotated[
    Path | None,
    typer.Option(
        "--ca",
        metavar="FILE",
        envvar="AGENTSRV_CA",
        help="PEM file of the CAs to trust for wss://, in place of the system's.",
    ),
]
Knowledge = Annotated[
    Path | None,
    typer.Option("--knowledge", help="Folder of texts, where this process serves itself."),
]
Json = Annotated[bool, typer.Option("--json", callback=use_json, help="Print JSON.")]
Task = Annotated[str, typer.Argument(help="The task's id, or the beginning of it.")]


class TakesSettings:
    """Decorator: gives a command an option for each setting.

    The options that are given arrive as keyword arguments. The settings are imported when the
    signature is read, which is when the command is built.
    """

    def __init__(self, command: Callable[..., None]) -> None:
        update_wrapper(self, command)
        self._command = command
        self._own = {
            name: parameter
            for name, parameter in signature(command, eval_str=True).parameters.items()
            if parameter.kind is not Parameter.VAR_KEYWORD
        }

    def __call__(self, **values: Any) -> None:
        """Call the command with its own values, and with the settings that were given."""
        given = {name: value for name, value in values.items() if value is not None}
        self._command(**{name: values[name] for name in self._own} | given)

    @property
    def __signature__(self) -> Signature:
        from agentsrv.cli.options import options

        return Signature([*self._own.values(), *options()])
