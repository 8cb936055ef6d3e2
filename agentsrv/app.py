"""App: where an author registers agents and planners, and what is built around them."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from typing import Any

from agentsrv.agents.collection import Agents
from agentsrv.agents.lifespan import Lifespan, check_lifespan, entered
from agentsrv.errors import InvalidStateError, UnavailableError
from agentsrv.settings import Settings, read_settings
from agentsrv.wiring import Server, serving


class App(Agents):
    """An application: its agents, its planner, and how to serve them.

    It is a collection of agents, empty at first. `agentsrv.builtin` has an application of this
    kind with the built-in agents.

    Args:
        lifespan: Called with the application, with ``@asynccontextmanager``. It is entered before
            the server accepts work and left after the drain, once in each process that serves.
            The value that it yields becomes ``ctx.state``.

    Raises:
        ConfigurationError: The lifespan is not such a function.
    """

    def __init__(self, *, lifespan: Lifespan[App] | None = None) -> None:
        super().__init__()
        check_lifespan(lifespan)
        self.lifespan = lifespan
        self._settings: Settings | None = None

    @property
    def settings(self) -> Settings:
        """The settings of the server that runs, or was started last; for a lifespan.

        Raises:
            InvalidStateError: No server of the application was started.
        """
        if self._settings is None:
            raise InvalidStateError(
                "found a use of app.settings before the start of a server; expected it in the "
                "lifespan, or later"
            )
        return self._settings

    async def run(self, **settings: Any) -> None:
        """Serve until cancelled, or until SIGINT or SIGTERM; then drain, close and return.

        For programs with an event loop of their own: ``asyncio.run(app.run(port=8765))``. Handlers
        of the two signals are replaced while the server runs, if this is the main thread. They are
        restored at the first signal, so that a second one has its usual effect on the drain.
        Logging and the garbage collector are left to the program.

        A cancellation is raised again after the drain.

        Args:
            settings: Fields of `Settings`; they take precedence over the environment, ``.env`` and
                ``agentsrv.toml``.

        Raises:
            ConfigurationError, LifespanError, OSError: As ``running``.
            UnavailableError: The store failed; the server has stopped.
        """
        until = asyncio.timeout(None)  # a signal sets it to now
        try:
            async with until:
                with _ended_by_signals(until):
                    async with self.running(read_settings(**settings)) as running:
                        await asyncio.wait({running.broken})
                        raise UnavailableError(
                            f"the store cannot be trusted any more: {running.broken.result()}"
                        )
        except TimeoutError:
            if not until.expired():
                raise

    def running(self, settings: Settings | None = None) -> AbstractAsyncContextManager[Server]:
        """Serve within the ``async with`` block; on leaving it, drain and close.

        Raises:
            ConfigurationError: On entering: the store, the knowledge folder or the models cannot
                be used, the agents' descriptions are too large, or the settings would let
                unauthenticated clients in from outside.
            LifespanError: The application's lifespan raised, at the start or at the end.
            OSError: On entering: the address cannot be listened on.
        """
        return serving(
            Settings() if settings is None else settings, self.registry, self._open_state
        )

    def _open_state(self, settings: Settings) -> AbstractAsyncContextManager[Any]:
        self._settings = settings
        return entered(self.lifespan, self)


@contextmanager
def _ended_by_signals(until: asyncio.Timeout) -> Iterator[None]:
    """Let the first SIGINT or SIGTERM within the block expire ``until``, in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        while before:
            number, handler = before.popitem()
            with suppress(NotImplementedError):
                loop.remove_signal_handler(number)
            signal.signal(number, handler)

    def end() -> None:
        restore()
        with suppress(RuntimeError):  # a cancellation was first
            until.reschedule(loop.time())

    for number in before:
        with suppress(NotImplementedError):  # an event loop on Windows
            loop.add_signal_handler(number, end)
    try:
        yield
    finally:
        restore()
