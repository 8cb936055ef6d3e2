"""A group of commands that are built when they are called.

Theory of operation. Typer builds all commands of a group, with their options, before it looks at
the command line. For `agentsrv serve` and `doctor` this imports the settings; for all commands it
takes some milliseconds. `LazyGroup` registers a placeholder for each command instead, with its name
and its help, which is all that ``--help`` and the completion of names show. Typer calls
`resolve_command` with the rest of the command line; there the placeholder of the named command is
replaced by the built command.

Typer converts the values of parameters with pydantic, which it then imports, also for options that
are not given. Two cases need no conversion: the group's own options are flags, and a completion
(``resilient_parsing``) only looks at which options the line has. There the values are kept as they
are. This uses a private attribute of Typer's parameters. In a version of Typer without it the
values are converted, and completion takes longer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

Declared = Callable[..., None] | typer.Typer
"""A function with Typer's annotations, or a group of several."""


class LazyGroup(TyperGroup):
    """A group of the commands ``declared``, by their names."""

    declared: ClassVar[Mapping[str, Declared]] = {}

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        for name, declared in self.declared.items():
            text = declared.info.help if isinstance(declared, typer.Typer) else declared.__doc__
            self.add_command(TyperCommand(name, help=text))

    def get_params(self, ctx: Any) -> Any:
        """The group's own options."""
        return _unconverted(super().get_params(ctx))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The name, the command, built now, and its arguments."""
        name, placeholder, rest = super().resolve_command(ctx, args)
        if placeholder is None:
            return name, None, rest
        return name, _built(self.declared[placeholder.name or ""]), rest


class _Command(TyperCommand):
    def get_params(self, ctx: Any) -> Any:
        params = super().get_params(ctx)
        return _unconverted(params) if ctx.resilient_parsing else params


def _built(declared: Declared) -> Any:
    if isinstance(declared, typer.Typer):
        return get_command(declared)
    single = typer.Typer(add_completion=False, rich_markup_mode=None)
    single.command(cls=_Command)(declared)
    return get_command(single)


def _unconverted(params: list[Any]) -> list[Any]:
    for parameter in params:
        setattr(parameter, "_runtime_param", _Unconverted)  # noqa: B010 - unknown to type checkers
    return params


class _Unconverted:
    @staticmethod
    def coerce(value: Any, **_: Any) -> Any:
        return value
