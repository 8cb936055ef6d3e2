"""Builds a server from its settings, starts it, and closes it in order.

`build` makes the parts and connects them. It opens, starts and awaits nothing, so a test can look
at the parts. `Server` starts them and ends them in the opposite order. `serving` does both, and
opens what `build` needs.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from agentsrv.adapters.ag_ui.endpoint import serve_ag_ui
from agentsrv.agents.isolation.process_function import ProcessPool, ReturnLimits, refuse_in_worker
from agentsrv.agents.registry import Registry
from agentsrv.delivery.broker import EventBroker
from agentsrv.engine.cluster.follower import CommitFollower
from agentsrv.engine.cluster.remote_commands import RemoteCommands
from agentsrv.engine.commands import CommandHandler
from agentsrv.engine.environment import OutputLimits, TaskEnvironment
from agentsrv.engine.store_events import StoreEvents
from agentsrv.engine.vault import Vault
from agentsrv.engine.worker import Worker
from agentsrv.resources import (
    NO_MODELS,
    Models,
    make_library,
    node_name,
    open_models,
    open_store,
    open_vault,
)
from agentsrv.server.auth.authenticator import Authenticator, open_authenticator
from agentsrv.server.cluster_usage import ClusterUsage
from agentsrv.server.limits import with_default_limits
from agentsrv.server.listener import Listener
from agentsrv.server.startup_checks import check_bind_address
from agentsrv.settings import Settings
from agentsrv.store.base import Store, StoreListener
from agentsrv.store.replay import forget_old
from agentsrv.store.shared import SharedStore
from agentsrv.telemetry import logs, nonblocking_output
from agentsrv.telemetry.export import open_tracing
from agentsrv.telemetry.watchdog import Watchdog
from agentsrv.version import __version__

if TYPE_CHECKING:
    from agentsrv.knowledge.ranking import Passage
    from agentsrv.knowledge.service import KnowledgeService

GOODBYE = "the server stops"  # the reason in the `goaway` frame

_log = logging.getLogger("agentsrv")


class DismantledError(RuntimeError):
    """Code in this process has closed parts of the server: it cannot be drained any more."""


@asynccontextmanager
async def serving(
    settings: Settings,
    registry: Registry,
    open_state: Callable[[Settings], AbstractAsyncContextManager[Any]],
) -> AsyncIterator[Server]:
    """Serve the agents of ``registry`` within the block; on leaving it, drain and close.

    The context that ``open_state`` returns is entered before the store is opened, and left after
    the drain. Its value is ``ctx.state``.

    Raises:
        ConfigurationError: The store, the knowledge folder or the models cannot be used, the
            agents' descriptions are too large, or the settings would let unauthenticated clients
            in from outside.
        LifespanError: The context of ``open_state`` raised.
        OSError: The address cannot be listened on.
    """
    refuse_in_worker()
    logs.remove_credentials()
    authenticator = await open_authenticator(settings, time.time)
    check_bind_address(settings, is_guarded=authenticator.is_required)
    settings = with_default_limits(settings, is_guarded=authenticator.is_required)
    async with open_models(settings) as models, open_state(settings) as state:
        node = settings.node or node_name()
        server = build(
            settings,
            registry,
            authenticator,
            open_store(settings, node),
            node=node,
            vault=await open_vault(settings),
            models=models,
            library=make_library(settings, models.embedder),
            state=state,
        )
        async with server:
            try:
                yield server
            except GeneratorExit:  # by `loop.shutdown_asyncgens()`: no caller leaves the block so
                server.fail(
                    DismantledError(
                        "code in this process has closed the server's asynchronous generators"
                    )
                )
                raise


def build(
    settings: Settings,
    registry: Registry,
    authenticator: Authenticator,
    store: Store,
    *,
    node: str,
    vault: Vault,
    models: Models = NO_MODELS,
    library: KnowledgeService | None = None,
    state: Any = None,
) -> Server:
    """Make the parts of a server, for the running event loop, and connect them.

    Args:
        settings: With the limits that depend on whether clients authenticate.
        registry: The agents; its limit of a plan's size is set.
        authenticator: Decides which principal a client is.
        store: Not opened yet.
        node: The name under which this server claims tasks.
        vault: Encrypts the answers to secret questions.
        models: The language model and the embedder.
        library: The knowledge base, not opened yet.
        state: The value of the application's lifespan.

    Raises:
        ConfigurationError: The agents' descriptions are too large for one reply.
    """
    registry.check_size()
    registry.max_plan = settings.max_plan
    processes = ProcessPool(
        registry.process_functions, ReturnLimits(settings.max_step_output, settings.max_result)
    )
    environment = TaskEnvironment(
        node=node,
        store=store,
        registry=registry,
        search=_find_nothing if library is None else library.search,
        now=time.time,
        grace=settings.cancel_grace,
        limits=OutputLimits(
            settings.max_step_output, settings.max_task_output, settings.max_result
        ),
        tracebacks=settings.tracebacks == "on",
        vault=vault,
        model=models.llm,
        tracing=open_tracing(),
        processes=processes,
        state=state,
    )
    worker = Worker(environment, settings.concurrency)
    broker = EventBroker(store, settings.principal_subscriptions)
    cluster = None
    if isinstance(store, SharedStore):
        cluster = Cluster(
            store,
            RemoteCommands(store, worker),
            CommitFollower(store, broker, worker.runs, time.time),
        )
    command_handler = CommandHandler(
        store,
        registry,
        worker,
        now=time.time,
        grace=settings.cancel_grace,
        remote_commands=None if cluster is None else cluster.remote_commands,
    )
    measures = environment.measures
    listener = Listener(
        command_handler,
        broker,
        settings,
        authenticator,
        measures,
        version=__version__,
        adapters={"ag-ui": serve_ag_ui},
    )
    watchdog = Watchdog(settings.stall_warning, measures.lag)
    measures.watch(store)
    measures.running = lambda: worker.running
    measures.connections = lambda: listener.connections
    measures.behind = lambda: listener.behind
    measures.stalls = lambda: watchdog.stalls
    measures.unwritten = nonblocking_output.dropped
    if models.llm is not None:
        measures.model = models.llm.total.counts
    return Server(
        settings,
        store,
        library,
        processes,
        broker,
        worker,
        cluster,
        command_handler,
        listener,
        watchdog,
    )


@dataclass(frozen=True, slots=True)
class Cluster:
    """The parts of a server that only a store shared by several nodes needs."""

    store: SharedStore
    remote_commands: RemoteCommands
    follower: CommitFollower


@dataclass(slots=True, eq=False)
class Server:
    """The parts of a server. ``async with`` opens and starts them, and drains and closes them.

    Entering it raises what opening the store, the knowledge base and the port raise; parts that
    were open by then are closed.
    """

    settings: Settings
    store: Store
    library: KnowledgeService | None
    processes: ProcessPool
    broker: EventBroker
    worker: Worker
    cluster: Cluster | None
    command_handler: CommandHandler
    listener: Listener
    watchdog: Watchdog
    broken: asyncio.Future[BaseException] = field(init=False)
    """Done when the store, or a part that works with it, has failed: the process should end."""
    _stack: AsyncExitStack = field(init=False)

    @property
    def url(self) -> str:
        """Where clients connect."""
        return self.listener.url

    @property
    def port(self) -> int:
        """The TCP port that is listened on."""
        return self.listener.port

    async def __aenter__(self) -> Self:
        self.broken = asyncio.get_running_loop().create_future()
        async with AsyncExitStack() as stack:
            await self._start(stack)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is not GeneratorExit:  # after which nothing is left that could be drained
                await self._drain()
        finally:
            await self._stack.aclose()

    async def _start(self, stack: AsyncExitStack) -> None:
        """Open and start the parts; ``stack`` gets what closes them."""
        settings, store, cluster = self.settings, self.store, self.cluster
        await store.open(self.store_listener)
        stack.push_async_callback(store.close)
        if self.library is not None:
            await self.library.open()
            stack.push_async_callback(self.library.close)
        await stack.enter_async_context(self.processes)
        if cluster is not None:
            self._run_beside(stack, cluster.remote_commands.run())
            self._run_beside(stack, cluster.follower.run())
        stack.enter_context(self.watchdog)
        if settings.retention is not None:
            self._run_beside(stack, forget_old(store, settings.retention, time.time))
        await self.listener.start()
        if cluster is not None and settings.role != "worker":
            usage = ClusterUsage(cluster.store, self.listener.limiter, self.broker, settings)
            self._run_beside(stack, usage.run())
        if settings.role != "gateway":
            self.worker.start()

    @property
    def store_listener(self) -> StoreListener:
        """Passes what happens in the store to the parts that it concerns."""
        cluster = self.cluster
        if cluster is None:
            return StoreEvents(self.broker, self.worker, self.fail)
        return StoreEvents(
            self.broker, self.worker, self.fail, cluster.remote_commands, cluster.follower
        )

    async def _drain(self) -> None:
        """Refuse new work, give tasks and clients their time to end, and close the port."""
        self.command_handler.draining = True
        self.listener.say_goodbye(GOODBYE)
        await self.worker.drain(self.settings.drain_timeout)
        await self.listener.close()

    def fail(self, error: BaseException) -> None:
        """Set ``broken``; the first error counts."""
        if not self.broken.done():
            self.broken.set_result(error)

    def _run_beside(self, stack: AsyncExitStack, work: Coroutine[Any, Any, None]) -> None:
        """Run ``work`` until ``stack`` is left. It must not end before: that fails the server."""
        task = asyncio.create_task(work)
        task.add_done_callback(self._ended)

        async def cancel() -> None:
            task.cancel()
            await asyncio.wait({task})

        stack.push_async_callback(cancel)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("a part of the server broke", exc_info=error)
            self.fail(error)


async def _find_nothing(_query: str, _limit: int) -> list[Passage]:
    return []
