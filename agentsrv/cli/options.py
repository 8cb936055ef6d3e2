"""The options of ``agentsrv serve``: one for each field of ``Settings``, made from it."""

from __future__ import annotations

from inspect import Parameter
from pathlib import Path
from typing import Annotated, Any, Final, get_args, get_origin

import typer

from agentsrv.cli.exits import say
from agentsrv.settings import Settings, is_optional, read_settings, settings_problems

_TYPES: Final = (bool, int, float, Path)  # the rest is text; pydantic reads it


def options() -> list[Parameter]:
    """An optional keyword parameter for each setting, as Typer reads it."""
    return [_option(name) for name in Settings.model_fields]


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
    return [f"{problem.description}; {problem.advice}" for problem in settings_problems()]


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
