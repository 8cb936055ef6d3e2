"""App: where an author registers agents and planners, and which serves them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, TypeVar, Unpack, overload

from agentsrv.agents.agent import Agent, AgentFunction, AgentOptions, Planner
from agentsrv.agents.registry import Registry
from agentsrv.errors import ConfigurationError
from agentsrv.settings import Settings
from agentsrv.wiring import Server, serving

if TYPE_CHECKING:
    from agentsrv.builtin.planner import BuiltinPlanner

F = TypeVar("F", bound=AgentFunction)
P = TypeVar("P", bound=Planner)


class App:
    """An application: its agents, its planner, and how to serve them.

    ``App()`` has the built-in agents (retriever, analyzer, writer, validator, optimizer) and
    the planner that uses them; ``App(builtin=False)`` has none.
    """

    def __init__(self, *, builtin: bool = True) -> None:
        self.registry = Registry()
        self._builtin_planner: BuiltinPlanner | None = None
        if builtin:
            from agentsrv.builtin.registration import add_builtin  # noqa: PLC0415 - not all need them

            self._builtin_planner = add_builtin(self.registry)

    @overload
    def agent(self, function: F, /) -> F: ...

    @overload
    def agent(
        self, name: str | None = None, /, **options: Unpack[AgentOptions]
    ) -> Callable[[F], F]: ...

    def agent(
        self, function: F | str | None = None, /, **options: Unpack[AgentOptions]
    ) -> F | Callable[[F], F]:
        """Register an agent; the function is returned unchanged.

        Used as ``@app.agent``, ``@app.agent("name")`` or ``@app.agent(name="name", retries=0)``.

        Args:
            function: An async function or generator, also a bound method, a partial or an object
                that can be called; or the agent's name.
            options: See ``AgentOptions``.

        Raises:
            ConfigurationError: The function, a parameter or an option cannot be taken; the message
                names the agent and which.
        """
        if isinstance(function, str):
            if "name" in options:
                raise ConfigurationError(
                    f"agent {function!r} is also given name={options['name']!r}; expected one name"
                )
            options["name"] = function
            function = None
        if function is not None and options:
            self.registry.add(Agent.of(function, **options))
            return function

        def register(run: F) -> F:
            self.registry.add(Agent.of(run, **options))
            return run

        return register if function is None else register(function)

    def planner(self, function: P) -> P:
        """Let ``function`` plan each task that brings no plan; it is returned unchanged.

        Raises:
            ConfigurationError: The function cannot be taken.
        """
        self.registry.planner = function
        return function

    def running(self, settings: Settings | None = None) -> AbstractAsyncContextManager[Server]:
        """Serve within the ``async with`` block; on leaving it, drain and close.

        Raises:
            ConfigurationError: On entering: the store, the knowledge folder or the models cannot
                be used, the agents' descriptions are too large, or the settings would let
                unauthenticated clients in from outside.
            OSError: On entering: the address cannot be listened on.
        """
        settings = Settings() if settings is None else settings
        if self._builtin_planner is not None:
            self._builtin_planner.default = settings.default_plan
        return serving(settings, self.registry)
