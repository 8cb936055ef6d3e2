"""App: where an author registers agents and planners, and what is built around them."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar, Unpack, overload

from agentsrv.agents.analyzer import AnalyzerAgent
from agentsrv.agents.base import Agent, AgentFunction, AgentOptions, Planner
from agentsrv.agents.knowledge import KnowledgeBase
from agentsrv.agents.knowledge.library import Library
from agentsrv.agents.optimizer import OptimizerAgent
from agentsrv.agents.planner import BuiltinPlanner
from agentsrv.agents.process import Limits, ProcessPool, refuse_in_worker
from agentsrv.agents.registry import Registry
from agentsrv.agents.retriever import RetrieverAgent
from agentsrv.agents.validator import ValidatorAgent
from agentsrv.agents.writer import WriterAgent
from agentsrv.error_text import redact
from agentsrv.errors import ConfigurationError, missing_extra
from agentsrv.models.retry import LOCAL_BASE
from agentsrv.orchestrator.hub import Hub
from agentsrv.orchestrator.logs import forget_old
from agentsrv.orchestrator.orchestrator import Orchestrator
from agentsrv.orchestrator.peers import Peers
from agentsrv.orchestrator.surroundings import OutputLimits, Surroundings
from agentsrv.orchestrator.tails import Tails
from agentsrv.orchestrator.vault import Vault
from agentsrv.orchestrator.worker import Worker
from agentsrv.server.auth import Authenticator, open_authenticator
from agentsrv.server.exposure import check_exposure
from agentsrv.server.gate import fill_in
from agentsrv.server.listener import Listener
from agentsrv.server.neighbours import Neighbours
from agentsrv.settings import Settings
from agentsrv.store.base import Store
from agentsrv.store.memory import MemoryStore
from agentsrv.store.queue import QueueLimits
from agentsrv.store.shared import SharedStore
from agentsrv.store.sqlite import SqliteStore
from agentsrv.store.sqlite_file import beside
from agentsrv.telemetry import logs, outlets
from agentsrv.telemetry.export import open_tracing
from agentsrv.telemetry.watchdog import Watchdog
from agentsrv.version import __version__

if TYPE_CHECKING:
    from agentsrv.agents.llm import Embedder, LanguageModel

SQLITE: Final = "sqlite:///"
POSTGRES: Final = ("postgresql://", "postgres://")
RETRIEVED: Final = 300.0  # seconds for which what was retrieved is used again

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
        self._builtin_planner = BuiltinPlanner(self.registry)
        if builtin:
            self.registry.planner = self._builtin_planner.plan
            for agent in (
                Agent.of(
                    RetrieverAgent().run,
                    name="retriever",
                    on_failure="degrade",
                    cache=RETRIEVED,
                    retry_base=LOCAL_BASE,
                    retry_jitter=False,
                ),
                Agent.of(
                    AnalyzerAgent().run,
                    name="analyzer",
                    retry_base=LOCAL_BASE,
                    retry_jitter=False,
                ),
                Agent.of(
                    WriterAgent().run,
                    name="writer",
                    retry_base=LOCAL_BASE,
                    retry_jitter=False,
                ),
                Agent.of(
                    ValidatorAgent().run,
                    name="validator",
                    on_failure="degrade",
                    retry_base=LOCAL_BASE,
                    retry_jitter=False,
                ),
                Agent.of(
                    OptimizerAgent().run,
                    name="optimizer",
                    retry_base=LOCAL_BASE,
                    retry_jitter=False,
                ),
            ):
                self.registry.add(agent)

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
        self._builtin_planner.default = settings.default_plan
        async with AsyncExitStack() as stack:
            models = await stack.enter_async_context(open_models(settings))
            library = Library(_knowledge_base(settings, models.embedder))
            node = settings.node or node_name()
            store = open_store(settings, node)
            await store.open()
            stack.push_async_callback(store.close)
            broken: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

            def on_fault(error: BaseException) -> None:
                if not broken.done():
                    broken.set_result(error)

            store.on_broken = on_fault
            await library.open()
            stack.push_async_callback(library.close)
            vault = await open_vault(settings)
            processes = ProcessPool(
                self.registry.process_functions,
                Limits(settings.max_step_output, settings.max_result),
            )
            await stack.enter_async_context(processes)
            around = self._surroundings(
                settings, node, store, library, models.llm, vault=vault, processes=processes
            )
            worker, peers = Worker(around, settings.concurrency), None
            hub = Hub(store, settings.principal_subscriptions)
            measures = around.measures
            measures.running = lambda: worker.running
            measures.watch(store)
            if models.llm is not None:
                measures.model = models.llm.total.counts
            if isinstance(store, SharedStore):
                others = _among_others(store, worker, hub, on_fault)
                peers = await stack.enter_async_context(others)
            orchestrator = Orchestrator(
                store,
                self.registry,
                worker,
                now=time.time,
                grace=settings.cancel_grace,
                peers=peers,
            )
            listener = Listener(
                orchestrator, hub, settings, authenticator, measures, version=__version__
            )
            watchdog = stack.enter_context(Watchdog(settings.stall_warning, measures.lag))
            measures.stalls, measures.unwritten = lambda: watchdog.stalls, outlets.dropped
            if settings.retention is not None:
                retention = forget_old(store, settings.retention, time.time)
                await stack.enter_async_context(_beside(retention, on_fault))
            await stack.enter_async_context(_accepting(listener, store, hub, settings, on_fault))
            if settings.role != "gateway":
                worker.start()
            stack.push_async_exit(
                partial(_leave, orchestrator, worker, listener, settings.drain_timeout)
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
        library: Library,
        model: LanguageModel | None,
        *,
        vault: Vault,
        processes: ProcessPool,
    ) -> Surroundings:
        self.registry.check_size()
        self.registry.max_plan = settings.max_plan
        return Surroundings(
            node=node,
            store=store,
            registry=self.registry,
            search=library.search,
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
    orchestrator: Orchestrator,
    worker: Worker,
    listener: Listener,
    timeout: float,  # noqa: ASYNC109 - of the drain
    kind: type[BaseException] | None,
    *_: object,
) -> None:
    """Drain and close, unless there is nothing left that could drain."""
    if kind is not GeneratorExit:
        orchestrator.draining = True
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
    check_exposure(settings, is_guarded=authenticator.is_required)
    return fill_in(settings, is_guarded=authenticator.is_required), authenticator


def node_name() -> str:
    """A name that no other server has."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(2)}"


