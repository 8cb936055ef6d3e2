"""The client for programs without asyncio: the same methods, which block until they are done."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Coroutine, Generator
from contextlib import suppress
from functools import wraps
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from agentsrv.client.client import Client
from agentsrv.client.connection import OnConnection, Options
from agentsrv.client.errors import ConnectionClosedError
from agentsrv.client.loop_thread import LoopThread
from agentsrv.client.results import Hello
from agentsrv.client.task_handle import TaskHandle
from agentsrv.client.tokens import Token
from agentsrv.models.events import Record

P = ParamSpec("P")
T = TypeVar("T")


def _of_client(
    method: Callable[Concatenate[Client, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[SyncClient, P], T]:
    """Return the same method for `SyncClient`."""

    @wraps(method)
    def call(self: SyncClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._loop_thread.run(method, self._client, *args, **kwargs)

    return call


def _of_client_for_task(
    method: Callable[Concatenate[Client, P], Coroutine[Any, Any, TaskHandle]],
) -> Callable[Concatenate[SyncClient, P], SyncTaskHandle]:
    """Return the same method for `SyncClient`, with a `SyncTaskHandle`."""

    @wraps(method)
    def call(self: SyncClient, /, *args: P.args, **kwargs: P.kwargs) -> SyncTaskHandle:
        task = self._loop_thread.run(method, self._client, *args, **kwargs)
        return SyncTaskHandle(task, self._loop_thread, self)

    return call


def _of_task(
    method: Callable[Concatenate[TaskHandle, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[SyncTaskHandle, P], T]:
    """Return the same method for `SyncTaskHandle`."""

    @wraps(method)
    def call(self: SyncTaskHandle, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._loop_thread.run(method, self._task, *args, **kwargs)

    return call


class SyncClient:
    """A `Client` whose methods block, for scripts, threads and notebooks.

    ::

        with SyncClient("ws://127.0.0.1:8765") as client:
            task = client.start("How does async I/O affect throughput?")
            print(task.result().final_output)

    It connects when it is created. It has the methods of `Client`, with the same arguments, results
    and errors, and its tasks are `SyncTaskHandle`. It can be used beside an event loop of the
    program, and by any number of threads.

    Owns a thread with an event loop, which `close` ends. Ctrl-C ends a call like a cancellation:
    its command may have been carried out or not, and the task continues on the server.

    A client that is dropped without `close` gives a `ResourceWarning` and ends its thread; it does
    not delay the end of the program. In a child of ``os.fork()`` every method raises
    `ClientUsageError`, and `close` leaves the parent's connection open.

    Args:
        url: ``ws://HOST:PORT`` or ``wss://…``; ``http`` and ``https`` mean the same.
        options: Limits of the connection.
        token: As for `Client`; a function is called in the client's thread.

    Raises:
        ConfigurationError: The URL is not that of a WebSocket, or the token or the file of the CA
            cannot be used.
        ServerUnavailableError, NotAServerError, UnauthenticatedError: There is no connection.
    """

    def __init__(
        self, url: str, options: Options | None = None, *, token: Token | None = None
    ) -> None:
        self._client = Client(url, options, token=token)
        self._loop_thread = LoopThread(self._client.aclose)
        try:
            self._loop_thread.run(self._client.__aenter__)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection, and end the thread. Closing again has no effect.

        Calls of other threads raise `ConnectionClosedError`. Tasks on the server continue.

        Raises:
            ClientUsageError: It is called by the client's own thread.
        """
        self._loop_thread.close()

    def __del__(self) -> None:
        loop_thread = getattr(self, "_loop_thread", None)
        if loop_thread is not None and loop_thread.is_open:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, stacklevel=2, source=self)
            loop_thread.close_soon()

    @property
    def hello(self) -> Hello:
        """See ``Client.hello``."""
        return self._client.hello

    @property
    def on_connection(self) -> OnConnection | None:
        """See ``Client.on_connection``; it is called in the client's thread."""
        return self._client.on_connection

    @on_connection.setter
    def on_connection(self, function: OnConnection | None) -> None:
        self._client.on_connection = function

    start = _of_client_for_task(Client.start)
    create = _of_client_for_task(Client.create)
    find = _of_client_for_task(Client.find)
    cancel = _of_client(Client.cancel)
    list = _of_client(Client.list)
    agents = _of_client(Client.agents)
    ping = _of_client(Client.ping)

    def task(self, task_id: str) -> SyncTaskHandle:
        """Return a handle of a task that exists. Nothing is sent."""
        return SyncTaskHandle(self._client.task(task_id), self._loop_thread, self)


class SyncTaskHandle:
    """A task on the server. It has the methods of `TaskHandle`, which block.

    Functions that are passed to ``result`` are plain ones. They are called in the thread that
    called ``result``, so they may block, ask people, and use the client.
    """

    def __init__(self, task: TaskHandle, loop_thread: LoopThread, client: SyncClient) -> None:
        self._task = task
        self._loop_thread = loop_thread
        self._client = client  # a client that is dropped closes its connection

    def __repr__(self) -> str:
        return f"<SyncTaskHandle {self.id}>"

    @property
    def id(self) -> str:
        """The id of the task."""
        return self._task.id

    @property
    def replayed(self) -> bool:
        """Whether the task existed already when it was created, by its idempotency key."""
        return self._task.replayed

    execute = _of_task(TaskHandle.execute)
    result = _of_task(TaskHandle.result)
    status = _of_task(TaskHandle.status)
    cancel = _of_task(TaskHandle.cancel)
    send = _of_task(TaskHandle.send)
    respond = _of_task(TaskHandle.respond)

    def events(self, after_seq: int = 0) -> Generator[Record]:
        """Yield the task's events after number ``after_seq``, up to its terminal event.

        See ``TaskHandle.events``. Leaving the loop early unsubscribes when the generator is closed.
        """
        stream = self._task.events(after_seq)

        async def next_record() -> Record | None:
            return await anext(stream, None)

        run = self._loop_thread.run
        try:
            while (record := run(next_record)) is not None:
                yield record
        finally:
            with suppress(ConnectionClosedError):  # the stream has ended
                run(stream.aclose)
