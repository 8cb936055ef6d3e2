"""App: where an author registers agents and planners, and what is built around them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, Unpack, overload

from agentsrv.adapters.ag_ui.endpoint import serve_ag_ui
from agentsrv.agents.agent import Agent, AgentFunction, AgentOptions, Planner, Search
from agentsrv.agents.isolation.process_function import Limits, ProcessPool, refuse_in_worker
from agentsrv.agents.registry import Registry
from agentsrv.delivery.broker import EventBroker
from agentsrv.engine.cluster.follower import CommitFollower
from agentsrv.engine.cluster.remote_commands import RemoteCommands
from agentsrv.engine.commands import CommandHandler
from agentsrv.engine.environment import OutputLimits, TaskEnvironment
from agentsrv.engine.vault import Vault
from agentsrv.engine.worker import Worker
from agentsrv.errors import ConfigurationError
from agentsrv.resources import make_library, node_name, open_models, open_store, open_vault
from agentsrv.server.auth.authenticator import Authenticator, open_authenticator
from agentsrv.server.cluster_usage import ClusterUsage
from agentsrv.server.limits import with_default_limits
from agentsrv.server.listener import Listener
from agentsrv.server.startup_checks import check_bind_address
from agentsrv.settings import Settings
from agentsrv.store.base import Store
from agentsrv.store.replay import forget_old
from agentsrv.store.shared import SharedStore
from agentsrv.telemetry import logs, nonblocking_output
from agentsrv.telemetry.export import open_tracing
from agentsrv.telemetry.watchdog import Watchdog
from agentsrv.version import __version__

if TYPE_CHECKING:
    from agentsrv.agents.llm import LanguageModel
    from agentsrv.builtin.planner import BuiltinPlanner
    from agentsrv.knowledge.ranking import Passage
    from agentsrv.knowledge.service import KnowledgeService

OnFault = Callable[[BaseException], None]
F = TypeVar("F", bound=AgentFunction)
P = TypeVar("P", bound=Planner)

_log = logging.getLogger("agentsrv")


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

    @asynccontextmanager
    async def running(self, settings: Settings | None = None) -> AsyncIterator[Running]:
        """Serve within the ``async with`` block; on leaving it, drain and close.

        Raises:
            ConfigurationError: The store, the knowledge folder or the models cannot be used, the
                agents' descriptions are too large, or strangers could come in or listen in.
            OSError: The address cannot be listened on.
        """
        refuse_in_worker()
        settings, authenticator = await _check(Settings() if settings is None else settings)
        if self._builtin_planner is not None:
            self._builtin_planner.default = settings.default_plan
        async with AsyncExitStack() as stack:
            models = await stack.enter_async_context(open_models(settings))
            library = make_library(settings, models.embedder)
            node = settings.node or node_name()
            store = open_store(settings, node)
            await store.open()
            stack.push_async_callback(store.close)
            broken: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

            def on_fault(error: BaseException) -> None:
                if not broken.done():
                    broken.set_result(error)

            store.on_broken = on_fault
            search = await stack.enter_async_context(_searching(library))
            vault = await open_vault(settings)
            processes = ProcessPool(
                self.registry.process_functions,
                Limits(settings.max_step_output, settings.max_result),
            )
            await stack.enter_async_context(processes)
            environment = self._surroundings(
                settings, node, store, search, models.llm, vault=vault, processes=processes
            )
            worker, remote_commands = Worker(environment, settings.concurrency), None
            broker = EventBroker(store, settings.principal_subscriptions)
            measures = environment.measures
            measures.running = lambda: worker.running
            measures.watch(store)
            if models.llm is not None:
                measures.model = models.llm.total.counts
            if isinstance(store, SharedStore):
                others = _among_others(store, worker, broker, on_fault)
                remote_commands = await stack.enter_async_context(others)
            command_handler = CommandHandler(
                store,
                self.registry,
                worker,
                now=time.time,
                grace=settings.cancel_grace,
                remote_commands=remote_commands,
            )
            listener = Listener(
                command_handler,
                broker,
                settings,
                authenticator,
                measures,
                version=__version__,
                adapters={"ag-ui": serve_ag_ui},
            )
            watchdog = stack.enter_context(Watchdog(settings.stall_warning, measures.lag))
            measures.stalls = lambda: watchdog.stalls
            measures.unwritten = nonblocking_output.dropped
            if settings.retention is not None:
                retention = forget_old(store, settings.retention, time.time)
                await stack.enter_async_context(_beside(retention, on_fault))
            await stack.enter_async_context(_accepting(listener, store, broker, settings, on_fault))
            if settings.role != "gateway":
                worker.start()
            stack.push_async_exit(
                partial(_leave, command_handler, worker, listener, settings.drain_timeout)
            )
            try:
                yield Running(listener.url, listener.port, worker, broken)
            except GeneratorExit:  # by `loop.shutdown_asyncgens()`: nobody leaves the block so
                reason = "code in this process has closed the server's asynchronous generators"
                on_fault(Dismantled(reason))
                raise

    def _surroundings(
        self,
        settings: Settings,
        node: str,
        store: Store,
        search: Search,
        model: LanguageModel | None,
        *,
        vault: Vault,
        processes: ProcessPool,
    ) -> TaskEnvironment:
        self.registry.check_size()
        self.registry.max_plan = settings.max_plan
        return TaskEnvironment(
            node=node,
            store=store,
            registry=self.registry,
            search=search,
            now=time.time,
            grace=settings.cancel_grace,
            limits=OutputLimits(
                settings.max_step_output, settings.max_task_output, settings.max_result
            ),
            tracebacks=settings.tracebacks == "on",
            vault=vault,
            model=model,
            tracing=open_tracing(),
            processes=processes,
        )


class Dismantled(RuntimeError):
    """Code in this process has taken the server apart: what runs cannot be given back in order."""


async def _leave(
    command_handler: CommandHandler,
    worker: Worker,
    listener: Listener,
    timeout: float,  # noqa: ASYNC109 - of the drain
    kind: type[BaseException] | None,
    *_: object,
) -> None:
    """Drain and close, unless there is nothing left that could drain."""
    if kind is not GeneratorExit:
        command_handler.draining = True
        listener.say_goodbye("the server stops")
        await worker.drain(timeout)
        await listener.close()


@dataclass(frozen=True, slots=True)
class Running:
    """A server that runs."""

    url: str
    """Where clients connect."""
    port: int
    worker: Worker
    broken: asyncio.Future[BaseException]
    """Done when the store, or what works with it, is at fault: the process should end."""


async def _check(settings: Settings) -> tuple[Settings, Authenticator]:
    """Open what authenticates clients; return it with the settings that depend on it.

    From here on, errors are logged without credentials.

    Raises:
        ConfigurationError: The settings would let unauthenticated clients in from outside.
    """
    logs.without_credentials()
    authenticator = await open_authenticator(settings, time.time)
    check_bind_address(settings, is_guarded=authenticator.is_required)
    return with_default_limits(settings, is_guarded=authenticator.is_required), authenticator


@asynccontextmanager
async def _searching(library: KnowledgeService | None) -> AsyncIterator[Search]:
    """Keep ``library`` open within the block; yield its search, or one that finds nothing."""
    if library is None:
        yield _find_nothing
        return
    await library.open()
    try:
        yield library.search
    finally:
        await library.close()


async def _find_nothing(_query: str, _limit: int) -> list[Passage]:
    return []


@asynccontextmanager
async def _among_others(
    store: SharedStore, worker: Worker, broker: EventBroker, on_fault: OnFault
) -> AsyncIterator[RemoteCommands]:
    """Take part in what other nodes of the store do, within the block."""
    remote_commands, follower = (
        RemoteCommands(store, worker),
        CommitFollower(store, broker, worker.runs, time.time),
    )
    store.on_lost = worker.abandon
    async with _beside(remote_commands.run(), on_fault), _beside(follower.run(), on_fault):
        yield remote_commands


@asynccontextmanager
async def _accepting(
    listener: Listener, store: Store, broker: EventBroker, settings: Settings, on_fault: OnFault
) -> AsyncIterator[None]:
    """Accept clients from here on; within the block their limits are those of all nodes."""
    await listener.start()
    if isinstance(store, SharedStore) and settings.role != "worker":
        neighbours = ClusterUsage(store, listener.limiter, broker, settings)
        async with _beside(neighbours.run(), on_fault):
            yield
    else:
        yield


@asynccontextmanager
async def _beside(work: Coroutine[Any, Any, None], on_fault: OnFault) -> AsyncIterator[None]:
    """Run ``work`` beside the block, and cancel it at the end; it must not end before."""

    def ended(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("a part of the server broke", exc_info=error)
            on_fault(error)

    task = asyncio.create_task(work)
    task.add_done_callback(ended)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})
