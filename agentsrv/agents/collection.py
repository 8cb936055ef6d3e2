"""Agents: the agents that a module defines, for an application to include.

`App` is such a collection itself: the decorators below are its decorators.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar, Unpack, overload

from agentsrv.agents.agent import Agent, AgentFunction, AgentOptions, Planner
from agentsrv.agents.registry import Registry
from agentsrv.errors import ConfigurationError

if TYPE_CHECKING:
    from agentsrv.agents.lifespan import Lifespan

F = TypeVar("F", bound=AgentFunction)
P = TypeVar("P", bound=Planner)


class Agents:
    """A collection of agents, and of a planner for them if it has one.

    A module defines its agents on a collection of its own; ``app.include(agents)`` adds them to an
    application. So the module does not import the application, and several applications may
    include it.
    """

    lifespan: Lifespan[Any] | None = None
    """Only an `App` has one."""

    def __init__(self) -> None:
        self.registry = Registry()

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
            ConfigurationError: The function, a parameter or an option is invalid; the message
                names the agent and what was found and expected.
        """
        if isinstance(function, str):
            if "name" in options:
                raise ConfigurationError(
                    f"agent {function!r} is also given name={options['name']!r}; expected one name"
                )
            options["name"] = function

        def register(run: F) -> F:
            self.registry.add(Agent.of(run, **options))
            return run

        return register if function is None or isinstance(function, str) else register(function)

    def planner(self, function: P) -> P:
        """Let ``function`` plan each task that is created without a plan; it is returned unchanged.

        Raises:
            ConfigurationError: There is a planner already, or the function cannot be one.
        """
        self.registry.planner = function
        return function

    def include(self, agents: Agents, *, only: Iterable[str] | None = None) -> None:
        """Add the agents that ``agents`` has now, and its planner if it has one.

        If it raises, nothing is added. An agent that is included twice, through two collections,
        is added once.

        Args:
            agents: The collection.
            only: Names of the agents to add, without the others and without the planner.

        Raises:
            ConfigurationError: A name is taken by another agent, both sides have a planner,
                ``only`` has an unknown name, or ``agents`` is an application with a lifespan.
        """
        if not isinstance(agents, Agents):
            raise ConfigurationError(f"found include({agents!r}); expected Agents()")
        if agents.lifespan is not None:
            raise ConfigurationError(
                "found include() of an application with a lifespan, which would never be entered; "
                "expected Agents()"
            )
        if isinstance(only, str):
            raise ConfigurationError(f"found only={only!r}; expected a list of names: [{only!r}]")
        self.registry.include(agents.registry, None if only is None else tuple(only))
