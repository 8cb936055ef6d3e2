"""The options of ``agentsrv serve``: one for each field of ``Settings``, made from it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from inspect import Parameter
from pathlib import Path
from typing import Annotated, Any, Final, get_args, get_origin

import typer
from pydantic import ValidationError
from pydantic_settings import SettingsError

from agentsrv.cli.exits import say
from agentsrv.errors import ConfigurationError
from agentsrv.settings import Settings, complaints, is_optional

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
_TYPES: Final = (bool, int, float, Path)  # the rest is text; pydantic reads it


def takes_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Give ``command`` an option for each setting; those given arrive as keyword arguments."""
    own = [
        parameter
        for parameter in inspect.signature(command, eval_str=True).parameters.values()
        if parameter.kind is not Parameter.VAR_KEYWORD
    ]
    options = [_option(name) for name in Settings.model_fields]

    @wraps(command)
    def with_options(**values: Any) -> None:
        names = Settings.model_fields
        left_out = [name for name in names if values[name] is None]
        command(**{name: value for name, value in values.items() if name not in left_out})

    setattr(with_options, "__signature__", inspect.Signature([*own, *options]))  # noqa: B010
    return with_options


def make_settings(**given: Any) -> Settings:
    """Read the settings; print what in the surroundings has no effect on stderr.

    Raises:
        ConfigurationError: As ``read_settings``.
    """
    settings = read_settings(**given)
    for complaint in described_complaints():
        say(complaint)
    return settings


def described_complaints() -> list[str]:
    """Sentences about unknown names and missing files, for stderr or the log."""
    return [f"{complaint.what}; {complaint.advice}" for complaint in complaints()]


def read_settings(**given: Any) -> Settings:
    """The settings of the command line, the environment, ``.env`` and ``agentsrv.toml``.

    Raises:
        ConfigurationError: One of them has a value that cannot be, or a file cannot be read.
    """
    try:
        return Settings(**given)
    except ValidationError as error:
        told = [
            f"{'.'.join(map(str, complaint['loc']))} is {complaint['input']!r}: {complaint['msg']}"
            for complaint in error.errors(include_url=False)
        ]
        raise ConfigurationError("; ".join(told)) from None
    except SettingsError as error:
        raise ConfigurationError(str(error)) from None


def _option(name: str) -> Parameter:
    field = Settings.model_fields[name]
    text = (field.description or "").replace("``", "'")
    parts = [field.annotation, *get_args(field.annotation)]  # of Path | None, for example
    bare = [get_args(part)[0] if get_origin(part) is Annotated else part for part in parts]
    # What can be switched off is read as text: ``none`` is no number.
    kind = str if is_optional(name) else next((part for part in bare if part in _TYPES), str)
    # Shown as text: to typer the default is "not given", so that the other sources count.
    default = ",".join(field.default) if isinstance(field.default, tuple) else field.default
    shown = f"  [default: {default}]" if default not in (None, False, "") else ""
    info = typer.Option(f"--{name.replace('_', '-')}", help=text + shown)
    annotation = Annotated[kind | None, info]  # type: ignore[valid-type]
    return Parameter(name, Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
