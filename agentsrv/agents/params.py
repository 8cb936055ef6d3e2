"""Parameters: what a function takes out of a task's ``params``, and what it refuses."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic_core import ErrorDetails

from agentsrv.errors import ConfigurationError

GIVEN = 2  # parameters that the server fills: (step, ctx) of an agent, (text, ctx) of a planner


@dataclass(frozen=True, slots=True)
class Parameters:
    """The named parameters behind the first two of an author's function, as pydantic reads them."""

    model: type[BaseModel]
    names: tuple[str, ...]

    @classmethod
    def of(cls, run: Callable[..., Any], label: str, names: Mapping[str, Any]) -> Parameters:
        """Take the parameters of ``run``.

        Args:
            run: The author's function.
            label: What to call it in an error, such as ``agent 'writer'``.
            names: What its annotations may use without having imported it.

        Raises:
            ConfigurationError: It has fewer than two parameters, or unnamed ones behind them.
        """
        parameters = list(inspect.signature(run).parameters.values())
        if len(parameters) < GIVEN:
            raise ConfigurationError(
                f"{label} takes {len(parameters)} parameters; expected (step, ctx, ...) of an "
                "agent, (task_description, ctx, ...) of a planner"
            )
        own: dict[str, Any] = {}
        hints = get_type_hints(run, include_extras=True, localns=dict(names))
        for parameter in parameters[GIVEN:]:
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                raise ConfigurationError(
                    f"{label} takes *{parameter.name}; expected named parameters, "
                    "which are published and validated"
                )
            default = ... if parameter.default is parameter.empty else parameter.default
            own[parameter.name] = (hints.get(parameter.name, Any), Field(default=default))
        config = ConfigDict(extra="forbid")
        model = create_model(f"{run.__name__}_params", __config__=config, **own)
        return cls(model, tuple(own))

    def arguments(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The keyword arguments that the function takes out of a task's ``params``.

        Raises:
            ValidationError: A value is wrong, or one without a default is missing.
        """
        if not self.names:
            return {}
        given = {name: params[name] for name in self.names if name in params}
        valid = self.model.model_validate(given)
        return {name: getattr(valid, name) for name in self.names}

    def complaints(self, params: Mapping[str, Any]) -> list[ErrorDetails]:
        """What is wrong with ``params`` for the function; empty where nothing is."""
        try:
            self.arguments(params)
        except ValidationError as error:
            return error.errors(include_url=False)
        return []