def need_postgres() -> None:
    """Return where the extra for PostgreSQL is installed.

    Raises:
        ConfigurationError: It is not.
    """
    if find_spec("asyncpg") is None:
        raise ConfigurationError(missing_extra("a store in PostgreSQL", "postgres"))


def open_store(settings: Settings, node: str) -> Store:
    """The store that ``settings.store`` names, as ``node`` uses it; it is not opened yet.

    Raises:
        ConfigurationError: It names none, the extra for it is not installed, or a setting is for
            a store that several servers share.
    """
    limits = QueueLimits(
        settings.queue_limit, settings.principal_queued, settings.principal_running
    )
    if settings.store.startswith(POSTGRES):
        need_postgres()
        from agentsrv.store.postgres import PostgresStore  # noqa: PLC0415 - an extra

        return PostgresStore(
            settings.store,
            node=node,
            bus=settings.bus,
            role=settings.role,
            limits=limits,
        )
    if settings.role != "all" or settings.processes > 1 or settings.bus is not None:
        raise ConfigurationError(
            f"store is {redact(settings.store)!r}; expected postgresql://… with the settings role, "
            "bus and processes, which are for servers that share a store"
        )
    if settings.store == "memory:":
        return MemoryStore(limits)
    file = store_file(settings)
    if file is not None:
        return SqliteStore(file, limits)
    raise ConfigurationError(
        f"store is {redact(settings.store)!r}; expected sqlite:///FILE (a fourth slash begins an "
        "absolute path), memory: or postgresql://USER@HOST/DATABASE"
    )


async def open_vault(settings: Settings) -> Vault:
    """What encrypts the answers to secret questions, by ``settings``."""
    key = settings.secret_key
    file = store_file(settings)
    vault = Vault(
        None if key is None else key.get_secret_value(),
        None if file is None else beside(file, ".key"),
        is_shared=settings.store.startswith(POSTGRES),
    )
    await asyncio.to_thread(vault.load)
    return vault


def store_file(settings: Settings) -> Path | None:
    """The SQLite file that ``settings.store`` names, if it names one.

    Raises:
        ConfigurationError: No file can have that name.
    """
    name = settings.store.removeprefix(SQLITE)
    if not name or name == settings.store:
        return None
    if ":memory:" in name or name.startswith("file:"):
        raise ConfigurationError(
            f"store is {settings.store!r}; expected a file's name, or memory: for a store that is "
            "lost with the process"
        )
    if "?" in name or "\0" in name:
        raise ConfigurationError(
            f"store is {settings.store!r}; expected a file's name without ? and U+0000: there are "
            "no parameters"
        )
    if Path(name).name in {"", ".."}:
        raise ConfigurationError(
            f"store is {settings.store!r}, which is a folder; expected a file in it"
        )
    return Path(name)


