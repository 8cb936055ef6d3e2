"""The client for scripts and notebooks: the same methods, which return when they are done."""

from __future__ import annotations

import asyncio
import os
import threading
import warnings
from collections.abc import Callable, Coroutine, Generator, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from functools import wraps
from queue import SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, Final, ParamSpec, Self, TypeVar

from agentsrv.client.client import Client
from agentsrv.client.connection import Options
from agentsrv.client.errors import ClientUsageError, ConnectionClosedError
from agentsrv.client.tokens import Token
from agentsrv.models.events import Record

if TYPE_CHECKING:
    from agentsrv.protocol.frame_types import Hello

LAST_CHANCE: Final = 1.0  # seconds that calls of other threads have to see that it is closed

P = ParamSpec("P")
T = TypeVar("T")
Calls = SimpleQueue[Callable[[], None] | None]
"""What the calling thread is to do while it waits; ``None`` when there is nothing to wait for."""


def _blocking(
    method: Callable[Concatenate[Client, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[SyncClient, P], T]:
    """The same method for `SyncClient`; the caller's thread calls the functions it is given."""

    @wraps(method)
    def call(self: SyncClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        calls: Calls = SimpleQueue()
        for name, value in kwargs.items():
            if callable(value):
                kwargs[name] = self._handed_over(value, calls)
        return self._wait(method(self._client, *args, **kwargs), calls)

    return call


class SyncClient:
    """A `Client` that needs no event loop of the caller's, and may be used beside one.

    ::

        with SyncClient("ws://127.0.0.1:8765") as client:
            print(client.run("How does async I/O affect throughput?").final_output)

    It connects when it is made. Its methods are those of `Client`, where their arguments, results
    and errors are told, but they return when they are done. Functions that are given to ``run``
    are plain ones; they are called in the thread that called ``run``, so they may take their time,
    ask people, and use the client. Any number of threads may use a client.

    Owns a thread with an event loop, which ends with `close`. Ctrl-C ends a call as a cancellation
    would: what was asked may have been carried out or not, and a task of ``run`` goes on.

    A client that is dropped without `close` gives a `ResourceWarning` and ends its thread; it does
    not hold up the end of the program. In a child of ``os.fork()`` every method raises
    `ClientUsageError`, and `close` leaves the parent's connection alone.

    Args:
        url: Where the server is, ``ws://HOST:PORT`` or ``wss://…``.
        options: Limits of the connection.
        token: As that of `Client`; a function is called in the client's thread.

    Raises:
        ConfigurationError: The URL is not one of a WebSocket, or the token or the file of the CA
            cannot be used.
        ServerUnavailableError, NotAServerError, AccessDeniedError: There is no connection to be
            had.
    """

    def __init__(
        self, url: str, options: Options | None = None, *, token: Token | None = None
    ) -> None:
        self._client = Client(url, options, token=token)
        self._loop = asyncio.new_event_loop()
        self._lock = threading.Lock()  # nothing is given to the loop behind its end
        self._process = os.getpid()
        self._thread = threading.Thread(
            target=_run, args=(self._loop,), name="agentsrv-client", daemon=True
        )
        try:
            self._thread.start()
        except RuntimeError:
            self._loop.close()
            raise
        self._closed = False
        try:
            self._wait(self._client.__aenter__(), SimpleQueue())
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
        """Close the connection. Calls of other threads raise `ConnectionClosedError`.

        Tasks on the server continue. Closing again has no effect.

        Raises:
            ClientUsageError: It is called by the client's own thread.
        """
        if self._process != os.getpid():
            self._closed = True
            return
        self._check_thread()
        with self._lock:
            if self._closed:
                return
            self._closed = True
            ended = asyncio.run_coroutine_threadsafe(_end(self._client), self._loop)
        ended.result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def __del__(self) -> None:
        if getattr(self, "_closed", True) or self._process != os.getpid():
            return
        self._closed = True
        warnings.warn(f"unclosed {self!r}", ResourceWarning, stacklevel=2, source=self)
        with suppress(RuntimeError):  # the interpreter ends, and the thread with it
            ended = asyncio.run_coroutine_threadsafe(_end(self._client), self._loop)
            _ending.add(ended)
            ended.add_done_callback(_stop(self._loop))

    @property
    def hello(self) -> Hello:
        """The server's latest greeting: its version, limits and commands."""
        return self._client.hello

    create = _blocking(Client.create)
    execute = _blocking(Client.execute)
    status = _blocking(Client.status)
    list = _blocking(Client.list)
    cancel = _blocking(Client.cancel)
    respond = _blocking(Client.respond)
    send = _blocking(Client.send)
    agents = _blocking(Client.agents)
    ping = _blocking(Client.ping)
    resolve = _blocking(Client.resolve)
    run = _blocking(Client.run)

    def events(self, task_id: str, after_seq: int = 0) -> Generator[Record]:
        """The events of a task that follow number ``after_seq``, up to its terminal event.

        See `Client.events`. Leaving the loop early unsubscribes when the generator is closed.
        """
        stream = self._client.events(task_id, after_seq)

        async def step() -> Record | None:
            return await anext(stream, None)

        try:
            while (record := self._wait(step(), SimpleQueue())) is not None:
                yield record
        finally:
            with suppress(ConnectionClosedError):  # then it has ended already
                self._wait(stream.aclose(), SimpleQueue())

    def _wait(self, work: Coroutine[Any, Any, T], calls: Calls) -> T:
        """Let the loop do ``work``, and do meanwhile what it asks of this thread.

        What is raised here meanwhile, such as Ctrl-C, cancels the work, and is raised again when
        that has ended.
        """
        tasks: list[asyncio.Task[Any]] = []
        try:
            self._check_usable()
        except ClientUsageError:
            work.close()
            raise
        try:
            future = self._hand_over(_tracked(work, tasks))
            future.add_done_callback(lambda _: calls.put(None))
            while (call := calls.get()) is not None:
                call()
        except BaseException:  # which may also come just before or behind the hand-over
            self._cancel(tasks)
            work.close()
            raise
        try:
            return future.result()
        except CancelledError:
            raise ConnectionClosedError("the client is closed") from None

    def _check_usable(self) -> None:
        self._check_thread()
        if self._process != os.getpid():
            raise ClientUsageError(
                f"the client belongs to process {self._process}, and this is its child "
                f"{os.getpid()}; make another SyncClient after os.fork()"
            )

    def _check_thread(self) -> None:
        if threading.current_thread() is self._thread:
            raise ClientUsageError(
                "the client's own thread cannot wait for the client; a token function must not "
                "use the client that it belongs to"
            )

    def _hand_over(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        with self._lock:
            if self._closed:
                work.close()
                raise ConnectionClosedError("the client is closed")
            return asyncio.run_coroutine_threadsafe(work, self._loop)

    def _handed_over(
        self, function: Callable[..., Any], calls: Calls
    ) -> Callable[..., Coroutine[Any, Any, Any]]:
        """A coroutine function for the loop that lets the waiting thread call ``function``."""

        async def ask(*args: Any) -> Any:
            answer = self._loop.create_future()
            calls.put(lambda: self._answer(answer, function, args))
            return await answer

        return ask

    def _answer(
        self, answer: asyncio.Future[Any], function: Callable[..., Any], args: tuple[Any, ...]
    ) -> None:
        if answer.done():
            return  # a question that was settled while another was answered
        result, error = None, None
        try:
            result = function(*args)
        except Exception as raised:  # noqa: BLE001 - it is raised again, where it is awaited
            error = raised
        with suppress(RuntimeError):  # closed meanwhile: nobody waits any more
            self._loop.call_soon_threadsafe(_settle, answer, result, error)

    def _cancel(self, tasks: Sequence[asyncio.Task[Any]]) -> None:
        with self._lock:
            if self._closed:
                return
            # Behind the first turn of the work, which was given to the loop before.
            ended = asyncio.run_coroutine_threadsafe(_cancelled(tasks), self._loop)
        ended.result()


_ending: set[Future[None]] = set()
"""Clients that were dropped and are being closed: without it they could be collected meanwhile."""


def _run(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
    finally:
        loop.close()


def _stop(loop: asyncio.AbstractEventLoop) -> Callable[[Future[None]], None]:
    def stop(ended: Future[None]) -> None:
        _ending.discard(ended)
        with suppress(RuntimeError):  # the loop is closed
            # Called by whichever thread comes last; only this wakes a loop that waits.
            loop.call_soon_threadsafe(loop.stop)

    return stop


async def _end(client: Client) -> None:
    await client.aclose()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    if others:
        _, late = await asyncio.wait(others, timeout=LAST_CHANCE)
        for task in late:
            task.cancel()
        await asyncio.wait(others)


async def _tracked(work: Coroutine[Any, Any, T], tasks: list[asyncio.Task[Any]]) -> T:
    task = asyncio.current_task()
    assert task is not None
    tasks.append(task)
    return await work


async def _cancelled(tasks: Sequence[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)


def _settle(answer: asyncio.Future[Any], result: Any, error: Exception | None) -> None:
    if answer.done():
        return
    if error is not None:
        answer.set_exception(error)
    else:
        answer.set_result(result)
