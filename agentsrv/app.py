"""App: where an author registers agents and planners, and what is built around them."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, TypeVar, Unpack, overload

from agentsrv.agents.analyzer import AnalyzerAgent
from agentsrv.agents.analyzer import plan as default_planner
from agentsrv.agents.base import Agent, AgentFunction, AgentOptions, Planner
from agentsrv.agents.knowledge import KnowledgeBase, Passage
from agentsrv.agents.registry import Registry
from agentsrv.agents.retriever import RetrieverAgent
from agentsrv.agents.writer import WriterAgent
from agentsrv.errors import ConfigurationError, KnowledgeError
from agentsrv.orchestrator.logs import forget_old
from agentsrv.orchestrator.orchestrator import Orchestrator
from agentsrv.orchestrator.steps import OutputLimits
from agentsrv.orchestrator.subscriptions import Hub
from agentsrv.orchestrator.surroundings import Surroundings
from agentsrv.orchestrator.worker import Worker
from agentsrv.server.listener import Listener
from agentsrv.settings import Settings
from agentsrv.store.base import Store
from agentsrv.store.memory import MemoryStore
from agentsrv.store.sqlite import SqliteStore
from agentsrv.telemetry.watchdog import Watchdog

VERSION: Final = version("agentsrv")
SQLITE: Final = "sqlite:///"

F = TypeVar("F", bound=AgentFunction)
P = TypeVar("P", bound=Planner)

_log = logging.getLogger("agentsrv")


class App:
    """An application: its agents, its planner, and how to serve them.

    ``App()`` has the built-in agents (retriever, analyzer, writer) and the planner that runs
    them in this order; ``App(builtin=False)`` has none.
    """

    def __init__(self, *, builtin: bool = True) -> None:
        self.registry = Registry()
        if builtin:
            self.registry.planner = default_planner
            retriever, analyzer, writer = RetrieverAgent(), AnalyzerAgent(), WriterAgent()
            self.registry.add(Agent.of(retriever.run, name="retriever", on_failure="degrade"))
            self.registry.add(Agent.of(analyzer.run, name="analyzer"))
            self.registry.add(Agent.of(writer.run, name="writer"))

    @overload
    def agent(self, function: F, /) -> F: ...

    @overload
    def agent(self, /, **options: Unpack[AgentOptions]) -> Callable[[F], F]: ...

    def agent(
        self, function: F | None = None, /, **options: Unpack[AgentOptions]
    ) -> F | Callable[[F], F]:
        """Register an agent; the function is returned unchanged.

        Used as ``@app.agent`` or, with the options of ``AgentOptions``, as ``@app.agent(...)``.

        Args:
            function: ``async def`` or async generator taking ``(step, ctx, ...)``.
            options: What there is to say about it.

        Raises:
            ConfigurationError: The function or an option cannot be taken.
        """

        def register(run: F) -> F:
            self.registry.add(Agent.of(run, **options))
            return run

        return register if function is None else register(function)

    def planner(self, function: P) -> P:
        """Let ``function`` plan each task that brings no plan; it is returned unchanged."""
        self.registry.planner = function
        return function

    @asynccontextmanager
    async def running(self, settings: Settings | None = None) -> AsyncIterator[Running]:
        """Serve within the ``async with`` block; on leaving it, drain and close.

        Raises:
            ConfigurationError: The store or the knowledge folder cannot be used.
            OSError: The address cannot be listened on.
        """
        settings = Settings() if settings is None else settings
        async with AsyncExitStack() as stack:
            library = _Library(settings)
            store = open_store(settings)
            await store.open()
            stack.push_async_callback(store.close)
            broken: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
            store.on_broken = broken.set_result
            await library.open()
            stack.push_async_callback(library.close)
            worker = Worker(self._surroundings(settings, store, library), settings.concurrency)
            orchestrator = Orchestrator(
                store, self.registry, worker, now=time.time, grace=settings.cancel_grace
            )
            listener = Listener(orchestrator, Hub(store), settings, version=VERSION)
            stack.enter_context(Watchdog(settings.stall_warning))
            if settings.retention is not None:
                retention = forget_old(store, settings.retention, time.time)
                await stack.enter_async_context(_beside(retention))
            await listener.start()
            worker.start()
            try:
                yield Running(settings.host, listener.port, worker, broken)
            finally:
                orchestrator.draining = True
                listener.say_goodbye("the server stops")
                await worker.drain(settings.drain_timeout)
                await listener.close()

    def _surroundings(self, settings: Settings, store: Store, library: _Library) -> Surroundings:
        return Surroundings(
            node=f"{socket.gethostname()}-{os.getpid()}",
            store=store,
            registry=self.registry,
            search=library.search,
            now=time.time,
            grace=settings.cancel_grace,
            limits=OutputLimits(settings.max_step_output, settings.max_task_output),
        )


@dataclass(frozen=True, slots=True)
class Running:
    """A server that runs."""

    host: str
    port: int
    worker: Worker
    broken: asyncio.Future[BaseException]
    """Done when the store can no longer be trusted: the process should end and recover."""

    @property
    def url(self) -> str:
        """Where clients connect."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"ws://{host}:{self.port}"


def open_store(settings: Settings) -> Store:
    """The store that ``settings.store`` names.

    Raises:
        ConfigurationError: It names none.
    """
    if settings.store == "memory:":
        return MemoryStore(settings.queue_limit)
    if settings.store.startswith(SQLITE) and len(settings.store) > len(SQLITE):
        return SqliteStore(Path(settings.store.removeprefix(SQLITE)), settings.queue_limit)
    raise ConfigurationError(
        f"store is {settings.store!r}; expected sqlite:///FILE (a fourth slash begins an "
        "absolute path) or memory:"
    )


def knowledge_index(settings: Settings) -> Path:
    """The file of the knowledge base's index."""
    if settings.knowledge_index is not None:
        return settings.knowledge_index
    if settings.store.startswith(SQLITE):
        return Path(settings.store.removeprefix(SQLITE)).with_suffix(".knowledge.db")
    return Path("agentsrv.knowledge.db")


@asynccontextmanager
async def _beside(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run ``work`` beside the block, and cancel it at the end."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


class _Library:
    """The knowledge base of a server, if it has one; brought up to date while it serves."""

    def __init__(self, settings: Settings) -> None:
        self._base: KnowledgeBase | None = None
        self._refresh: asyncio.Task[None] | None = None
        if settings.knowledge is not None:
            if not settings.knowledge.is_dir():
                raise ConfigurationError(f"knowledge is {settings.knowledge}; expected a folder")
            self._base = KnowledgeBase(settings.knowledge, knowledge_index(settings))

    async def open(self) -> None:
        """Begin to bring the index up to date."""
        if self._base is not None:
            self._refresh = asyncio.create_task(self._bring_up_to_date(self._base))

    async def search(self, query: str, limit: int) -> list[Passage]:
        """Search, as soon as the index is up to date."""
        if self._base is None or self._refresh is None:
            return []
        await asyncio.shield(self._refresh)
        return await self._base.search(query, limit)

    async def close(self) -> None:
        """Stop reading and close the index."""
        if self._refresh is not None:
            self._refresh.cancel()
            await asyncio.wait({self._refresh})
        if self._base is not None:
            await self._base.close()

    async def _bring_up_to_date(self, base: KnowledgeBase) -> None:
        try:
            report = await base.refresh()
        except KnowledgeError as error:
            _log.error("the knowledge base cannot be brought up to date: %s", error)
        else:
            _log.info(
                "knowledge base: %d files, %d passages, brought up to date in %.1f s",
                report.files,
                report.passages,
                report.seconds,
            )