def knowledge_index(settings: Settings) -> Path:
    """The file of the knowledge base's index; its folder may not exist yet.

    It is beside the SQLite store that ``store`` names. If none is named, it is in the user's
    folder for state, one for each knowledge folder: nothing is written into the working folder
    that was not asked for.
    """
    if settings.knowledge_index is not None:
        return settings.knowledge_index
    file = store_file(settings) if "store" in settings.model_fields_set else None
    if file is not None:
        return file.with_suffix(".knowledge.db")
    folder = Path(settings.knowledge or "").absolute()
    digest = sha256(os.fsencode(folder)).hexdigest()[:12]
    return state_folder() / f"{folder.name}-{digest}.knowledge.db"


def state_folder() -> Path:
    """Where this user's programs keep their state, as the XDG base directories define it."""
    given = Path(os.environ.get("XDG_STATE_HOME") or "")
    if not given.is_absolute():
        given = Path(os.path.expanduser("~"), ".local", "state")  # noqa: PTH111 - never raises
    return given.absolute() / "agentsrv"


def make_index_folder(settings: Settings) -> Path:
    """Make the folder of ``knowledge_index`` if it is the user's; return the file.

    Raises:
        ConfigurationError: The folder cannot be made or written.
    """
    index = knowledge_index(settings)
    if index.parent == state_folder():
        try:
            index.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(
                f"the index of the knowledge base cannot be kept in {index.parent}: "
                f"{error.strerror}; set knowledge_index, or XDG_STATE_HOME"
            ) from None
        if not os.access(index.parent, os.W_OK):
            raise ConfigurationError(
                f"the index of the knowledge base cannot be kept in {index.parent}, which cannot "
                "be written; set knowledge_index, or XDG_STATE_HOME"
            )
    return index


def _knowledge_base(settings: Settings, embedder: Embedder | None) -> KnowledgeBase | None:
    if settings.knowledge is None:
        return None
    if not settings.knowledge.is_dir():
        raise ConfigurationError(f"knowledge is {settings.knowledge}; expected a folder")
    return KnowledgeBase(settings.knowledge, make_index_folder(settings), embedder)


@dataclass(frozen=True, slots=True)
class Models:
    """The models of a server, as far as they are configured; they share one client."""

    llm: LanguageModel | None = None
    embedder: Embedder | None = None


@asynccontextmanager
async def open_models(settings: Settings) -> AsyncIterator[Models]:
    """Use the models that ``settings`` name; on leaving, their connections are closed.

    Raises:
        ConfigurationError: A model is named without an endpoint or an endpoint without a model,
            or the extra is not installed.
    """
    named = settings.llm_model or settings.embedding_model
    if not named and not settings.llm_url:
        yield Models()
        return
    if not named or not settings.llm_url:
        raise ConfigurationError(
            f"llm_url is {settings.llm_url!r}, llm_model {settings.llm_model!r}, embedding_model "
            f"{settings.embedding_model!r}; expected llm_url together with one of the models"
        )
    if find_spec("openai") is None or find_spec("numpy") is None:
        raise ConfigurationError(missing_extra("a language model", "llm"))
    from agentsrv.agents.llm import Embedder, LanguageModel, connect  # noqa: PLC0415 - an extra

    key = settings.llm_key.get_secret_value() if settings.llm_key is not None else None
    async with connect(settings.llm_url, key, settings.llm_timeout) as endpoint:
        chat, vectors, tracing = settings.llm_model, settings.embedding_model, open_tracing()
        yield Models(
            LanguageModel(endpoint, chat, settings.llm_max_tokens, tracing) if chat else None,
            Embedder(endpoint, vectors, tracing) if vectors else None,
        )


@asynccontextmanager
async def _among_others(
    store: SharedStore, worker: Worker, hub: Hub, on_fault: OnFault
) -> AsyncIterator[Peers]:
    """Take part in what other nodes of the store do, within the block."""
    peers, tails = Peers(store, worker), Tails(store, hub, worker.runs, time.time)
    store.on_lost = worker.abandon
    async with _beside(peers.run(), on_fault), _beside(tails.run(), on_fault):
        yield peers


@asynccontextmanager
async def _accepting(
    listener: Listener, store: Store, hub: Hub, settings: Settings, on_fault: OnFault
) -> AsyncIterator[None]:
    """Accept clients from here on; within the block their limits are those of all nodes."""
    await listener.start()
    if isinstance(store, SharedStore) and settings.role != "worker":
        neighbours = Neighbours(store, listener.gate, hub, settings)
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
